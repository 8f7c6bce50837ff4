"""Finds the library of TensorRT for RTX, and what it can build for."""

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from qcompile.errors import RuntimeMissingError

_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
"""The frontend and what it stands for; wheels of either may be all there is."""
_DISTRIBUTIONS = ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings", "tensorrt_rtx")


def is_installed() -> str | None:
    """Return the version of TensorRT for RTX that is installed, or None."""
    if not any(importlib.util.find_spec(module) for module in _MODULES):
        return None
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return str(library().__version__)


def library() -> ModuleType:
    """Return the library's Python module, loaded.

    Raises:
        RuntimeMissingError: It is not installed, or its shared libraries cannot be loaded.
    """
    problem: Exception | None = None
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # noqa: BLE001 (ctypes and the frontend raise what they like)
            problem = error
    if problem is not None:
        raise RuntimeMissingError(
            f"TensorRT for RTX cannot be loaded: {problem}; install it again: "
            "pip install 'qcompile[tensorrt-rtx]'"
        )
    raise RuntimeMissingError(
        "TensorRT for RTX is not installed: pip install 'qcompile[tensorrt-rtx]'"
    )


def known_sms() -> tuple[int, ...]:
    """Return the compute capabilities that the library builds for: 89 is 8.9.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    return sms_of(library())


def sms_of(trt: ModuleType) -> tuple[int, ...]:
    """Return the compute capabilities that a loaded library builds for, least first."""
    names = trt.ComputeCapability.__members__
    return tuple(sorted(int(name[2:]) for name in names if name.startswith("SM")))
