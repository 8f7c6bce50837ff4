"""``qcompile doctor``: what this machine has and what can be built on it."""

import os
from dataclasses import asdict

from qcompile.bundle import versions
from qcompile.calibrate.cache import default_cache
from qcompile.calibrate.leftovers import leftovers
from qcompile.cli.options import Debug, Json
from qcompile.cli.screen import Screen
from qcompile.report.console_results import render_diagnosis
from qcompile.report.results import Diagnosis, RuntimeEntry, UnfinishedEntry
from qcompile.runtime.host import host_cpu, runtimes

BUILDERS = {
    "ort-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
}
"""Target to the runtimes that can build it; one of them is enough."""

EPILOG = """
Exit code 0, whatever is missing: the answer says what to install.
"""


def doctor(as_json: Json = False, _debug: Debug = False) -> None:
    """Show the instruction set, the runtimes and devices here, what can be built, the cache."""
    found = [RuntimeEntry(**asdict(runtime)) for runtime in runtimes()]
    ready = {entry.name for entry in found if entry.missing is None}
    cache = default_cache()
    unfinished = tuple(
        UnfinishedEntry(folder=one.folder.name, size=one.size, days=one.days)
        for one in leftovers(cache)
    )
    answer = Diagnosis(
        cpu=host_cpu(),
        cores=os.cpu_count() or 1,
        versions=versions(),
        runtimes=tuple(found),
        builds={target: _verdict(needed, ready) for target, needed in BUILDERS.items()},
        cache=str(cache),
        unfinished=unfinished,
    )
    Screen(quiet=False, as_json=as_json).answer(answer, render_diagnosis)


def _verdict(needed: tuple[str, ...], ready: set[str]) -> str:
    return "yes" if ready & set(needed) else f"no: needs {' or '.join(needed)}"
