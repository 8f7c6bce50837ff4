"""Calibration with histograms over 256 samples: peak memory and time, each in a process alone.

The time is that of the whole process, the start of Python and all imports included. The tools run
in turns; of the rounds the shortest time and the lowest peak count.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks import engines, suite
from tests.benchmarks.peers import Feeds
from tests.benchmarks.table import Table

SAMPLES = 256
ROUNDS = 3
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
        rounds = [
            [_alone(run, suite.model_path(name), data) for run in RUNS] for _ in range(ROUNDS)
        ]
        best = np.min(rounds, axis=0)
        found = dict(zip(RUNS, best, strict=True))
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


def _alone(run: str, model: Path, data: Path) -> tuple[float, float]:
    """Return the peak memory in MB and the seconds of one process."""
    script = "tests.benchmarks.calibrate_once"
    command = [sys.executable, "-m", script, *run.split(), str(model), str(data)]
    # what is installed has its bytecode; a checkout has it after the first of the rounds
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    return json.loads(done.stdout.splitlines()[-1]), seconds
