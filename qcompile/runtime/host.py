"""What this machine is: its instruction set, the installed runtimes, the devices."""

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from qcompile.recipe import Cpu

_CPUINFO = Path("/proc/cpuinfo")
_AHEAD = "builds ahead of time, needs no device"


@dataclass(frozen=True)
class RuntimeInfo:
    """A library that runs or builds engines.

    Attributes:
        name: Its name on PyPI.
        version: What is installed; None if nothing is.
        missing: Why it cannot be used and what to install; None where it can.
        providers: ONNX Runtime's execution providers.
        devices: Devices that it could use here.
    """

    name: str
    version: str | None
    missing: str | None = None
    providers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


def host_cpu() -> Cpu:
    """Return the instruction set of this host, as far as 8-bit kernels differ by it.

    ``vnni`` stands for AVX512-VNNI or AVX-VNNI (exact 32-bit sums), ``avx512`` and ``avx2`` for
    kernels whose 16-bit sums saturate. An x86 host that does not list its flags counts as avx2:
    what is built for it is right everywhere.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    return cpu_from_flags(_flags())


def cpu_from_flags(flags: frozenset[str]) -> Cpu:
    """Return the instruction set of an x86 CPU with these flags of ``/proc/cpuinfo``."""
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "vnni"
    return "avx512" if "avx512bw" in flags else "avx2"


def runtimes() -> list[RuntimeInfo]:
    """Return each library that qcompile knows to use, installed or not."""
    gpus = gpu_names()
    cpu = (_cpu_name(),)
    onnxruntime = [
        _runtime("onnxruntime", "onnxruntime", "qcompile[cpu]", devices=cpu),
        _runtime("onnxruntime-gpu", "onnxruntime", "qcompile[gpu]", devices=(*cpu, *gpus)),
    ]
    return [
        *onnxruntime,
        _runtime("tensorrt", "tensorrt", "qcompile[tensorrt]", devices=gpus, needs_gpu=True),
        _runtime(
            "tensorrt_rtx_cu13_libs",
            "tensorrt_rtx_bindings",
            "qcompile[tensorrt-rtx]",
            devices=(_AHEAD,),
        ),
        _runtime("torch", "torch", "qcompile[torch]", devices=(*cpu, *gpus)),
    ]


def gpu_names() -> tuple[str, ...]:
    """Return the NVIDIA GPUs that the driver lists; empty without a driver.

    Each by name, memory and compute capability; drivers from before 2021 do not tell the last.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    with_capability = _listed(tool, "name,memory.total,compute_cap")
    if with_capability is None:
        return _listed(tool, "name,memory.total") or ()
    parts = [line.rpartition(", ") for line in with_capability]
    return tuple(f"{name}, compute capability {capability}" for name, _, capability in parts)


def _listed(tool: str, fields: str) -> tuple[str, ...] | None:
    """Return the driver's answer, a line a GPU; None where it refuses."""
    query = [tool, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())


def _runtime(
    name: str, module: str, extra: str, *, devices: tuple[str, ...], needs_gpu: bool = False
) -> RuntimeInfo:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return RuntimeInfo(name, None, missing=f"not installed: pip install '{extra}'")
    if importlib.util.find_spec(module) is None:
        return RuntimeInfo(name, version, missing=f"damaged: there is no module {module}")
    if needs_gpu and not devices:
        return RuntimeInfo(name, version, missing="no NVIDIA GPU, or no driver for it")
    providers = _providers() if module == "onnxruntime" else ()
    return RuntimeInfo(name, version, providers=providers, devices=devices)


def _providers() -> tuple[str, ...]:
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _flags() -> frozenset[str]:
    return frozenset(_cpuinfo("flags").split())


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """Return the first entry of this name; empty on systems without ``/proc/cpuinfo``."""
    if not _CPUINFO.is_file():
        return ""
    for line in _CPUINFO.read_text("utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
