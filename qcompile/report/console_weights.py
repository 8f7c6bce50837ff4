"""Weights in few bits, as a person reads of them: formats, algorithms, the worst layers."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType

from qcompile.report import text
from qcompile.report.grid import lines, table
from qcompile.report.schema import WeightRow

WORST = 8
ALGORITHMS = ("rtn", "gptq", "awq", "awq+gptq")


def weight_lines(weights: Sequence[WeightRow]) -> RenderableType | None:
    """Return what weights were made of and how well; None where there are none."""
    if not weights:
        return None
    judged = [row for row in weights if row.errors]
    summary = lines(
        text.listed(Counter(_format(row) for row in weights)),
        f"algorithm: {text.listed(Counter(row.algorithm for row in weights))}",
        f"accuracy level: {text.listed(Counter(str(row.accuracy_level) for row in weights))}",
        _gain(judged),
    )
    if not judged or summary is None:
        return summary
    tried = [name for name in ALGORITHMS if any(name in row.errors for row in judged)]
    worst = sorted(judged, key=lambda row: -(row.errors[row.algorithm] or 0))[:WORST]
    rows = [
        (*(_percent(row.errors.get(name)) for name in tried), row.algorithm, row.name)
        for row in worst
    ]
    header = (*tried, "taken", f"error of the layer's output ({len(judged)} in all)")
    return Group(summary, table(header, rows, left=2))


def _format(row: WeightRow) -> str:
    groups = f"groups of {row.group_size}" if row.group_size else "whole channels"
    return f"{row.bits} bits in {groups}{'' if row.symmetric else ', asymmetric'}:"


def _gain(judged: Sequence[WeightRow]) -> str:
    """Say how large errors are beside those of plain rounding, on average."""
    pairs = [(row.errors[row.algorithm] or 0, row.errors.get("rtn")) for row in judged]
    shares = [error / rtn for error, rtn in pairs if rtn]
    if not shares:
        return ""
    return f"errors on held-back samples: {sum(shares) / len(shares):.2f} of plain rounding's"


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.2f} %"
