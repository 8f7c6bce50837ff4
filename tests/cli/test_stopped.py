"""Builds that are stopped in the middle, as processes: nothing partial stays, work is reused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.nets import DIGITS, arrays

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 3000

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with so much data that the histograms take seconds."""
    images = arrays(DIGITS / "calib.npz")["image"]
    rng = np.random.default_rng(0)
    repeated = images[rng.integers(0, len(images), SAMPLES)]
    noisy = np.clip(repeated + rng.normal(0, 0.02, repeated.shape), 0, 1)
    np.savez(tmp_path / "many.npz", image=noisy.astype(np.float32))
    return tmp_path


def start(folder: Path) -> subprocess.Popen[str]:
    arguments = [
        *("build", str(DIGITS / "digits.onnx"), "--calib", "many.npz", "-o", "out"),
        *("--jobs", "1", "--allow-slower", "--no-keep-accuracy"),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "qcompile.cli.main", *arguments],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "QCOMPILE_CACHE": str(folder / "cache"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_in_histograms(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a build, send a signal when the ranges are kept; return exit code and stderr."""
    process = start(folder)
    deadline = time.monotonic() + 60
    while not kept(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert "calibrate: ranges" in err
    assert "calibrate: histograms" not in err
    return process.returncode, err


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

    again = start(folder)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "calibrate: ranges" not in err
    assert "calibrate: histograms: continues after" in out
    assert names(folder) == ["cache", "many.npz", "out"]
    assert names(folder / "out") == ["manifest.json", "model.onnx", "plan.json", "report.json"]


def test_kill_leaves_no_bundle_and_the_next_build_takes_over(folder: Path) -> None:
    assert stop_in_histograms(folder, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (folder / "out").exists()
    assert any(name.startswith(".out.partial-") for name in names(folder))

    again = start(folder)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "calibrate: ranges" not in err
    assert names(folder) == ["cache", "many.npz", "out"]
    assert "/out" in out
