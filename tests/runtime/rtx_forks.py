"""Trial builds with TensorRT for RTX, many to a process: only the first pays for its start.

``qcompile.runtime.rtx`` starts a Python for each engine. Here one process loads the same code and
the library once: ``python -m tests.runtime.rtx_forks``.
"""

import functools
import json
import tempfile
from pathlib import Path

from qcompile.errors import EngineError, QcompileError
from qcompile.progress import Silent
from qcompile.runtime.rtx import RtxBuild, RtxRequest, _Heard
from tests.forks import Request, Server, serve


def built(request: RtxRequest) -> RtxBuild:
    """Build an engine; as ``qcompile.runtime.rtx.build``, but for what its own process is for."""
    with tempfile.NamedTemporaryFile() as events:
        code = _server().run({"request": request.to_json(), "events": events.name})
        heard = _Heard()
        for event in events:
            heard.take(json.loads(event), Silent())
    if heard.error is not None:
        raise heard.error
    if code or not heard.done:
        raise EngineError(f"{request.model.name}: the builder ended with code {code}")
    layers = heard.layers(request.model.name)
    warnings = tuple(dict.fromkeys(heard.warnings))
    return RtxBuild(0.0, request.engine.stat().st_size, layers, warnings)


@functools.cache
def _server() -> Server:
    return Server("tests.runtime.rtx_forks")


def _build(asked: Request) -> None:
    from qcompile.runtime.rtx_child import Events, build

    with Path(asked["events"]).open("wb") as stream:
        events = Events(stream)
        try:
            build(RtxRequest.from_json(asked["request"]), events)
            events.send(done=True)
        except QcompileError as error:
            events.send(error=type(error).__name__, message=str(error))


if __name__ == "__main__":
    from qcompile.runtime.rtx_library import library

    library()
    serve(_build)
