"""The answer of sensitivity as a person reads it in a terminal."""

from rich.console import RenderableType

from qcompile.report import text
from qcompile.report.console import notice_lines, paragraphs
from qcompile.report.grid import lines, table
from qcompile.report.sensitivity import EffectRow, SensitivityReport

SHOWN = 25
"""Layers that are shown; ``--json`` has all."""

REASONS = 6
"""Reasons for float that are shown, the most frequent first."""


def render_sensitivity(result: SensitivityReport) -> RenderableType:
    """Return the layers, the most sensitive first, and the totals."""
    about = f"{result.scheme} for {result.target} ({result.device}), each layer rounded alone"
    on = f"{text.counted(result.samples, 'sample')} of {result.data}"
    return paragraphs(
        [
            ("model", lines(result.model, about)),
            ("measured", lines(f"on {on}", _metric(result), result.timing)),
            ("layers", _layers(result)),
            ("", lines(_rest(result))),
            ("together", lines(*_totals(result))),
            ("in float", lines(*_in_float(result))),
            ("notices", notice_lines(result.notices)),
        ]
    )


def _metric(result: SensitivityReport) -> str:
    if not result.metric:
        return ""
    return f"{result.metric}: {text.number(result.float_score)} in float; ordered by its loss"


def _layers(result: SensitivityReport) -> RenderableType:
    """Return the table; a column that holds nothing is left out, and work beside times."""
    timed = result.conversion_ms is not None
    columns = {
        "loss": [text.number(row.loss, "+.3g") for row in result.layers],
        "SQNR dB": [_sqnr(row).removesuffix(f"{text.KEEP}dB") for row in result.layers],
        "noise %": [_percent(row.share) for row in result.layers],
        "float ms": [text.number(row.float_ms, ".3g") for row in result.layers],
        "in codes": [text.number(row.rounded_ms, ".3g") for row in result.layers],
        "work %": [_percent(None if timed else row.work) for row in result.layers],
        "op": [row.op for row in result.layers],
        "name": [row.name for row in result.layers],
    }
    known = {
        head: cells
        for head, cells in columns.items()
        if head in ("op", "name") or any(cell != text.UNKNOWN for cell in cells)
    }
    rows = list(zip(*known.values(), strict=True))
    return table(tuple(known), rows[:SHOWN], left=1)


def _sqnr(row: EffectRow) -> str:
    if row.broken:
        return "broken"
    return "no error" if row.sqnr_db is None else f"{row.sqnr_db:.1f}{text.KEEP}dB"


def _percent(share: float | None) -> str:
    return text.number(None if share is None else 100 * share, ".1f")


def _rest(result: SensitivityReport) -> str:
    rest = result.layers[SHOWN:]
    if not rest:
        return ""
    share = sum(row.share or 0.0 for row in rest)
    return f"and {len(rest):,} more, with {text.percent(share)} of the noise; --json lists all"


def _totals(result: SensitivityReport) -> list[str]:
    count = text.counted(len(result.layers), "layer")
    together, summed = _sqnr(result.together), _sqnr(result.summed)
    rows = [f"all {count} rounded: {together}; the sum of what each does alone: {summed}"]
    if result.metric:
        rows.append(
            f"loss of {result.metric}: {text.number(result.together.loss, '+.4g')} together, "
            f"{text.number(result.summed.loss, '+.4g')} summed"
        )
    if result.conversion_ms is not None:
        rows.append(
            f"kernels of these layers: {text.milliseconds(result.together.float_ms)} in float, "
            f"{text.milliseconds(result.together.rounded_ms)} in {result.scheme}; conversions "
            f"{text.milliseconds(result.conversion_ms)}"
        )
    return rows


def _in_float(result: SensitivityReport) -> list[str]:
    """Return what is not ranked, and why."""
    order = sorted(result.in_float.items(), key=lambda item: (-item[1], item[0]))
    rows = [f"{text.counted(count, 'node')}: {reason}" for reason, count in order[:REASONS]]
    rest = sum(count for _, count in order[REASONS:])
    if rest:
        rows.append(f"{text.counted(rest, 'node')} for other reasons; --json lists them")
    if result.moved:
        rows.append(
            f"{text.counted(result.moved, 'node')} with codes: only move them, or vanish into the "
            "rounding before them"
        )
    return rows
