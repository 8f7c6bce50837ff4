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
from collections.abc import Callable, Mapping
from typing import Any

from tests.assets import ROOT

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
    gc.freeze()  # or the end of each fork would go through all that was imported
    for line in sys.stdin:
        child = os.fork()
        if not child:
            answers.close()
            do(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
