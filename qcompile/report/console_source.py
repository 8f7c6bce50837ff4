"""The grids of a quantized source as a person reads them in a terminal."""

from rich.console import RenderableType

from qcompile.report import text
from qcompile.report.grid import lines
from qcompile.report.schema_source import GridChange, SourceGrids


def source_lines(source: SourceGrids | None) -> RenderableType | None:
    """Return what was kept of a model that is quantized already; nothing for another."""
    if source is None:
        return None
    more = [
        f"{source.calibrated} without a grid there calibrated" if source.calibrated else "",
        f"{source.dropped} roundings of activations left out" if source.dropped else "",
    ]
    return lines(
        f"quantized already: {text.counted(source.activations, 'activation')} and "
        f"{text.counted(source.weights, 'weight')} have grids; {source.kept} kept as they are",
        *(_change(change) for change in source.changes),
        "; ".join(filter(None, more)),
        "the engine is compared with that model as it is written; the float model below is the "
        "graph of its codes, without roundings",
    )


def _change(change: GridChange) -> str:
    steps = ""
    if change.steps is not None:
        low, high = (f"{step:.3g}" for step in change.steps)
        span = low if low == high else f"{low} to {high}"
        steps = "" if span == "1" else f"; steps {span} times as large"
    return f"re-targeted {len(change.tensors)}: {change.what}{steps}"
