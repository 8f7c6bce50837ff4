"""Accuracy of float, peers and qcompile on the real models, against what issue 2 asks for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks import engines, scoring, suite
from tests.benchmarks.scoring import Measured
from tests.benchmarks.table import Table

SPEECH = "silero_vad_16k"


def measure(folder: Path, names: Sequence[str]) -> Table:
    """Build and score all engines of the named models; return the table."""
    table = Table(
        "Accuracy in ONNX Runtime",
        ["model", *engines.NAMES, "want", "", "qcompile - best peer (95 %)"],
    )
    for name in names:
        goal = suite.GOALS[name]
        built = engines.build_all(
            suite.model_path(name), suite.calibration(name), folder, transformer=goal.transformer
        )
        scores = {engine: scoring.measure(name, path) for engine, path in built.items()}
        cells = [_cell(name, scores.get(engine), scores["FP"]) for engine in engines.NAMES]
        table.add(name, *cells, _want(name), _verdict(name, scores), _against_best(name, scores))
    return table


def _cell(name: str, measured: Measured | None, reference: Measured) -> str:
    if measured is None:
        return "fails"
    if name != SPEECH:
        return f"{measured.value:.4g}"
    shares = (_speech_fraction(measured), measured.value, _moved(measured, reference))
    return " / ".join(f"{share:.3f}" for share in shares)


def _want(name: str) -> str:
    goal = suite.GOALS[name]
    if name == SPEECH:
        return f"fraction and mean within .005, frames moved <= {goal.want}"
    return f"{'<=' if goal.lower_is_better else '>='} {goal.want}"


def _verdict(name: str, scores: dict[str, Measured]) -> str:
    ours, goal = scores.get("qcompile"), suite.GOALS[name]
    if ours is None:
        return "-"
    if name == SPEECH:
        reference = scores["FP"]
        fraction = abs(_speech_fraction(ours) - _speech_fraction(reference))
        close = max(fraction, abs(ours.value - reference.value)) <= 0.005
        reached = close and _moved(ours, reference) <= goal.want
    else:
        reached = (ours.value <= goal.want) if goal.lower_is_better else ours.value >= goal.want
    return "pass" if reached else "**miss**"


def _against_best(name: str, scores: dict[str, Measured]) -> str:
    peers = {k: v for k, v in scores.items() if k not in ("FP", "qcompile")}
    if "qcompile" not in scores or not peers or name == SPEECH:
        return "-"
    choose = min if suite.GOALS[name].lower_is_better else max
    best = choose(peers, key=lambda engine: peers[engine].value)
    gap, half = scoring.difference(scores["qcompile"], peers[best])
    return f"{gap:+.3g} +- {half:.2g} ({best})"


def _speech_fraction(measured: Measured) -> float:
    return float((np.concatenate(measured.outputs)[:, 0] > 0.5).mean())


def _moved(measured: Measured, reference: Measured) -> float:
    a, b = np.concatenate(measured.outputs), np.concatenate(reference.outputs)
    return float(np.abs(a[:, 0] - b[:, 0]).mean())
