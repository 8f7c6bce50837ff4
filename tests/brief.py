"""Builds whose speed nobody judges time their engine for a moment only, and load it once."""

from qcompile import mobile, proof


def time_briefly() -> None:
    """Let the builds of this process time so; an engine that seems slower is still timed again."""
    proof.JUDGED_SECONDS = proof.SHOWN_SECONDS = 0.1
    mobile.LOADS = 1
