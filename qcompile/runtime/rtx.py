"""TensorRT for RTX: builds an engine from an ONNX file; no GPU is needed.

The builder is a large native library that may crash on a strange graph. It runs in a child process
(``qcompile.runtime.rtx_child``), so that a crash is an error like any other. The engine cannot be
run or looked into without a GPU; which types each layer got is read from the builder's log.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

from qcompile import errors
from qcompile.errors import EngineError, ModelError, OutputError, QcompileError, RuntimeMissingError
from qcompile.progress import Progress, Silent
from qcompile.runtime.layer_dump import HEADING, EngineLayer, parse_layers
from qcompile.runtime.rtx_errors import sentence
from qcompile.runtime.rtx_library import is_installed

Shape = tuple[int, ...]

STAGE = "build engine"

INNER = "(foreignNode)"
"""Begins what the library warns of in nodes that it made itself."""
_TAIL_BYTES = 4096
_ROOT = Path(__file__).resolve().parents[2]
_START = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from qcompile.runtime.rtx_child import main; sys.exit(main())"
)


@dataclass(frozen=True)
class RtxRequest:
    """An engine to build.

    Attributes:
        model: ONNX file; external data is looked for beside it.
        engine: File to write; its folder exists. None: the model is parsed, and no more.
        sms: Compute capabilities to build for, 89 for 8.9. Empty: what the library takes by
            itself: Ampere and newer, as far as they have the model's types.
        profiles: Input name to its least, best and largest shape; needed for inputs with
            dimensions that are not fixed, checked for all others.
        workspace_bytes: Most scratch memory of a kernel; None for no limit.
        optimization_level: 0 to 5. Without a GPU nothing is timed: the layers stay the same.
        weight_streaming: Let weights stay in host memory at run time.
    """

    model: Path
    engine: Path | None
    sms: tuple[int, ...] = ()
    profiles: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    workspace_bytes: int | None = None
    optimization_level: int = 3
    weight_streaming: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        engine = None if self.engine is None else str(self.engine)
        return {**asdict(self), "model": str(self.model), "engine": engine}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the request of plain data."""
        profiles = {
            name: (tuple(least), tuple(best), tuple(most))
            for name, (least, best, most) in data["profiles"].items()
        }
        engine = None if data["engine"] is None else Path(data["engine"])
        paths = {"model": Path(data["model"]), "engine": engine}
        return cls(**{**data, **paths, "sms": tuple(data["sms"]), "profiles": profiles})


@dataclass(frozen=True)
class RtxBuild:
    """An engine that was built.

    Attributes:
        seconds: From start to the finished file.
        bytes: Size of the file.
        layers: Its kernels, in the order of execution.
        warnings: What the library warns of, once each.
    """

    seconds: float
    bytes: int
    layers: tuple[EngineLayer, ...]
    warnings: tuple[str, ...]


def build(request: RtxRequest, progress: Progress) -> RtxBuild:
    """Build an engine and write it; the file appears when it is complete.

    The same request gives the same bytes, with the same version of the library.

    Raises:
        RuntimeMissingError: TensorRT for RTX is not installed.
        ModelError: There is no such model file.
        OutputError: The engine cannot be written.
        RecipeError: A device that the library does not know, or shapes that do not fit the model.
        EngineError: The parser or the builder refuses the model (node and operator are named), or
            crashed.
    """
    engine = _checked(request)
    started = time.perf_counter()
    partial = engine.with_name(f".{engine.name}.partial-{os.getpid()}")
    try:
        heard = _in_child(request, partial, progress)
        layers = heard.layers(request.model.name)
        partial.replace(engine)
    finally:
        partial.unlink(missing_ok=True)
    return RtxBuild(
        seconds=time.perf_counter() - started,
        bytes=engine.stat().st_size,
        layers=layers,
        warnings=tuple(dict.fromkeys(heard.warnings)),
    )


def parse(model: Path) -> None:
    """Let the parser read a model; nothing is built.

    Raises:
        RuntimeMissingError: TensorRT for RTX is not installed.
        ModelError: There is no such file.
        EngineError: The parser refuses the model (node and operator are named), or crashed.
    """
    request = RtxRequest(model, engine=None)
    _checked(request)
    _in_child(request, None, Silent())


def _checked(request: RtxRequest) -> Path:
    """Return where the engine goes, or would if there were one."""
    if is_installed() is None:
        raise RuntimeMissingError(
            "TensorRT for RTX is not installed: pip install 'qcompile[tensorrt-rtx]'"
        )
    if not request.model.is_file():
        raise ModelError(f"{request.model}: no such file")
    engine = request.engine or request.model.with_suffix(".engine")
    if not engine.parent.is_dir():
        raise OutputError(f"{engine.parent}: no such folder")
    return engine


@dataclass
class _Heard:
    """What the child has told so far."""

    last: str = ""
    warnings: list[str] = field(default_factory=list)
    dumps: list[str] = field(default_factory=list)
    error: QcompileError | None = None
    done: bool = False

    def take(self, event: Mapping[str, Any], progress: Progress) -> None:
        if "log" in event:
            self._log(event["severity"], event["log"])
        elif "step" in event:
            progress.step(STAGE, *event["step"])
        elif "error" in event:
            self.error = getattr(errors, event["error"])(event["message"])
        elif "done" in event:
            self.done = True

    def _log(self, severity: str, message: str) -> None:
        if message.startswith(HEADING):
            self.dumps.append(message)
        elif message.strip():
            self.last = message.strip().splitlines()[0]
        if severity == "WARNING" and (warning := sentence(message)) and INNER not in warning:
            self.warnings.append(warning)

    def layers(self, model: str) -> tuple[EngineLayer, ...]:
        if not self.dumps:
            raise EngineError(
                f"{model}: the builder's log holds no list of layers, so what they compute in is "
                "not known"
            )
        return tuple(layer for dump in self.dumps for layer in parse_layers(dump))


def _in_child(request: RtxRequest, engine: Path | None, progress: Progress) -> _Heard:
    heard = _Heard()
    asked = replace(request, model=request.model.resolve(), engine=engine).to_json()
    with tempfile.TemporaryFile() as printed, _child(printed) as child:
        for line in _conversation(child, asked):
            heard.take(json.loads(line), progress)
        code = child.wait()
        if heard.error is not None:
            raise heard.error
        if code or not heard.done:
            printed.seek(max(0, printed.seek(0, os.SEEK_END) - _TAIL_BYTES))
            doing = f"{'built' if engine else 'parsed'} {request.model.name}"
            raise EngineError(_crash(doing, code, heard.last, printed.read()))
    return heard


def _conversation(child: subprocess.Popen[bytes], asked: Mapping[str, Any]) -> Iterator[bytes]:
    """Send the request; yield each line that comes back whole."""
    if child.stdin is None or child.stdout is None:
        raise EngineError("the builder's process has no pipes")
    with suppress(BrokenPipeError):  # it died at once: its exit code tells more
        child.stdin.write(json.dumps(asked).encode())
        child.stdin.close()
    for line in child.stdout:
        if line.endswith(b"\n"):  # else it died within it
            yield line


@contextmanager
def _child(printed: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the builder's process; whatever happens, it has ended afterwards."""
    command = [sys.executable, "-P", "-c", _START, str(_ROOT)]
    with subprocess.Popen(  # noqa: S603 (our own interpreter and code)
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _crash(doing: str, code: int, last: str, printed: bytes) -> str:
    """Return the message for a child that ended without a result."""
    if code < 0:
        name = signal.Signals(-code).name
        how = f"crashed ({name}: {signal.strsignal(-code)})"
        if name == "SIGKILL":
            how += ", perhaps for lack of memory,"
    else:
        how = f"ended with code {code}"
    told = [f"TensorRT for RTX {how} while it {doing}"]
    if last:
        told.append(f"the last its log says is {_short(last)!r}")
    if lines := printed.decode(errors="replace").strip().splitlines():
        told.append(f"it printed {_short(lines[-1])!r}")
    return "; ".join(told)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
