"""Calibration with histograms over 256 samples: peak memory and time, each in a process alone."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tests.benchmarks import engines, suite
from tests.benchmarks.peers import Feeds, reader
from tests.benchmarks.table import Table

SAMPLES = 256
MODELS = ("resnet20_cifar10", "squeezenet10_dc_imagenet")
RUNS = ("ORT percentile", "ORT entropy", "qcompile percentile", "qcompile entropy", "qcompile auto")


def measure(folder: Path, names: Sequence[str] = MODELS) -> Table:
    """Calibrate with every tool and method; return the table."""
    table = Table(
        f"Calibration over {SAMPLES} samples",
        ["model", "tool and method", "peak MB", "seconds", "memory of ORT's", "time of ORT's"],
    )
    for name in names:
        data = engines.sample_folder(list(_samples(name)), folder / f"{name}-{SAMPLES}")
        found = {run: _child(run, suite.model_path(name), data) for run in RUNS}
        for run, (peak, seconds) in found.items():
            tool, method = run.split()
            peer = found[f"ORT {'percentile' if method == 'auto' else method}"]
            ratios = ("", "") if tool == "ORT" else (peak / peer[0], seconds / peer[1])
            shown = [f"{ratio:.2f}" if ratio else "" for ratio in ratios]
            table.add(name, run, f"{peak:.0f}", f"{seconds:.1f}", *shown)
    return table


def _samples(name: str) -> Iterator[Feeds]:
    """Yield calibration samples; once the real ones are used up, mirrored and moved ones."""
    real = suite.calibration(name)
    for index in range(SAMPLES):
        turn = index // len(real)
        feed = real[index % len(real)]
        yield {
            key: np.ascontiguousarray(np.roll(x[..., ::-1] if turn % 2 else x, 2 * turn, axis=-1))
            for key, x in feed.items()
        }


def _child(run: str, model: Path, data: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.benchmarks.calibration", run, str(model), str(data)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["peak"], answer["seconds"]


def _ort(method: str, model: Path, data: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    kind = {"percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}
    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder, "augmented.onnx"))
        calibrator = create_calibrator(
            str(model), augmented_model_path=augmented, calibrate_method=kind[method]
        )
        calibrator.collect_data(reader(_files(data)))
        calibrator.compute_data()


def _qcompile(method: str, model: Path, data: Path) -> None:
    from qcompile.commands import calibrate
    from qcompile.recipe import recipe_from

    recipe = recipe_from({"calibration": {"method": method}})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QCOMPILE_CACHE"] = folder
        # With evaluation data named, nothing is held back from the calibration.
        calibrate(model, data, evaluation=data, recipe=recipe)


def _files(data: Path) -> Iterator[Feeds]:
    for path in islice(sorted(data.glob("*.npz")), SAMPLES):
        with np.load(path, allow_pickle=False) as file:
            yield dict(file)


TOOLS: dict[str, Callable[[str, Path, Path], None]] = {"ORT": _ort, "qcompile": _qcompile}


def _main(run: str, model: str, data: str) -> None:
    tool, method = run.split()
    started = time.perf_counter()
    TOOLS[tool](method, Path(model), Path(data))
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text("ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": peak / 1024, "seconds": seconds}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
