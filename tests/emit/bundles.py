"""Bundles for TensorRT on disk, and running their script as a user would."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import onnx
import pytest

from qcompile.emit.tensorrt_files import write_engine_files
from qcompile.progress import Silent
from qcompile.runtime import tensorrt
from tests.emit.nets import convolution, float_model, request, samples

STAND_IN = Path(__file__).parent / "stand_in"


def bundle(folder, *, operator="Relu", data=None, model=None, **fields):
    """Write a bundle of the int8 convolution into a new folder."""
    folder.mkdir(exist_ok=True)
    onnx.save(model or convolution(codes=True, operator=operator), folder / "model.onnx")
    session = float_model(folder)
    data = samples() if data is None else data
    write_engine_files(folder, request(session, **fields), data, session.run, Silent())
    return folder


def environment(**more):
    """Return an environment in which ``tensorrt`` and the CUDA runtime are the stand-ins."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    return {
        **os.environ,
        "PYTHONPATH": str(STAND_IN),
        "PYTHONWARNINGS": "ignore",  # RTX calls the timing cache deprecated
        **more,
    }


@cache
def cuda_stand_in(folder):
    """Compile the CUDA runtime that needs no GPU; return its folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of the CUDA runtime")
    library = folder / "libcudart.so.13"
    command = [compiler, "-shared", "-fPIC", "-o", library, STAND_IN / "cudart.c"]
    subprocess.run(command, check=True)
    return folder


def use_stand_ins(monkeypatch, folder):
    """Let this process and its children find the stand-ins of TensorRT and CUDA, and a GPU.

    The CUDA runtime is compiled into a folder that outlives the test.
    """
    for name, value in environment(LD_LIBRARY_PATH=str(cuda_stand_in(folder))).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(tensorrt, "_GPUS", "print(1)")
    tensorrt.installed.cache_clear()
    tensorrt.has_gpu.cache_clear()


def run(folder, *options, **env):
    """Run the bundle's script; return the process and ``result.json``."""
    done = subprocess.run(
        [sys.executable, folder / "build_engine.py", *options],
        env=environment(**env),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    path = folder / "result.json"
    return done, json.loads(path.read_text("utf-8")) if path.exists() else None
