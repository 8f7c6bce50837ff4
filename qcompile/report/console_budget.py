"""The accuracy budget as a person reads it in a terminal."""

from rich.console import Group, RenderableType

from qcompile.report import text
from qcompile.report.grid import lines, table
from qcompile.report.schema_budget import BudgetSection, DropRow

SHOWN = 20
"""Layers that are shown; report.json has all."""


def budget_lines(section: BudgetSection | None) -> RenderableType | None:
    """Return what ``--max-drop`` cost and which layers it keeps; None where it was not asked."""
    if section is None:
        return None
    after = f", now {_drop(section.after)}" if section.after else ""
    drop = f"{section.score}: drop {_drop(section.before)}{after}; limit {section.limit:g}"
    measured = (
        f"on {text.counted(section.samples, 'calibration sample')}, "
        f"{text.counted(section.plans, 'plan')} tried; [95 % interval]"
    )
    head = lines(drop, measured, section.note) if section.score else lines(section.note)
    if not section.layers or head is None:
        return head
    kept = (
        f"kept for it: {text.counted(len(section.layers), 'layer')}, "
        f"{text.percent(section.share)} of the arithmetic"
    )
    rows = [(text.percent(row.share), row.op, row.name) for row in section.layers[:SHOWN]]
    more = len(section.layers) - SHOWN
    rest = lines(f"and {more} more; report.json lists all") if more > 0 else None
    parts = [head, lines(kept), table(("work", "op", "name"), rows, left=2), rest]
    return Group(*(part for part in parts if part is not None))


def _drop(row: DropRow) -> str:
    value = "undefined" if row.value is None else text.number(row.value)
    ends = text.interval(row.interval)
    return f"{value} {ends}" if ends else value
