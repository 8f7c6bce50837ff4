"""The answer of check as a person reads it in a terminal."""

from collections.abc import Iterable, Mapping

from rich.console import RenderableType

from qcompile.report import text
from qcompile.report.console import notice_lines, paragraphs
from qcompile.report.grid import lines, table
from qcompile.report.results import CheckReport, FindingEntry, SeverityName

PLACES = 5
"""Places of one rule that are shown; ``--json`` has all."""

_KINDS: Mapping[SeverityName, tuple[str, str]] = {
    "error": ("error", "does not parse or build"),
    "float": ("float layer", "builds, but computes in float what was quantized"),
    "numerics": ("changed result", "builds, but computes something else"),
    "warning": ("warning", "may cost speed or accuracy"),
}


def render_check(result: CheckReport) -> RenderableType:
    """Return the findings, the gravest first, and their counts."""
    groups = [
        (f"{noun}s", _places(row for row in result.findings if row.severity == severity))
        for severity, (noun, _) in _KINDS.items()
    ]
    return paragraphs(
        [
            ("checked", lines(result.model)),
            ("for", lines(result.setting)),
            *groups,
            ("notices", notice_lines(result.notices)),
            ("found", lines(_summary(result))),
        ]
    )


def _places(found: Iterable[FindingEntry]) -> RenderableType | None:
    """Return the rows of one severity, a few for each rule, then how many more there are."""
    by_rule: dict[str, dict[tuple[str, str], None]] = {}
    for row in found:
        by_rule.setdefault(row.rule, {})[text.plain(row.where), text.plain(row.what)] = None
    rows = []
    for rule, places in by_rule.items():
        rows += [(rule, where, what) for where, what in list(places)[:PLACES]]
        more = len(places) - PLACES
        if more > 0:
            rows.append((rule, f"and {more} more", "--json lists all"))
    return table(("rule", "where", "what"), rows, left=3) if rows else None


def _summary(result: CheckReport) -> str:
    counted = [
        f"{text.counted(result.counts[severity], noun)} ({meaning})"
        for severity, (noun, meaning) in _KINDS.items()
        if result.counts[severity]
    ]
    return "; ".join(counted) or "nothing: no rule is broken"
