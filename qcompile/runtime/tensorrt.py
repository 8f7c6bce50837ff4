"""TensorRT: what is installed, and building in a process of its own.

The builder is a large native library that may crash on a strange graph, and loading it takes
seconds. So this process never imports it: a child runs the bundle's ``build_engine.py``, the same
script that finishes a bundle on another machine, and what it leaves in ``result.json`` is read.
"""

import functools
import importlib.util
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from qcompile.errors import EngineError, RecipeError, RuntimeMissingError
from qcompile.frozen import Frozen
from qcompile.progress import Progress
from qcompile.runtime.layer_dump import EngineLayer

MAJORS = (10, 11)
STAGE = "build engine"
SCRIPT, RESULT = "build_engine.py", "result.json"

_NEWEST = 11
_PROGRESS = re.compile(r"build: (\d+) of (\d+)$")
_LAST_LINES = 5
_VERSION = "import tensorrt; print(tensorrt.__version__)"
_GPUS = (
    "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); count = ctypes.c_int(); "
    "cuda.cuInit(0); cuda.cuDeviceGetCount(ctypes.byref(count)); print(count.value)"
)


class EngineFile(Frozen):
    """The engine: its name in the folder, its size and the sha256 of its content."""

    name: str
    bytes: int
    sha256: str


class Gpu(Frozen):
    """A GPU: its name and compute capability, 87 for 8.7."""

    name: str
    sm: int


class EngineTiming(Frozen):
    """Median time of a run in milliseconds, over so many runs, at what shapes, and how."""

    median_ms: float
    runs: int
    shapes: dict[str, tuple[int, ...]]
    how: str


class PairTiming(Frozen):
    """Float model and engine timed in turn: milliseconds, ratio with its interval, pairs."""

    float_ms: float
    engine_ms: float
    ratio: float
    interval: tuple[float, float]
    pairs: int


class OutputFigures(Frozen):
    """How far an output is from the float model's: fields of ``compare.results.OutputError``."""

    name: str
    dtype: str
    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float | None
    relative_l2: float | None
    equal: float | None
    identical: bool
    broken: int
    mismatched: int
    note: str


class AgreementFigures(Frozen):
    """How often the engine decides as the float model does, 0 to 1, in so many decisions."""

    name: str
    output: str
    share: float
    count: int


class JudgedGate(Frozen):
    """A gate and what was measured: fields of ``compare.gates.GateResult``."""

    name: str
    wanted: float
    measured: float | None
    passed: bool
    note: str


class NodeError(Frozen):
    """What TensorRT says of a node that it refuses; the operator is empty where it does not say."""

    node: str
    operator: str
    message: str


class TrtBuild(Frozen):
    """What became of a build: the content of ``result.json``.

    Attributes:
        tensorrt: Its version.
        message: Why it was refused.
        errors: By node.
        seconds: Time to parse and build.
        device: Where it ran; None if it did not, and then nothing below is there but warnings.
        timing: None without samples, as are outputs and agreements.
        samples: That were run and compared.
        speed: None without samples, or without a float model to time the engine against.
        layers: Its kernels, with their types.
        not_judged: Gates that were asked for and take labels.
    """

    version: Literal[1]
    tensorrt: str
    status: Literal["built", "gate missed", "refused"]
    message: str = ""
    errors: tuple[NodeError, ...] = ()
    seconds: float | None = None
    engine: EngineFile | None = None
    warnings: tuple[str, ...] = ()
    device: Gpu | None = None
    samples: int = 0
    timing: EngineTiming | None = None
    speed: PairTiming | None = None
    outputs: tuple[OutputFigures, ...] = ()
    agreements: tuple[AgreementFigures, ...] = ()
    layers: tuple[EngineLayer, ...] = ()
    gates: tuple[JudgedGate, ...] = ()
    not_judged: tuple[str, ...] = ()


@functools.cache
def installed() -> str | None:
    """Return the version of TensorRT's Python part; None where it cannot be imported."""
    if importlib.util.find_spec("tensorrt") is None:
        return None
    return _answer(_VERSION)


@functools.cache
def has_gpu() -> bool:
    """Return whether CUDA's driver finds a GPU."""
    return (_answer(_GPUS) or "0") != "0"


def major_version(wanted: int | None = None) -> int:
    """Return the major version to build for: the one wanted, else the installed one, else 11.

    Raises:
        RecipeError: There is no rule book for it.
    """
    found = installed()
    version = wanted or (int(found.partition(".")[0]) if found else _NEWEST)
    if version not in MAJORS:
        origin = "--trt-version" if wanted else "the installed TensorRT"
        raise RecipeError(f"{origin} {version}: qcompile builds for {MAJORS[0]} and {MAJORS[1]}")
    return version


def build(
    folder: Path, progress: Progress, *, build_only: bool = False, against: Path | None = None
) -> TrtBuild:
    """Build, run and judge the engine of a bundle's folder, in a child process.

    Args:
        folder: With what ``emit.tensorrt_files`` writes, and the model.
        progress: Told how far the builder is, and what it warns of.
        build_only: Neither run nor judge.
        against: A float model to time the engine against; else the one of the bundle, if any.

    Returns:
        Also where a gate is missed (``status``): then the engine is ``model.engine.failed``.

    Raises:
        RuntimeMissingError: TensorRT is not installed.
        EngineError: TensorRT refuses the model (nodes are named), finds no GPU, or crashed.
    """
    if installed() is None:
        raise RuntimeMissingError("TensorRT is not installed: pip install 'qcompile[tensorrt]'")
    (folder / RESULT).unlink(missing_ok=True)
    arguments = [str(folder / SCRIPT), *(["--build-only"] if build_only else [])]
    arguments += ["--against", str(against)] if against else []
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with _child(arguments) as child:
        for line in child.stdout or ():
            if step := _PROGRESS.match(line.rstrip()):
                progress.step(STAGE, int(step[1]), int(step[2]))
            elif line.strip():
                last.append(line.strip())
        code = child.wait()
    if code not in {0, 2, 3}:
        raise EngineError(_crash(code, last))
    result = _read(folder / RESULT, last)
    if result.status == "refused":
        raise EngineError(_refusal(result))
    for warning in result.warnings:
        progress.notice(f"TensorRT warns: {warning}")
    return result


@contextmanager
def _child(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a Python process; whatever happens, it has ended afterwards."""
    with subprocess.Popen(  # noqa: S603 (our own interpreter and script)
        [sys.executable, "-u", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _read(path: Path, last: deque[str]) -> TrtBuild:
    try:
        return TrtBuild.model_validate_json(path.read_text("utf-8"))
    except OSError:
        message = f"the builder left no {path.name}: {last[-1] if last else 'and said nothing'}"
        raise EngineError(message) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise EngineError(f"{path}: {first['loc']}: {first['msg']}") from error


def _refusal(result: TrtBuild) -> str:
    """Return the message, with the nodes that are not in it."""
    more = [e.node for e in result.errors if e.node not in result.message]
    return result.message + (f"; also refused: {', '.join(more)}" if more else "")


def _crash(code: int, last: deque[str]) -> str:
    how = f"ended with code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        how = f"crashed ({name}: {signal.strsignal(-code)})"
        if name == "SIGKILL":
            how += ", perhaps for lack of memory"
    return f"TensorRT's builder {how}; the last it said: {' / '.join(last) or 'nothing'}"


def _answer(code: str) -> str | None:
    """Return what a line of Python prints; None where it fails."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    lines = done.stdout.split()
    return lines[-1] if done.returncode == 0 and lines else None
