"""Speed of float, peers and qcompile: interleaved in one process, one thread."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import engines, models, suite
from tests.benchmarks.peers import Feeds
from tests.benchmarks.table import Table

SECONDS = 12.0
ROUNDS = (9, 200)
REACHABLE = {"resnet50": 3.2, "mobilenetv2": 1.85, "bert_base": 2.7}
"""facts/ort.md, section 0, on an Intel core with AVX512-VNNI."""


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds, and how many times as fast as float with its 95 % interval."""

    milliseconds: float
    speedup: float
    low: float
    high: float


def interleaved(paths: dict[str, Path], feed: Feeds, seconds: float = SECONDS) -> dict[str, Timing]:
    """Time all models in turn, so that a slow moment hits all alike.

    Each round has an order of its own: a small model pays for what the one before it left in the
    caches. The interval of the speed-up is that of the median ratio within a round (order
    statistics, binomial; Conover 1999, section 3.2).
    """
    sessions = {name: _session(path) for name, path in paths.items()}
    for session in sessions.values():
        session.run(None, feed)
    rounds: list[list[float]] = []
    names, order = np.array(list(sessions)), np.random.default_rng(0)
    started = time.perf_counter()
    while len(rounds) < ROUNDS[0] or (
        time.perf_counter() - started < seconds and len(rounds) < ROUNDS[1]
    ):
        turns = order.permutation(len(names))
        taken = {name: _once(sessions[name], feed) for name in names[turns]}
        rounds.append([taken[name] for name in names])
    times = np.array(rounds)
    ratios = np.sort(times[:, :1] / times, axis=0)
    n = len(ratios)
    rank = max(0, int(n / 2 - 0.98 * np.sqrt(n)))
    return {
        name: Timing(
            milliseconds=1e3 * float(np.median(times[:, i])),
            speedup=float(np.median(ratios[:, i])),
            low=float(ratios[rank, i]),
            high=float(ratios[n - 1 - rank, i]),
        )
        for i, name in enumerate(sessions)
    }


def measure(folder: Path, names: Sequence[str]) -> Table:
    """Build and time all engines of the named models; return the table."""
    table = Table(
        "Speed, one thread, batch 1: times as fast as float (95 % interval)",
        ["model", "FP ms", *engines.NAMES[1:], "want", ""],
    )
    for name in names:
        timings = interleaved(*_case(name, folder))
        best = max(
            (t.speedup for k, t in timings.items() if k not in ("FP", "qcompile")), default=0
        )
        want = max(best, REACHABLE.get(name, 0))
        ours = timings.get("qcompile")
        cells = [_cell(timings.get(engine)) for engine in engines.NAMES[1:]]
        verdict = "-" if ours is None else "pass" if ours.high >= want else "**miss**"
        table.add(name, f"{timings['FP'].milliseconds:.3g}", *cells, f"{want:.2f}x", verdict)
    return table


def _case(name: str, folder: Path) -> tuple[dict[str, Path], Feeds]:
    if name in models.SYNTHETIC:
        model, feeds = models.written(name, folder), models.SYNTHETIC[name][1](16)
        transformer = name == "bert_base"
    else:
        model, feeds = suite.model_path(name), list(suite.calibration(name))
        transformer = suite.GOALS[name].transformer
    return engines.build_all(model, feeds, folder, transformer=transformer), feeds[0]


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _once(session: Any, feed: Feeds) -> float:
    started = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - started


def _cell(timing: Timing | None) -> str:
    if timing is None:
        return "fails"
    return f"{timing.speedup:.2f}x ({timing.low:.2f} to {timing.high:.2f})"
