"""ONNX Runtime on NVIDIA GPUs: how its sessions are made, and whether there can be one here."""

import importlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from qcompile.errors import EngineError
from qcompile.frozen import Frozen
from qcompile.recipe import TensorRT
from qcompile.runtime.provider import CPU, Provider
from qcompile.runtime.tensorrt import has_gpu
from qcompile.targets.profiles import Profile, shown

NAMES = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""Name of a device of the target to that of its provider."""

CACHE = "trt_cache"
"""Folder of engines and timings, in the bundle."""

EMBEDDED_BYTES = 1 << 30
"""An EPContext model of weights up to this size holds its engines; larger ones lie beside it."""

SCRIPT, RESULT = "run_session.py", "result.json"

_CHAIN = (("CUDAExecutionProvider", {}), *CPU.chain)


class RunTime(Frozen):
    """Median time of a run in milliseconds, over so many runs, at what shapes, and how."""

    median_ms: float
    runs: int
    shapes: dict[str, tuple[int, ...]]
    how: str


class Ran(Frozen):
    """What the bundle's script found besides figures and gates, which are judged here again.

    Attributes:
        onnxruntime: Its version.
        provider: Who was meant to run the model.
        load_seconds: Time to make the session, engines included where there were none.
        nodes: Provider to the number of nodes that it ran.
        elsewhere: Provider and operator to the number of nodes that others ran.
        timing: None without samples.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    onnxruntime: str
    provider: str
    load_seconds: float
    nodes: dict[str, int]
    elsewhere: dict[str, int]
    timing: RunTime | None = None


def missing(device: str) -> str:
    """Return why no session with this provider can be made here; empty where one can."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return "no onnxruntime"
    if NAMES[device] not in onnxruntime.get_available_providers():
        return f"no {NAMES[device]} (it is in onnxruntime-gpu)"
    return "" if has_gpu() else "no NVIDIA GPU"


def cuda_provider() -> Provider:
    """Return the CUDA provider; what it has no kernels for runs on the CPU."""
    return Provider(_CHAIN)


def tensorrt_provider(
    options: TensorRT, profiles: Mapping[str, Profile], *, context_bytes: int | None = None
) -> Provider:
    """Return TensorRT's provider; what it does not parse runs on CUDA, then on the CPU.

    No precision flag is set: from TensorRT 9 on the network is then strongly typed, and the types
    are those of the graph (source of the provider: ``trt_fp16_enable`` and ``trt_int8_enable`` give
    a weakly typed network, which TensorRT 11 does not have). ONNX Runtime's own rewrites are off:
    they turn a float bias into int32 codes, which TensorRT's parser refuses.

    Args:
        options: How engines are built.
        profiles: Of all inputs with dynamic axes; engines are built anew for new shapes without.
        context_bytes: Bytes of the weights of the EPContext model to write; None for none.
    """
    chosen = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": CACHE,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": CACHE,
        "trt_builder_optimization_level": str(options.optimization_level),
        **_shapes(profiles),
    }
    if options.workspace_mib is not None:
        chosen["trt_max_workspace_size"] = str(options.workspace_mib << 20)
    if options.hardware_compatible == "ampere+":
        chosen["trt_engine_hw_compatible"] = "1"
    if options.strip:
        chosen["trt_weight_stripped_engine_enable"] = "1"
    entries = {}
    if context_bytes is not None:
        entries["ep.context_embed_mode"] = str(int(context_bytes <= EMBEDDED_BYTES))
    return Provider(((NAMES["tensorrt"], chosen), *_CHAIN), entries, rewrites=False)


def not_taken(options: TensorRT) -> list[str]:
    """Return what was asked for and TensorRT's provider has no option for."""
    asked = {
        "version_compatible": options.version_compatible,
        "weight_streaming": options.weight_streaming,
        "hardware_compatible = 'same'": options.hardware_compatible == "same",
    }
    return [name for name, wanted in asked.items() if wanted]


def run_bundle(folder: Path, *, on_cpu: bool = False) -> Ran:
    """Run the bundle's own script in a child process: engines are built there, and may crash it.

    Args:
        folder: With what ``emit.session_files`` writes, and the model.
        on_cpu: Run it on the CPU instead.

    Raises:
        EngineError: The script refuses, or crashed. A missed gate is no error here.
    """
    command = [sys.executable, str(folder / SCRIPT), *(["--cpu"] if on_cpu else [])]
    (folder / RESULT).unlink(missing_ok=True)
    done = subprocess.run(  # noqa: S603 (our own interpreter and script)
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    said = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    last = said[-1].removeprefix("error: ") if said else "it said nothing"
    if done.returncode == 2:
        raise EngineError(last)
    if done.returncode not in {0, 3}:
        raise EngineError(f"{SCRIPT} ended with code {done.returncode}: {last}")
    return _read(folder / RESULT)


def _read(path: Path) -> Ran:
    try:
        return Ran.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise EngineError(f"{path.name} cannot be read: {error}") from error


def in_folder(provider: Provider, folder: Path) -> Provider:
    """Return the provider with its relative paths in a folder."""

    def placed(options: Mapping[str, str]) -> dict[str, str]:
        return {k: str(folder / v) if k.endswith("_path") else v for k, v in options.items()}

    return replace(provider, chain=tuple((name, placed(o)) for name, o in provider.chain))


def _shapes(profiles: Mapping[str, Profile]) -> dict[str, str]:
    """Return the options on shapes; they cannot say names with a comma or a colon in them."""
    if not profiles or any(set(name) & set(",:") for name in profiles):
        return {}
    return {
        f"trt_profile_{kind}_shapes": ",".join(
            f"{name}:{shown(profile[index])}" for name, profile in profiles.items()
        )
        for index, kind in enumerate(("min", "opt", "max"))
    }
