"""``qcompile doctor``: what this machine has and what can be built on it."""

import os
from dataclasses import asdict

from qcompile.bundle import versions
from qcompile.cli.options import Debug, Json
from qcompile.cli.screen import Screen
from qcompile.report.console_results import render_diagnosis
from qcompile.report.results import Diagnosis, RuntimeEntry
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
    """Show the instruction set, the runtimes and devices that are here, and what can be built."""
    found = [RuntimeEntry(**asdict(runtime)) for runtime in runtimes()]
    ready = {entry.name for entry in found if entry.missing is None}
    answer = Diagnosis(
        cpu=host_cpu(),
        cores=os.cpu_count() or 1,
        versions=versions(),
        runtimes=tuple(found),
        builds={target: _verdict(needed, ready) for target, needed in BUILDERS.items()},
    )
    Screen(quiet=False, as_json=as_json).answer(answer, render_diagnosis)


def _verdict(needed: tuple[str, ...], ready: set[str]) -> str:
    return "yes" if ready & set(needed) else f"no: needs {' or '.join(needed)}"
