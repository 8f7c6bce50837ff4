"""Builds that are stopped in the middle, as processes: nothing partial stays, work is reused."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli import process
from tests.cli.nets import CALIB, MODEL, arrays
from tests.cli.process import ended

SAMPLES = 3000
OPTIONS = ("-o", "out", "--jobs", "1", "--allow-slower", "--no-keep-accuracy")
BUILD = ("build", MODEL, "--calib", "many.npz", *OPTIONS)

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with so much data that the histograms take seconds."""
    images = arrays(CALIB)["image"]
    rng = np.random.default_rng(0)
    repeated = images[rng.integers(0, len(images), SAMPLES)]
    noisy = np.clip(repeated + rng.normal(0, 0.02, repeated.shape), 0, 1)
    np.savez(tmp_path / "many.npz", image=noisy.astype(np.float32))
    return tmp_path


def stop_in_histograms(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a build, send a signal when the ranges are kept; return exit code and stderr."""
    build = process.start(folder, *BUILD, PYTHONUNBUFFERED="1")
    deadline = time.monotonic() + 60
    while not kept(folder) and build.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)
    build.send_signal(number)
    done = ended(build)
    assert done.out == ""
    assert "calibrate: ranges" in done.err
    assert "calibrate: histograms" not in done.err
    return done.code, done.err


def kept(folder: Path) -> list[Path]:
    """Return the finished entries of the cache."""
    return [p for p in (folder / "cache").glob("*.npz") if ".partial" not in p.suffixes]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_interrupt_leaves_nothing_and_the_next_build_continues(folder: Path) -> None:
    code, errors = stop_in_histograms(folder, signal.SIGINT)
    assert code == 130
    assert errors.splitlines()[-1] == "interrupted; finished statistics are kept"
    assert "Traceback" not in errors
    assert names(folder) == ["cache", "many.npz"]

    again = process.run(folder, *BUILD)
    assert again.code == 0, again.err
    assert "calibrate: ranges" not in again.err
    assert "calibrate: histograms: continues after" in again.out
    assert names(folder) == ["cache", "many.npz", "out"]
    assert names(folder / "out") == ["manifest.json", "model.onnx", "plan.json", "report.json"]


def test_kill_leaves_no_bundle_and_the_next_build_takes_over(folder: Path) -> None:
    assert stop_in_histograms(folder, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (folder / "out").exists()
    assert any(name.startswith(".out.partial-") for name in names(folder))

    again = process.run(folder, *BUILD)
    assert again.code == 0, again.err
    assert "calibrate: ranges" not in again.err
    assert names(folder) == ["cache", "many.npz", "out"]
    assert "/out" in again.out
