"""The process in which TensorRT for RTX builds one engine; ``qcompile.runtime.rtx`` starts it.

It reads an ``RtxRequest`` as JSON from standard input and tells what happens as one JSON object a
line on standard output: ``log`` and ``severity``, ``step``, ``error`` and ``message``, ``done``.
What the library itself prints goes to standard error.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from qcompile.errors import EngineError, OutputError, QcompileError, RecipeError
from qcompile.runtime.rtx import RtxRequest
from qcompile.runtime.rtx_errors import first_few, parser_error, sentence
from qcompile.runtime.rtx_library import library, sms_of


class Events:
    """Writes events for the parent; may be used from several threads."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.errors: list[str] = []

    def send(self, **event: object) -> None:
        """Write one event; end this process if nobody listens any more."""
        try:
            with self._lock:
                self._stream.write(json.dumps(event).encode() + b"\n")
                self._stream.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent was killed, and this may be a thread of the builder

    def log(self, severity: str, message: str) -> None:
        """Pass a message of the library on; keep errors."""
        if severity.endswith("ERROR"):
            self.errors.append(message)
        self.send(log=message, severity=severity)


def main() -> int:
    """Build what standard input asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    events = Events(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    try:
        build(RtxRequest.from_json(json.load(sys.stdin.buffer)), events)
        events.send(done=True)
    except QcompileError as error:
        events.send(error=type(error).__name__, message=str(error))
    return 0


def build(request: RtxRequest, events: Events) -> None:
    """Parse, build, write; only parse where no engine is wanted.

    Raises:
        RuntimeMissingError: The library cannot be loaded.
        RecipeError: It does not know a device, or shapes do not fit the model.
        EngineError: It refuses the model.
    """
    trt = library()
    logger = _logger(trt, events)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(request.model)):
        told = [parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(
            f"{request.model.name}: TensorRT for RTX cannot read it: {first_few(told)}"
        )
    if request.engine is None:
        return
    config = _config(trt, builder, request)
    if profile := _profile(builder, network, request):
        config.add_optimization_profile(profile)
    config.progress_monitor = _monitor(trt, events)
    if not _written(trt, builder, network, config, request.engine):
        told = [text for text in map(sentence, events.errors) if text]
        raise EngineError(
            f"{request.model.name}: TensorRT for RTX cannot build it: "
            f"{first_few(told) or 'it does not say why'}"
        )


def _config(trt: ModuleType, builder: Any, request: RtxRequest) -> Any:  # noqa: ANN401
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or layers have no types
    config.builder_optimization_level = request.optimization_level
    _check_sms(trt, request.sms)
    config.num_compute_capabilities = len(request.sms)
    for index, sm in enumerate(request.sms):
        config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{sm}"], index)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if request.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    return config


def _check_sms(trt: ModuleType, sms: tuple[int, ...]) -> None:
    known = sms_of(trt)
    for sm in sms:
        if sm not in known:
            raise RecipeError(
                f"TensorRT for RTX {trt.__version__} does not build for sm {sm}; "
                f"it knows {', '.join(map(str, known))}"
            )


def _profile(builder: Any, network: Any, request: RtxRequest) -> Any:  # noqa: ANN401
    """Return the profile of all inputs that are not fixed, or None where all are."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    names = [port.name for port in inputs]
    for name in request.profiles:
        if name not in names:
            raise RecipeError(
                f"{request.model.name} has no input {name!r} to give shapes for; "
                f"it has {', '.join(names)}"
            )
    profile = None
    for port in inputs:
        shape = tuple(port.shape)
        if port.is_shape_tensor:
            raise EngineError(
                f"{request.model.name}: input {port.name!r} is a shape for other tensors; "
                "TensorRT for RTX is not given such inputs here: make it a constant"
            )
        shapes = request.profiles.get(port.name)
        if shapes is not None:
            _check_shapes(port.name, shape, shapes)
        if -1 not in shape:
            continue
        if shapes is None:
            raise RecipeError(
                f"{request.model.name}: input {port.name!r} has shape {_text(shape)}: say which "
                f"sizes it will have, as in --shapes {port.name}:MIN,OPT,MAX"
            )
        profile = profile or builder.create_optimization_profile()
        profile.set_shape(port.name, *shapes)
    return profile


def _check_shapes(name: str, shape: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]) -> None:
    for given in shapes:
        if len(given) != len(shape):
            raise RecipeError(
                f"--shapes: {_text(given)} has {len(given)} dimensions, but input {name!r} "
                f"{_text(shape)} has {len(shape)}"
            )
        if any(size not in (-1, wanted) for size, wanted in zip(shape, given, strict=True)):
            raise RecipeError(f"--shapes: {_text(given)} contradicts input {name!r} {_text(shape)}")
    for least, best, most in zip(*shapes, strict=True):
        if not 0 <= least <= best <= most:
            raise RecipeError(
                f"--shapes: sizes of input {name!r} must grow from the least over the best to "
                f"the largest, but are {least}, {best}, {most}"
            )


def _text(shape: tuple[int, ...]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape) or "scalar"


def _written(trt: ModuleType, builder: Any, network: Any, config: Any, path: Path) -> bool:  # noqa: ANN401
    """Build, and write the engine piece by piece: it never lies in memory as a whole.

    Returns:
        False if the network cannot be built.

    Raises:
        OutputError: The file cannot be written.
    """
    problems: list[OSError] = []

    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                return file.write(data) if not problems else 0
            except OSError as error:  # the library would swallow it
                problems.append(error)
                return 0

    built = False
    try:
        with path.open("wb") as file:
            built = builder.build_serialized_network_to_stream(network, config, Writer())
    except OSError as error:
        problems.append(error)
    if problems:
        raise OutputError(f"{path.parent}: cannot write the engine: {problems[0].strerror}")
    return built


def _logger(trt: ModuleType, events: Events) -> Any:  # noqa: ANN401
    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            events.log(severity.name, message)

    return Log()


def _monitor(trt: ModuleType, events: Events) -> Any:  # noqa: ANN401
    """Return a monitor of the outermost phase; those below it are many and mostly instant."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.root, self.total = "", 0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.root, self.total = name, steps
                events.send(step=[0, steps])

        def step_complete(self, name: str, step: int) -> bool:
            if name == self.root:
                events.send(step=[step + 1, self.total])
            return True

        def phase_finish(self, name: str) -> None:
            if name == self.root:
                events.send(step=[self.total, self.total])

    return Monitor()
