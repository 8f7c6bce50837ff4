"""Building for other machines as a user does: what is refused, what the bundle and the text say."""

import json
from pathlib import Path

import onnx
import pytest

from qcompile.runtime.rtx_library import is_installed
from tests.cli.conftest import Run
from tests.cli.nets import CALIB, EVAL, MODEL
from tests.cli.process import ROOT, Ended, answer, files
from tests.tiny import products, write_net

needs_rtx = pytest.mark.skipif(
    is_installed() is None, reason="TensorRT for RTX is not installed: extra [tensorrt-rtx]"
)
DATA = ("--calib", CALIB)
SHAPES = "image:1x1x8x8,4x1x8x8,8x1x8x8"

WITHOUT = """
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.startswith("tensorrt"):
            return None
        return super().find_spec(name, path, target)


sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""A ``sitecustomize`` with which Python finds no TensorRT of any kind."""


def refused(done: Ended, message: str) -> None:
    """Assert that a command was refused with one line that holds the message."""
    assert (done.code, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "abacus"), "--target abacus: no such target; there are: ort-cpu, ort-mobile"),
        (("--target", "tensorrt", "--sm", "88"), "--sm 88: tensorrt has no such device; there are"),
        (
            ("--target", "tensorrt", "--fp8", "--sm", "86"),
            "has no scheme fp8 (FP8 needs compute capability 8.9 or later); it has: --int8,",
        ),
        (("--target", "onnx", "--int8"), "--target onnx has no scheme int8; it has: --int4"),
        (("--target", "tensorrt", "--fp4"), "--fp4: there is no FP4: its blocks of 16 have scales"),
        (("--target", "tensorrt", "--trt-version", "9"), "--trt-version"),
        (
            ("--target", "tensorrt", "--shapes", "image:1x1x8"),
            "--shapes image: 1 shapes, not three",
        ),
    ],
)
def test_refused_before_the_model_is_read(run: Run, arguments: tuple[str, ...], message: str):
    refused(run("build", "missing.onnx", *arguments), message)


def test_shapes_that_contradict_the_model(run: Run, tmp_path: Path):
    shapes = "image:1x3x8x8,4x3x8x8,8x3x8x8"
    done = run("build", MODEL, *DATA, "--target", "tensorrt", "--shapes", shapes, "-o", "out")
    refused(done, "dimension 1 of 1x3x8x8 is 3, but the model fixes it to 1 (batchx1x8x8)")
    assert "calibrate" not in done.err, "before the work begins"
    assert "out" not in files(tmp_path)


def test_shapes_that_nobody_knows(run: Run):
    done = run("build", MODEL, "--fp16", "--target", "tensorrt", "-o", "out")
    refused(done, "input image has dynamic axes: give --shapes NAME:MIN,BEST,MAX, or samples")


def test_tensorrt_is_built_elsewhere(run: Run, tmp_path: Path):
    gates = ("--min-sqnr", "20", "--max-drop", "0.05")
    done = run(
        *("build", MODEL, *DATA, "--eval", EVAL, "--target", "tensorrt", "--sm", "87"),
        *("--shapes", SHAPES, *gates, "-o", "out"),
    )
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())
    assert "engine TensorRT 11 engine: yet to be built" in shown
    assert "run python3 build_engine.py in this folder on the device" in shown
    assert "accuracy simulated: " in shown
    assert not [line for line in done.out.splitlines() if line.startswith("speed")]
    assert {"build.json", "build_engine.py", "build_engine.sh", "samples.npz"} <= set(
        files(tmp_path / "out")
    )
    request = json.loads((tmp_path / "out" / "build.json").read_text())
    assert (request["gates"]["min_sqnr"], request["gates"]["max_drop"]) == (20, 0.05)
    assert "8x1x8x8" in (tmp_path / "out" / "build_engine.sh").read_text()
    checked = run("check", "out/model.onnx", "--shapes", SHAPES, "--json").json()
    assert checked["counts"]["error"] == 0


def test_a_gate_that_the_simulated_model_misses(run: Run, tmp_path: Path):
    wished = ("--target", "tensorrt", "--min-sqnr", "90")
    done = run("build", MODEL, *DATA, *wished, "-o", "out", "--json")
    assert done.code == 3
    assert "--min-sqnr" in done.err
    report = done.json()
    assert report["status"] == "gate failed"
    assert report["delivery"]["state"] == "yet to be built"
    assert files(tmp_path / "out") == ["manifest.json", "plan.json", "report.json"]


@needs_rtx
def test_tensorrt_rtx_is_built_here(run: Run, tmp_path: Path):
    wished = ("--target", "tensorrt-rtx", "--sm", "86,89", "--half-ports")
    done = run("build", MODEL, *DATA, *wished, "-o", "out")
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())
    assert "engine TensorRT for RTX engine for compute capability 8.6, 8.9 model.engine" in shown
    assert "it cannot run on this machine" in shown
    assert "layers that compute as planned: int8 4 of 4" in shown
    assert "notices" in shown
    assert (tmp_path / "out" / "model.engine").stat().st_size > 0
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_without_tensorrt_for_rtx(run: Run, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    wished = ("--target", "tensorrt-rtx", "--sm", "86", "-o", "out")
    done = run("build", "missing.onnx", *wished, PYTHONPATH=f"{tmp_path}:{ROOT}")
    refused(done, "TensorRT for RTX is not installed: pip install 'qcompile[tensorrt-rtx]'")


@needs_rtx
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[odd] y = Det(x)", "odd: TensorRT's parser has no Det: "),
        (
            "[odd] y = MaxPool<kernel_shape = [3, 3], dilations = [2, 2]> (x)",
            "node 'odd' (MaxPool)",
        ),
    ],
    ids=["lint", "parser"],
)
def test_an_operator_that_tensorrt_refuses(run: Run, tmp_path: Path, body: str, message: str):
    write_net(tmp_path / "net.onnx", "float[1,3,8,8] x", body)
    wished = ("--fp16", "--target", "tensorrt-rtx", "--sm", "89", "-o", "out")
    refused(run("build", "net.onnx", *wished), message)
    assert "out" not in files(tmp_path)


def test_fp8_by_its_option(run: Run, tmp_path: Path):
    products(tmp_path)
    wished = ("--fp8", "--calib", "data", "--target", "tensorrt", "--sm", "89", "-o", "out", "-q")
    report = answer(run("build", "net.onnx", *wished, "--json"))
    assert report["plan"]["nodes"] == {"fp16": 1, "fp8": 2}
    assert report["simulated"]["outputs"][0]["sqnr_db"] > 20
