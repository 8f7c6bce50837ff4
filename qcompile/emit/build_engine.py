"""Builds the TensorRT engine of a bundle of qcompile, runs it and judges its gates.

``python build_engine.py`` in the bundle's folder, on the machine that the engine is for. It needs
tensorrt, numpy and the CUDA runtime, nothing else; Python 3.8 or later. It reads ``build.json``,
the ONNX model and ``samples.npz``, and writes

- ``model.engine``: only if no gate is missed, else ``model.engine.failed``
- ``layers.json``: what TensorRT's EngineInspector says of each layer
- ``result.json``: figures, gates, types of the layers, errors by node
- ``timing.cache``: what TensorRT measured; the next build is faster by it

Exit codes: 0 the engine is there, 2 bad input or TensorRT refuses, 3 a gate is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import tensorrt as trt
except ImportError as error:
    sys.stderr.write(
        f"error: tensorrt cannot be imported ({error}): install TensorRT's Python part\n"
    )
    sys.exit(2)
if TYPE_CHECKING:
    import qcompile.emit.engine_figures as figures
    import qcompile.emit.engine_timing as timing
    import qcompile.emit.run_engine as running
    from qcompile.emit.engine_request import (
        FORMAT,
        Refused,
        concluded,
        fitting,
        node_errors,
        read_build,
        read_samples,
        say,
        write,
    )
else:
    sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out
    import engine_figures as figures
    import engine_timing as timing
    import run_engine as running
    from engine_request import (
        FORMAT,
        Refused,
        concluded,
        fitting,
        node_errors,
        read_build,
        read_samples,
        say,
        write,
    )

VERSION = tuple(int(part) for part in trt.__version__.split(".")[:2])
RESULT, LAYERS, CACHE = "result.json", "layers.json", "timing.cache"
_STEP_SECONDS = 2.0
"""Between two lines on phases."""


def main(arguments: list[str]) -> int:
    """Build, run, judge; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--build-only", action="store_true", help="do not run it, judge no gate")
    parser.add_argument("--engine", type=Path, help="where to write it; else FOLDER/model.engine")
    parser.add_argument("--against", type=_absolute, help="a float model to time it against")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C must end the builder's C++ loop, too
    result: dict[str, Any] = {"version": FORMAT, "tensorrt": trt.__version__, "status": "refused"}
    engine = options.engine or options.folder / "model.engine"
    wanted = {"build_only": options.build_only, "against": options.against}
    work = partial(make, options.folder, engine, result, **wanted)
    return concluded(options.folder / RESULT, result, work)


def _absolute(path: str) -> Path:
    return Path(path).resolve()


def make(
    folder: Path, engine: Path, result: dict[str, Any], *, build_only: bool, against: Path | None
) -> int:
    """Fill in the result and return the exit code.

    Raises:
        Refused: Bad input, no GPU, or TensorRT refuses.
    """
    request = read_build(folder / "build.json")
    if request["tensorrt"] != VERSION[0]:
        raise Refused(
            f"the model is made for TensorRT {request['tensorrt']}, here is {trt.__version__}: "
            f"make the bundle with --trt-version {VERSION[0]}"
        )
    if not engine.parent.is_dir():
        raise Refused(f"{engine.parent}: no such folder")
    cuda = None if build_only else running.Cuda()  # found out before the long part
    log = Log()
    start = time.perf_counter()
    plan = build(folder, request, log)
    result.update(
        status="built",
        seconds=round(time.perf_counter() - start, 3),
        engine={
            "name": engine.name,
            "bytes": plan.nbytes,
            "sha256": hashlib.sha256(plan).hexdigest(),
        },
        warnings=log.warnings,
    )
    say(f"built in {result['seconds']:.1f} s, {plan.nbytes / 1e6:.2f} MB")
    missed = False
    if cuda:
        result["device"] = cuda.device()
        model = against or request["float_model"]
        if model and request["samples"]:  # built while nothing else runs
            try:
                result["speed"] = race(folder, request, folder / model, plan, log, cuda)
            except Refused as error:
                if "min_speedup" in request["gates"]:
                    raise
                log.warnings.append(f"not timed against the float model: {error}")
        missed = prove(folder, request, plan, log, cuda, result)
    else:
        say("not run, no gate judged (--build-only)")
    place = engine.with_name(engine.name + ".failed") if missed else engine
    write(place, plan)
    result["engine"]["name"] = place.name
    result["status"] = "gate missed" if missed else "built"
    say(f"a gate is missed: the engine is {place}" if missed else f"the engine is {place}")
    return 3 if missed else 0


class Log(trt.ILogger):  # type: ignore[misc]
    """Passes on what TensorRT warns of; keeps warnings and errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take one message; each warning is said once."""
        if severity in {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR}:
            self.errors.append(msg)
            sys.stderr.write(f"TensorRT: {msg}\n")
        elif severity == trt.ILogger.WARNING and msg not in self.warnings:
            self.warnings.append(msg)
            sys.stderr.write(f"TensorRT warns: {msg}\n")

    def refusal(self, what: str) -> Refused:
        """Return an error with the last message, and with all that name a node."""
        last = self.errors[-1] if self.errors else "it gives no reason"
        return Refused(f"{what}: {last}", node_errors(self.errors))


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Prints how far the builder is: ``build: 2 of 6`` as a whole, and its phases now and then."""

    def __init__(self) -> None:
        trt.IProgressMonitor.__init__(self)
        self._whole: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._said = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Begin a phase; one without a parent is the whole."""
        if parent_phase:
            self._steps[phase_name] = num_steps
        else:
            self._whole[phase_name] = num_steps
            say(f"build: 0 of {num_steps}")

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Say how far a phase is; True goes on."""
        if phase_name in self._whole:
            say(f"build: {step + 1} of {self._whole[phase_name]}")
        elif time.monotonic() - self._said > _STEP_SECONDS:
            self._said = time.monotonic()
            say(f"build: {phase_name}: {step + 1} of {self._steps.get(phase_name, 0)}")
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Take note of nothing: TensorRT asks for it."""


def build(folder: Path, request: dict[str, Any], log: Log) -> memoryview:
    """Return the serialized engine, in TensorRT's own memory.

    Raises:
        Refused: TensorRT refuses the model, or finds no way to build it.
    """
    trt.init_libnvinfer_plugins(log, "")  # the parser makes NonZero and others of them
    try:
        builder: trt.Builder = trt.Builder(log)
    except TypeError:
        raise log.refusal("TensorRT finds no GPU that it can build for") from None
    network = parsed(builder, folder / request["model"], log)
    config = configured(builder, request)
    add_profile(builder, config, network, request["profiles"])
    cache = attach_cache(config, folder / CACHE)
    monitor = Monitor()
    config.progress_monitor = monitor
    plan: trt.IHostMemory = builder.build_serialized_network(network, config)
    if plan is None:
        raise log.refusal("TensorRT cannot build the engine")
    write(folder / CACHE, bytes(cache.serialize()))
    return memoryview(plan)


def parsed(builder: trt.Builder, model: Path, log: Log) -> trt.INetworkDefinition:
    """Return the network of an ONNX file; types are those of the graph, on 10 by a flag.

    Raises:
        Refused: The parser refuses; the errors name node and operator.
    """
    if not model.is_file():
        raise Refused(f"{model}: no such file")
    flags = 0
    if VERSION < (11, 0):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(flags)
    parser: trt.OnnxParser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(model)):
        return network
    errors = []
    for index in range(parser.num_errors):
        found: trt.ParserError = parser.get_error(index)
        node = found.node_name() or f"#{found.node()}"
        said = found.desc()
        if said in {"", "false"}:  # all that it says of an operator that it does not have
            said = "there is no such operator"
        errors.append({"node": node, "operator": found.node_operator(), "message": said})
    for each in errors:
        sys.stderr.write(f"node {each['node']!r} ({each['operator']}): {each['message']}\n")
    if not errors:
        raise log.refusal(f"{model.name}: TensorRT cannot parse it")
    first = errors[0]
    message = f"TensorRT refuses {first['operator']} node {first['node']!r}: {first['message']}"
    raise Refused(f"{model.name}: {message}", errors)


def configured(builder: trt.Builder, request: dict[str, Any]) -> trt.IBuilderConfig:
    """Return the builder's configuration as ``build.json`` asks for it.

    Raises:
        Refused: This TensorRT lacks something of it.
    """
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the EngineInspector needs it
    config.builder_optimization_level = request["optimization_level"]
    if request["workspace_bytes"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if request["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request["weight_streaming"]:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if request["strip"]:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if request["refit"]:
        config.set_flag(trt.BuilderFlag.REFIT)
    if request["hardware_compatible"] == "ampere+":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif request["hardware_compatible"] == "same":
        if VERSION < (10, 9):
            raise Refused("hardware_compatible: same needs TensorRT 10.9 or later")
        level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        config.hardware_compatibility_level = level
    return config


def add_profile(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    profiles: dict[str, list[list[int]]],
) -> None:
    """Give each dynamic input its least, best and largest shape.

    Raises:
        Refused: The shapes do not fit the model.
    """
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    names, dynamic = [], False
    for index in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(index)
        shape = tuple(tensor.shape)
        names.append(tensor.name)
        if tensor.is_shape_tensor:
            raise Refused(f"{tensor.name}: its values are shapes: make it a constant")
        if -1 in shape:
            dynamic = True
            profile.set_shape(tensor.name, *fitting(tensor.name, shape, profiles))
    unknown = sorted(set(profiles) - set(names))
    if unknown:
        raise Refused(f"profile for {unknown[0]!r}: no such input; there are: {', '.join(names)}")
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise Refused(f"TensorRT refuses the profiles {profiles}")


def attach_cache(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache:
    """Give the builder the timings of former builds; start afresh where they do not fit here."""
    old = path.read_bytes() if path.is_file() else b""
    cache: trt.ITimingCache = config.create_timing_cache(old)
    if old and (cache is None or not config.set_timing_cache(cache, ignore_mismatch=False)):
        say(f"{path.name} is of another machine or version: measured afresh")
        old = b""
        cache = config.create_timing_cache(b"")
    if not old:
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def race(
    folder: Path,
    request: dict[str, Any],
    model: Path,
    plan: memoryview,
    log: Log,
    cuda: running.Cuda,
) -> dict[str, Any]:
    """Build the float model, too, with the same options, and time both engines in turn.

    TensorRT computes float32 products in TF32 where the GPU has it; that is left as it is, for it
    is what the float model would be deployed as.

    Raises:
        Refused: The float model cannot be built, or an engine cannot be run.
    """
    wanted = {**request, "model": str(model.resolve()), "strip": False, "refit": False}
    start = time.perf_counter()
    floats = build(folder, wanted, log)
    say(f"built the float model, too, in {time.perf_counter() - start:.1f} s: TF32 is allowed")
    apart = running.Cuda()  # a session frees what its own Cuda has taken
    reference = running.Session(floats, wanted, model, log, apart)
    session = running.Session(plan, request, folder / request["model"], log, cuda)
    *_, (feeds, _) = read_samples(folder / "samples.npz", request)  # the one that `prove` times
    reference.prepare(feeds)
    session.prepare(feeds)
    speed = timing.timed_pair(reference.execute, session.execute)
    apart.free()
    return speed


def prove(
    folder: Path,
    request: dict[str, Any],
    plan: memoryview,
    log: Log,
    cuda: running.Cuda,
    result: dict[str, Any],
) -> bool:
    """Run the samples, time, inspect and judge the engine; return whether a gate is missed.

    Raises:
        Refused: The engine cannot be loaded or run.
    """
    session = running.Session(plan, request, folder / request["model"], log, cuda)
    missing = {*session.inputs} - {*request["inputs"]} | {*request["outputs"]} - {*session.outputs}
    if request["samples"] and missing:
        raise Refused(f"samples and model do not belong together: {min(missing)!r}")
    outputs = [figures.Output(name) for name in request["outputs"]]
    for feeds, expected in read_samples(folder / "samples.npz", request):
        session.prepare(feeds)
        session.execute()
        found = session.results()
        for output in outputs:
            output.add(expected[output.name], found[output.name], feeds)
    if request["samples"]:
        result["timing"] = session.timed()
    text = session.information()
    write(folder / LAYERS, text.encode())
    try:
        result["layers"] = figures.layers_of(text)
    except ValueError as error:
        result["layers"] = []
        result["warnings"] = [*log.warnings, str(error)]
        say(f"layers are not told: {error}")
    figures.add_figures(request, outputs, result)
    say(figures.told(request["samples"], result))
    return not all(gate["passed"] for gate in result["gates"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
