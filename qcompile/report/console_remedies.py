"""Remedies as a person reads them in a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType

from qcompile.report import text
from qcompile.report.grid import lines
from qcompile.report.schema_remedies import OutlierRow, RemedySection

SHOWN = 4
"""Layers with columns in float that are named."""


def remedy_lines(section: RemedySection | None) -> RenderableType | None:
    """Return what was tried and what was done; nothing where there was no need."""
    if section is None:
        return None
    return lines(_trials(section), *_done(section), *_outliers(section.outliers))


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


def _done(section: RemedySection) -> Iterator[str]:
    for remedy, count in section.rescaled.items():
        by = ""
        if remedy == "smoothquant" and section.strengths is not None:
            low, high = section.strengths
            by = f", strength {low:g}" + (f" to {high:g}" if high > low else "")
        yield f"{remedy}: {text.counted(count, 'value')} rescaled{by}"
    if section.shifted:
        yield f"absorb-bias: {text.counted(section.shifted, 'value')} shifted"
    if section.corrected:
        yield f"bias-correction: {text.counted(section.corrected, 'node')}"
    for reason, count in section.left.items():
        yield f"left alone: {count}  {reason}"
    if section.moved is not None:
        yield f"the float outputs moved by {section.moved:.2g} (relative L2)"


def _outliers(rows: tuple[OutlierRow, ...]) -> Iterator[str]:
    """Return the layers with columns in float, those with the most first."""
    if not rows:
        return
    yield f"llm-int8: columns in float in {text.counted(len(rows), 'layer')}"
    for row in sorted(rows, key=lambda row: -(row.channels or 0))[:SHOWN]:
        count = "found at run time" if row.channels is None else f"{row.channels} of {row.columns}"
        share = "" if row.share is None else f", {text.percent(row.share)} of its arithmetic"
        yield f"  {row.node}: {count}{share}"
    if len(rows) > SHOWN:
        yield f"  and {text.counted(len(rows) - SHOWN, 'layer')} more: see report.json"
