"""Asks TensorRT for RTX, in a process of its own, what it says of models."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.lint.cases import Case

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed (tensorrt_rtx_cu13_bindings and _libs)",
)


def asked(cases: list[Case], folder: Path) -> list[dict[str, str]]:
    """Return what the library says of each case."""
    requests = []
    for index, case in enumerate(cases):
        path = folder / f"{index}.onnx"
        ir.save(case.make(), path)
        setting = case.setting
        request = {"model": str(path), "sms": setting.sms, "profiles": dict(setting.profiles)}
        requests.append(json.dumps(request))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("oracle.py")],
        input="\n".join(requests),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    # The library prints on stdout, too.
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
