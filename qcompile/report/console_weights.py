"""Weights in few bits, as a person reads of them: formats, kernels, errors, the worst layers."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType

from qcompile.report import text
from qcompile.report.grid import lines, table
from qcompile.report.schema_results import WeightRow

WORST = 8
ALGORITHMS = ("rtn", "gptq", "awq", "awq+gptq", "adaround")
_ACTIVATIONS = {4: "int8 activations", 0: "float activations"}
_OPEN = (
    "what products compute with is up to the runtime: ONNX Runtime takes int8 activations unless "
    "its session option session.qdq_matmulnbits_accuracy_level is 1"
)


def weight_lines(weights: Sequence[WeightRow]) -> RenderableType | None:
    """Return what weights were made of and how well; None where there are none."""
    if not weights:
        return None
    levels = list(dict.fromkeys(row.accuracy_level for row in weights))
    judged = [row for row in weights if row.errors]
    summary = lines(
        text.listed(Counter(_format(row) for row in weights)),
        f"algorithm: {text.listed(Counter(row.algorithm for row in weights))}",
        *(_level([row for row in weights if row.accuracy_level == level]) for level in levels),
        _gain(judged),
        _inherited([row for row in weights if row.inherited]),
    )
    if not judged or summary is None:
        return summary
    return Group(summary, _worst(judged))


def _format(row: WeightRow) -> str:
    groups = f"groups of {row.group_size}" if row.group_size else "whole channels"
    return f"{row.bits} bits in {groups}{'' if row.symmetric else ', asymmetric'}:"


def _level(rows: Sequence[WeightRow]) -> str:
    """Say what kernels of one accuracy level compute with, and what that costs."""
    level = rows[0].accuracy_level
    if level is None:
        return _OPEN
    said = f"accuracy level {level} ({_ACTIVATIONS.get(level, 'see MatMulNBits')}): {len(rows)}"
    errors = [row.level_error for row in rows if row.level_error is not None]
    if not level or not errors:
        return said
    return f"{said}; adds {text.percent(max(errors))} to the output of a layer at most"


def _gain(judged: Sequence[WeightRow]) -> str:
    """Say how large errors are beside those of plain rounding."""
    if not judged:
        return ""
    errors = [row.errors.get(row.algorithm) or 0.0 for row in judged]
    plain = [row.errors.get("rtn") or 0.0 for row in judged]
    found, rounded = sum(errors) / len(judged), sum(plain) / len(judged)
    said = f"error of a layer's output on held-back samples: {text.percent(found)} on average"
    if not rounded or all(row.algorithm == "rtn" for row in judged):
        return said
    return f"{said}, {found / rounded:.2f} of plain rounding's {text.percent(rounded)}"


def _inherited(heirs: Sequence[WeightRow]) -> str:
    """Say what comes from earlier layers, and what weights make up for."""
    if not heirs:
        return ""
    found, left = (
        sum(error or 0.0 for error in errors) / len(heirs)
        for errors in ([row.inherited for row in heirs], [row.left for row in heirs])
    )
    moved = sum((row.left or 0.0) < (row.inherited or 0.0) for row in heirs)
    said = f"what comes in from earlier layers: {text.percent(found)} on average"
    return f"{said}, {text.percent(left)} with what weights make up for ({moved} of {len(heirs)})"


def _worst(judged: Sequence[WeightRow]) -> RenderableType:
    """Return the layers with the largest errors, under the average of each algorithm."""
    tried = [name for name in ALGORITHMS if any(name in row.errors for row in judged)]
    worst = sorted(judged, key=lambda row: -(row.errors.get(row.algorithm) or 0))[:WORST]
    rows = [
        (*(text.percent(row.errors.get(name)) for name in tried), row.algorithm, _place(row))
        for row in worst
    ]
    if len(judged) > 1:
        averages = (_average(judged, name) for name in tried)
        rows.insert(0, (*averages, "", f"average of {len(judged)}; the worst:"))
    return table((*tried, "taken", "weight"), rows, left=2)


def _place(row: WeightRow) -> str:
    """Return the weight, and its node where that says more: exporters number most weights."""
    return f"{row.name} ({row.node})" if row.node else row.name


def _average(judged: Sequence[WeightRow], algorithm: str) -> str:
    errors = [row.errors[algorithm] or 0.0 for row in judged if algorithm in row.errors]
    return text.percent(sum(errors) / len(errors))
