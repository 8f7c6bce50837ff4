"""``qcompile passes``: the graph rewrites, in order."""

from qcompile.cli.options import Debug, Json
from qcompile.cli.screen import Screen
from qcompile.report.console_results import render_passes
from qcompile.report.results import PassEntry, PassList

EPILOG = """
qcompile build --dump-passes DIR writes the graph as text after each of them.
"""


def passes(as_json: Json = False, _debug: Debug = False) -> None:
    """List the passes in the order in which they run, and how far each may move the outputs.

    exact: not at all. reassociates: by float rounding, at most 1e-5 in relative L2. lossy: this is
    where quantization happens.
    """
    from qcompile.passes import ALL

    entries = [
        PassEntry(
            name=step.name,
            effect=step.effect.name.lower(),
            summary=(step.__doc__ or "").partition("\n")[0],
            needs=tuple(sorted(fact.name for fact in step.needs)),
            gives=tuple(sorted(fact.name for fact in step.gives)),
        )
        for step in ALL
    ]
    Screen(quiet=False, as_json=as_json).answer(PassList(passes=tuple(entries)), render_passes)
