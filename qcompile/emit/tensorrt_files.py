"""Writes what a machine with TensorRT needs to build, run and judge an engine by itself.

Beside the model go ``build_engine.py`` with its helpers (copies of modules of this package, which
need tensorrt and numpy alone), ``build_engine.sh`` (trtexec), ``build.json`` (what to build) and
``samples.npz`` (inputs, and what the float model makes of them).
"""

import json
import shlex
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from qcompile.emit.engine_request import FORMAT
from qcompile.errors import OutputError, RecipeError
from qcompile.progress import Progress
from qcompile.recipe import Gates
from qcompile.samples import Array, Feeds, Port, Samples, content_order
from qcompile.targets.profiles import Profile, Shape, check_profiles

SCRIPTS = ("build_engine.py", "run_engine.py", "engine_figures.py", "engine_request.py")
MOST_SAMPLES = 256
MOST_BYTES = 1 << 25
"""Of ``samples.npz``: it is copied to small devices."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_LEVELS = {"ampere+": "ampere+", "same": "sameComputeCapability"}

Runner = Callable[[Feeds], dict[str, Array]]
"""Runs the float model once: feeds to output name to array."""


@dataclass(frozen=True)
class EngineOptions:
    """How TensorRT builds.

    Attributes:
        workspace_bytes: Most scratch memory of a kernel; None leaves TensorRT all there is.
        optimization_level: 0 to 5: time to build against speed of the engine.
        version_compatible: Later releases of the same major can load the engine.
        hardware_compatible: ``ampere+``: any GPU from compute capability 8.0 on; ``same``: any GPU
            of the same compute capability (TensorRT 10.9 or later); ``none``: this GPU.
        weight_streaming: Weights may stay in host memory while it runs.
        strip: Leave weights out of the engine; they are put back from the model.
        refit: Weights can be exchanged.
    """

    workspace_bytes: int | None = None
    optimization_level: int = 3
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere+", "same"] = "none"
    weight_streaming: bool = False
    strip: bool = False
    refit: bool = False


@dataclass(frozen=True)
class EngineRequest:
    """An engine to build elsewhere.

    Attributes:
        model: Name of the ONNX file, which is in the folder.
        inputs: The model's inputs.
        outputs: Names of its outputs.
        version: Major version of TensorRT.
        profiles: Of the dynamic inputs; others are ignored.
        options: How to build.
        gates: What the engine must reach; those that need labels or a timed float model are
            written down and named as not judged.
    """

    model: str
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    version: int
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    options: EngineOptions = EngineOptions()
    gates: Gates = field(default_factory=Gates)


def write_engine_files(
    folder: Path, request: EngineRequest, samples: Samples, reference: Runner, progress: Progress
) -> None:
    """Write everything but the model into a folder that exists.

    The same request and samples give the same bytes, whatever the order of the samples.

    Args:
        folder: The bundle, with the model in it.
        request: What to build.
        samples: To compare on; the first by content are taken, as many as fit.
        reference: The float model.
        progress: Told which samples were left out.

    Raises:
        RecipeError: A profile contradicts the model, or a dynamic input has none.
        DataError: A sample cannot be read.
        OutputError: The disk refuses.
    """
    request = replace(request, profiles=_dynamic_profiles(request.inputs, request.profiles))
    try:
        for name in SCRIPTS:
            content = Path(__file__).with_name(name).read_bytes()
            (folder / name).write_bytes(content)
        script = folder / "build_engine.sh"
        script.write_text(trtexec_script(request), "utf-8")
        script.chmod(0o755)
        count = write_samples(folder / "samples.npz", request, samples, reference, progress)
        (folder / "build.json").write_text(_description(request, count), "utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error


def _dynamic_profiles(
    inputs: tuple[Port, ...], profiles: Mapping[str, Profile]
) -> dict[str, Profile]:
    """Return the profiles of the inputs that need one, in the inputs' order.

    A shape that is not known may be a scalar's, to ONNX Runtime; the script finds out.
    """
    check_profiles(profiles, {port.name: port.shape for port in inputs})
    needed = {}
    for port in inputs:
        dynamic = port.shape is None or not all(isinstance(size, int) for size in port.shape)
        if dynamic and port.name in profiles and profiles[port.name].min:
            needed[port.name] = profiles[port.name]
        elif dynamic and port.shape is not None:
            raise RecipeError(
                f"input {port.name} has dynamic dimensions: give its shapes as "
                f"--shapes {port.name}:MIN,OPT,MAX"
            )
    return needed


def _inside(feeds: Feeds, profiles: Mapping[str, Profile]) -> bool:
    """Return whether an engine with these profiles takes the sample."""
    return all(
        len(feeds[name].shape) == len(profile.min)
        and all(
            least <= size <= most
            for least, size, most in zip(profile.min, feeds[name].shape, profile.max, strict=True)
        )
        for name, profile in profiles.items()
    )


def _description(request: EngineRequest, samples: int) -> str:
    gates = request.gates.model_dump(exclude_none=True, exclude={"allow_slower"})
    described = {
        "version": FORMAT,
        "model": request.model,
        "tensorrt": request.version,
        "profiles": dict(request.profiles),
        **asdict(request.options),
        "gates": gates,
        "samples": samples,
        "inputs": [port.name for port in request.inputs],
        "outputs": list(request.outputs),
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def trtexec_script(request: EngineRequest) -> str:
    """Return a shell script that builds the engine by trtexec of the wanted major version."""
    lines = [
        "#!/bin/sh",
        f"# Builds model.engine with trtexec of TensorRT {request.version}, on the GPU it is for.",
        "# No gate is judged: python3 build_engine.py builds it, runs samples.npz and judges.",
        "set -eu",
        'cd "$(dirname "$0")"',
    ]
    strange = [name for name in request.profiles if set(name) & {",", "'"}]
    if strange:
        message = f"error: trtexec cannot take the name {strange[0]!r}: run build_engine.py"
        return "\n".join([*lines, f"echo {shlex.quote(message)} >&2", "exit 2", ""])
    flags = " \\\n  ".join(shlex.quote(flag) for flag in _flags(request))
    lines += [
        "trtexec=${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}",
        'if [ ! -x "$trtexec" ]; then',
        '  echo "error: $trtexec is not there: set TRTEXEC to the path of trtexec" >&2',
        "  exit 2",
        "fi",
        f'"$trtexec" \\\n  {flags}',
        "mv .model.engine.partial model.engine",
        "",
    ]
    return "\n".join(lines)


def _flags(request: EngineRequest) -> Iterator[str]:
    options = request.options
    yield f"--onnx={request.model}"
    yield "--saveEngine=.model.engine.partial"
    if request.version < 11:
        yield "--stronglyTyped"  # 11 knows nothing else
    for index, name in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = [f"{key}:{_crossed(p[index])}" for key, p in request.profiles.items()]
        if shapes:
            yield f"--{name}={','.join(shapes)}"
    if options.workspace_bytes is not None:
        yield f"--memPoolSize=workspace:{options.workspace_bytes}B"
    yield f"--builderOptimizationLevel={options.optimization_level}"
    if options.version_compatible:
        yield "--versionCompatible"
    if options.hardware_compatible != "none":
        yield f"--hardwareCompatibilityLevel={_LEVELS[options.hardware_compatible]}"
    if options.weight_streaming:
        yield "--allowWeightStreaming"
    if options.strip:
        yield "--stripWeights"
    if options.refit:
        yield "--refit"
    yield "--timingCacheFile=timing.cache"
    yield "--profilingVerbosity=detailed"
    yield "--exportLayerInfo=layers.json"
    yield "--skipInference"


def _crossed(shape: Shape) -> str:
    return "x".join(map(str, shape))


class Ports(Protocol):
    """What of a request samples are written for."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The model's inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs."""

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """Shapes that the engine takes, of the inputs that have a profile."""


def write_samples(
    path: Path, request: Ports, samples: Samples, reference: Runner, progress: Progress
) -> int:
    """Write as many samples as fit, with the float model's outputs; return how many.

    Raises:
        DataError: A sample cannot be read.
        OSError: The disk refuses.
    """
    count = size = outside = 0
    large = False
    with zipfile.ZipFile(path, "w") as archive:
        for index in content_order(samples):
            feeds = samples[index]
            if not _inside(feeds, request.profiles):
                outside += 1
                continue
            arrays = dict(_arrays(count, request, feeds, reference(feeds)))
            size += sum(array.nbytes for array in arrays.values())
            large = size > MOST_BYTES
            if large:
                break
            for name, array in arrays.items():
                _write_array(archive, name, array)
            count += 1
            if count == MOST_SAMPLES:
                break
    if outside:
        progress.notice(f"{outside} sample(s) are outside the engine's shapes, not in {path.name}")
    if count + outside < len(samples):
        limit = f"{MOST_BYTES >> 20} MiB" if large else f"{MOST_SAMPLES} samples"
        progress.notice(f"{path.name} holds {count} of {len(samples)} samples: at most {limit}")
    if not count:
        progress.notice(f"{path.name} is empty: the engine will be built, but not compared")
    return count


def _arrays(
    index: int, request: Ports, feeds: Feeds, outputs: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a sample under the names by which ``run_engine.py`` finds them."""
    for number, port in enumerate(request.inputs):
        yield f"{index}.input.{number}", _plain(feeds[port.name])
    for number, name in enumerate(request.outputs):
        yield f"{index}.output.{number}", _plain(outputs[name])


def _plain(array: Array) -> Array:
    """Return an array of a type that numpy alone knows: bfloat16 and FP8 become float32."""
    known = array.dtype.kind in "biuf" and array.dtype.isbuiltin == 1
    return np.asarray(array if known else array.astype(np.float32), order="C")


def _write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    """Write one array of an ``.npz``; numpy's own writer would put the time in it."""
    entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
