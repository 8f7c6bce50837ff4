"""Writes what a machine with TensorRT needs to build, run and judge an engine by itself.

Beside what ``device_files`` writes go ``build_engine.py`` with ``run_engine.py`` (copies of modules
of this package, which need tensorrt and numpy alone), ``build_engine.sh`` (trtexec) and
``build.json`` (what to build).
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from qcompile.emit.device_files import DeviceRequest, Runner, write_device_files
from qcompile.errors import RecipeError
from qcompile.progress import Progress
from qcompile.samples import Port, Samples
from qcompile.targets.profiles import Profile, check_profiles, shown

_LEVELS = {"ampere+": "ampere+", "same": "sameComputeCapability"}


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
class EngineRequest(DeviceRequest):
    """An engine to build elsewhere.

    Attributes:
        version: Major version of TensorRT.
        options: How to build.
    """

    scripts: ClassVar = ("build_engine.py", "run_engine.py")
    description: ClassVar = "build.json"

    version: int
    options: EngineOptions = EngineOptions()

    def own_fields(self) -> Mapping[str, object]:
        """Return version, profiles and options."""
        own = {"tensorrt": self.version, "profiles": dict(self.profiles)}
        return {**own, **asdict(self.options)}

    def shell_scripts(self) -> Mapping[str, str]:
        """Return the script of trtexec."""
        return {"build_engine.sh": trtexec_script(self)}


def write_engine_files(
    folder: Path, request: EngineRequest, samples: Samples, reference: Runner, progress: Progress
) -> None:
    """Do what ``write_device_files`` does; profiles of fixed inputs are ignored.

    Raises:
        RecipeError: A profile contradicts the model, or a dynamic input has none.
        DataError: A sample cannot be read.
        OutputError: The disk refuses.
    """
    request = replace(request, profiles=_dynamic_profiles(request.inputs, request.profiles))
    write_device_files(folder, request, samples, reference, progress)


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
        shapes = [f"{key}:{shown(p[index])}" for key, p in request.profiles.items()]
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
