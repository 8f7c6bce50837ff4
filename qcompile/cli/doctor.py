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
from qcompile.runtime import cuda
from qcompile.runtime.host import host_cpu, runtimes
from qcompile.targets import TARGETS

ONNXRUNTIME = {"onnxruntime", "onnxruntime-gpu"}
"""One of them makes and simulates the graph of every target."""
RTX = "tensorrt_rtx_cu13_libs"
ALL = "build, run and time"

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
        builds={name: _verdict(name, ready) for name in TARGETS},
        cache=str(cache),
        unfinished=unfinished,
    )
    Screen(quiet=False, as_json=as_json).answer(answer, render_diagnosis)


def _verdict(target: str, ready: set[str]) -> str:
    """Return what of a target this machine can do, and where the rest is done."""
    if not ready & ONNXRUNTIME:
        return f"no: needs {' or '.join(sorted(ONNXRUNTIME))}"
    ahead = f"build for sm {', '.join(TARGETS['tensorrt-rtx'].devices)}; run elsewhere"
    on_device = "build the graph; build_engine.py makes, runs and times the engine on the device"
    mobile = "build and run; times are those of ARM machines"
    special = {
        "ort-mobile": ALL if host_cpu() == "arm" else mobile,
        "ort-cuda": "; ".join(f"--ep {name}: {_here_or_there(name)}" for name in cuda.NAMES),
        "tensorrt": ALL if "tensorrt" in ready else on_device,
        "tensorrt-rtx": ahead if RTX in ready else f"no: needs {RTX}",
    }
    return special.get(target, ALL)


def _here_or_there(provider: str) -> str:
    """Return what can be done with a provider of a GPU."""
    why = cuda.missing(provider)
    return f"build; run_session.py runs it on the device, for here is {why}" if why else ALL
