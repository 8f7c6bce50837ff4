"""Remedies as a person reads them in a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType

from qcompile.report import text
from qcompile.report.grid import lines, table
from qcompile.report.schema_remedies import OutlierRow, RemedySection

SHOWN = 4
"""Layers with columns in float, and values with a Mul of their own, that are named."""

MORE = "and {} more; report.json lists all"


def remedy_lines(section: RemedySection | None) -> RenderableType | None:
    """Return what was tried and what was done; nothing where there was no need."""
    if section is None:
        return None
    parts = [
        lines(_trials(section), *_rescaled(section)),
        *_multiplied(section.multiplied),
        *_outliers(section.outliers),
        lines(*_rest(section)),
    ]
    found = [part for part in parts if part is not None]
    return Group(*found) if found else None


def _trials(section: RemedySection) -> str:
    """Return what all on codes made of the outputs, with one remedy more each time."""
    if not section.trials:
        return ""
    tried = [
        f"{trial.remedy or 'as it is'} {text.decibels(trial.sqnr_db)}"
        f"{'' if trial.kept or not trial.remedy else ' (left out)'}"
        for trial in section.trials
    ]
    return f"all on codes: {', '.join(tried)}"


def _rescaled(section: RemedySection) -> Iterator[str]:
    for remedy, count in section.rescaled.items():
        by = ""
        if remedy == "smoothquant" and section.strengths is not None:
            low, high = section.strengths
            by = f", strength {low:g}" + (f" to {high:g}" if high > low else "")
        yield f"{remedy}: {text.counted(count, 'value')} rescaled{by}"


def _multiplied(values: dict[str, str]) -> Iterator[RenderableType | None]:
    """Return the values that a Mul divides, which costs the engine time."""
    if not values:
        return
    yield lines(f"smoothquant: {len(values)} of them by a Mul of their own")
    rows = list(values.items())
    yield table(("value", "why no constant takes it"), rows[:SHOWN], left=2)
    yield lines(MORE.format(len(rows) - SHOWN) if len(rows) > SHOWN else "")


def _outliers(rows: tuple[OutlierRow, ...]) -> Iterator[RenderableType | None]:
    """Return the layers with columns in float, those with the most first."""
    if not rows:
        return
    work = [row.of_model for row in rows if row.of_model is not None]
    share = f", {text.percent(sum(work))} of the arithmetic" if work else ""
    yield lines(f"llm-int8: columns in float in {text.counted(len(rows), 'layer')}{share}")
    loudest = sorted(rows, key=lambda row: -len(row.channels or ()))[:SHOWN]
    cells = [(_columns(row), text.percent(row.share), row.node) for row in loudest]
    yield table(("columns", "its work", "layer"), cells, left=1)
    yield lines(MORE.format(len(rows) - SHOWN) if len(rows) > SHOWN else "")


def _columns(row: OutlierRow) -> str:
    if row.channels is None:
        return "found at run time"
    return f"{len(row.channels)} of {row.columns}"


def _rest(section: RemedySection) -> Iterator[str]:
    if section.shifted:
        yield f"absorb-bias: {text.counted(section.shifted, 'value')} shifted"
    for how, count in section.corrected.items():
        yield f"bias-correction, {how}: {text.counted(count, 'node')}"
    learned = section.learned
    if learned is not None:
        name = f"{learned.method}: " if learned.method else ""
        yield (
            f"{name}learned codes for {learned.weights} of {text.counted(learned.of, 'weight')}, "
            f"{learned.steps} steps, seed {learned.seed}"
        )
    for reason, count in section.left.items():
        yield f"left alone: {count}  {reason}"
    if section.moved is not None:
        yield f"the float outputs moved by {section.moved:.2g} (relative L2)"
