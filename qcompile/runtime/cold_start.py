"""How long a model takes to load in a process that has just begun.

Each run is a new process, so that nothing of ONNX Runtime is set up. The file's pages are in the
system's cache from the first run on, which is not counted: what is measured is parsing, rewriting
and packing, not the disk. Times are of this machine; what carries over to a phone is their ratio.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import EngineError
from qcompile.frozen import Frozen
from qcompile.runtime.ort import check_installed, replays, sentence

_CHILD = """
import json, sys, time
path, threads, replay, sys.path[:] = json.loads(sys.argv[1])
begun = time.perf_counter()
import numpy, onnxruntime
imported = time.perf_counter()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = threads
options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
options.add_session_config_entry("session.enable_saved_runtime_optimizations", replay)
options.add_session_config_entry("session.qdqisint8allowed", "1")
found = {"import": imported - begun}
ready = time.perf_counter()
try:
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found["load"] = time.perf_counter() - ready
except Exception as error:
    found = {"error": str(error)}
print(json.dumps(found))
"""
"""Needs onnxruntime alone, as an app does: importing qcompile takes longer than all the rest.

Int8 activations stay int8, as on the phone: on x86, ONNX Runtime would make uint8 of them first.
"""


class ColdStart(Frozen):
    """Times to load a model in a new process, its file in the system's cache.

    Attributes:
        median_ms: From the file's name to a session that is ready to run, in milliseconds.
        low_ms: The fastest run.
        high_ms: The slowest run.
        import_ms: Median time to import onnxruntime and NumPy, not part of the other times.
        runs: How many processes.
        threads: Threads of each session.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    import_ms: float
    runs: int
    threads: int


def cold_start(path: Path, threads: int = 1, *, runs: int) -> ColdStart:
    """Load a model in new processes, one after another.

    Args:
        path: An ``.onnx`` file, or an ``.ort`` file that qcompile wrote.
        threads: Threads of each session.
        runs: Processes that count; one more goes before them, to warm the file cache.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the model, or the process dies.
    """
    check_installed()
    replay = replays(path)
    found = [_loaded(path, threads, replay=replay) for _ in range(runs + 1)][1:]
    loads = np.array([times["load"] for times in found]) * 1e3
    return ColdStart(
        median_ms=float(np.median(loads)),
        low_ms=float(loads.min()),
        high_ms=float(loads.max()),
        import_ms=1e3 * float(np.median([times["import"] for times in found])),
        runs=runs,
        threads=threads,
    )


def _loaded(path: Path, threads: int, *, replay: bool) -> dict[str, Any]:
    """Return the seconds to import and to load, of one process."""
    # A -c program's first entry of sys.path is its working folder: the parent's list replaces it.
    arguments = json.dumps([str(path.resolve()), threads, str(int(replay)), sys.path])
    done = subprocess.run(  # noqa: S603 - our own interpreter, no shell
        [sys.executable, "-P", "-c", _CHILD, arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        why = f"signal {-done.returncode}" if done.returncode < 0 else last
        raise EngineError(f"{path.name}: the process that loads it ended: {why}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in found:
        raise EngineError(f"{path.name}: {sentence(RuntimeError(found['error']))}")
    return found
