"""Builds whose speed nobody judges time their engine for a moment only."""

from qcompile import proof


def time_briefly() -> None:
    """Let the builds of this process time so; an engine that seems slower is still timed again."""
    proof.JUDGED_SECONDS = proof.SHOWN_SECONDS = 0.1
