"""Trial builds with TensorRT for RTX, many to a process: only the first pays for its start.

``qcompile.runtime.rtx`` starts a Python for each engine. Here one process loads the same code and
the library once, and forks for each request, so that a crash still takes one build alone.

Run as ``python -m tests.runtime.rtx_forks``: a request (JSON) and a file for its events a line.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from qcompile.errors import EngineError, QcompileError
from qcompile.progress import Silent
from qcompile.runtime.rtx import RtxBuild, RtxRequest, _Heard
from tests.assets import ROOT


def built(request: RtxRequest) -> RtxBuild:
    """Build an engine; as ``qcompile.runtime.rtx.build``, but for what its own process is for."""
    server = _server()
    with tempfile.NamedTemporaryFile() as events:
        line = json.dumps({"request": request.to_json(), "events": events.name})
        server.stdin.write(line + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        heard = _Heard()
        for event in events:
            heard.take(json.loads(event), Silent())
    if heard.error is not None:
        raise heard.error
    if code or not heard.built:
        raise EngineError(f"{request.model.name}: the builder ended with code {code}")
    layers = heard.layers(request.model.name)
    warnings = tuple(dict.fromkeys(heard.warnings))
    return RtxBuild(0.0, request.engine.stat().st_size, layers, warnings)


@functools.cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runtime.rtx_forks"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, **pipes)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    server.communicate()  # closes its input


def _serve() -> None:
    from qcompile.runtime.rtx_child import Events, build
    from qcompile.runtime.rtx_library import library

    library()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library prints on stdout
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            with Path(asked["events"]).open("wb") as stream:
                events = Events(stream)
                try:
                    build(RtxRequest.from_json(asked["request"]), events)
                except QcompileError as error:
                    events.send(error=type(error).__name__, message=str(error))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
