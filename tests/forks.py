"""A Python that has imported what is slow to import, and forks for each request.

A fork is a process of its own: it has its folder, its memory and its end, and a crash takes it
alone. Only the imports are shared.
"""

import atexit
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tests.assets import ROOT
from tests.garbage import keep_imports

Request = dict[str, Any]


class Server:
    """A process that runs ``python -m MODULE``, which calls ``serve``; it ends with this one."""

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._command = (sys.executable, "-m", module)
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        atexit.register(self._process.communicate)  # closes its input

    def run(self, request: Request) -> int:
        """Return the exit code of the fork that does what is asked; a signal's is negative."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the server has ended; {' '.join(self._command)} says why"
        return int(answer)


def serve(do: Callable[[Request], None]) -> None:
    """Fork for each request, a line of JSON on stdin, and do it; answer with the exit codes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    gc.collect()
    keep_imports()  # or the end of each fork would go through them
    for line in sys.stdin:
        child = os.fork()
        if not child:
            answers.close()
            _do_and_end(do, json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _do_and_end(do: Callable[[Request], None], request: Request) -> NoReturn:
    """End as Python does, but leave the modules: to tear them down is half of a short command."""
    code = 0
    try:
        do(request)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
