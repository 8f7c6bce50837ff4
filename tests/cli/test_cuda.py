"""``--target ort-cuda`` as a user runs it, on a machine without a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from qcompile.runtime import cuda
from tests.cli.conftest import Run
from tests.cli.nets import CALIB, EVAL, MODEL, perceptron, write_data
from tests.lint.models import conv
from tests.lint.test_cuda import nbits

DATA = ("--calib", CALIB, "--eval", EVAL)
CUDA = ("--target", "ort-cuda")
no_gpu = pytest.mark.skipif(not cuda.missing("cuda"), reason="a GPU is here")


def script(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "run_session.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def initial_types(folder: Path) -> set[int]:
    model = onnx.load(folder / "model.onnx")
    return {tensor.data_type for tensor in model.graph.initializer}


@no_gpu
def test_half_precision_is_linted_and_simulated(run: Run, tmp_path: Path) -> None:
    done = run("build", MODEL, "--fp16", *DATA, *CUDA, "--min-sqnr", "40", "-o", "out", "--json")
    assert done.code == 0, done.err
    report: Any = done.json()
    delivery = report["delivery"]
    assert (delivery["state"], delivery["path"]) == ("built", "model.onnx")
    assert delivery["placed"]["CPU"] == 0
    assert {finding["rule"] for finding in delivery["findings"]} <= {"C11"}
    assert any("not run: no CUDAExecutionProvider" in note for note in report["notices"])
    assert "run_session.py" in delivery["notes"][0]
    assert report["simulated"]["outputs"][0]["sqnr_db"] > 40
    assert (report["engine"]["outputs"], report["speed"]) == ([], None)
    assert [gate["name"] for gate in report["gates"]] == ["min-sqnr"]
    proved = script(tmp_path / "out", "--cpu")
    assert proved.returncode == 0, proved.stderr
    assert "gate min-sqnr 40.0: kept" in proved.stdout
    refused = script(tmp_path / "out")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no CUDAExecutionProvider" in refused.stderr


@no_gpu
@pytest.mark.slow
def test_bfloat16_leaves_what_has_no_kernel_in_float32(run: Run, tmp_path: Path) -> None:
    done = run("build", MODEL, "--bf16", *DATA, *CUDA, "-o", "out", "--json")
    assert done.code == 0, done.err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text("utf-8"))
    pools = [node for node in plan["nodes"].values() if node["op"] == "MaxPool"]
    assert pools
    for node in pools:
        assert node["precision"] == "float"
        assert "no MaxPool in bfloat16" in node["reason"]
    assert onnx.TensorProto.BFLOAT16 in initial_types(tmp_path / "out")


@no_gpu
@pytest.mark.slow
def test_int8_goes_through_tensorrt(run: Run, tmp_path: Path) -> None:
    done = run("build", MODEL, "--int8", *DATA, *CUDA)
    assert done.code == 2
    assert "--ep tensorrt" in done.err
    (tmp_path / "r.toml").write_text("[cuda]\ncontext = true\n")
    more = ("--ep", "tensorrt", "--recipe", "r.toml", "-o", "out", "--json")
    done = run("build", MODEL, "--int8", *DATA, *CUDA, *more)
    assert done.code == 0, done.err
    delivery = done.json()["delivery"]
    assert (delivery["state"], delivery["path"]) == ("yet to be built", "")
    assert "writes model_ctx.onnx" in delivery["notes"][0]
    told = json.loads((tmp_path / "out" / "session_options.json").read_text("utf-8"))
    name, options = told["providers"][0]
    assert name == "TensorrtExecutionProvider"
    assert options["trt_engine_cache_path"] == "trt_cache"
    assert (told["context"], told["rewrites"]) == ("model_ctx.onnx", False)
    assert onnx.TensorProto.INT8 in initial_types(tmp_path / "out")
    assert script(tmp_path / "out", "--cpu").returncode == 0


@no_gpu
@pytest.mark.slow
def test_weights_of_few_bits(run: Run, tmp_path: Path) -> None:
    onnx.save(perceptron(64, layers=4), tmp_path / "net.onnx")
    write_data(tmp_path / "data")
    more = ("--group-size", "32", "--algorithm", "rtn", "--calib", "data")
    done = run("build", "net.onnx", "--int4", *more, *CUDA, "-o", "out", "--json")
    assert done.code == 0, done.err
    model = onnx.load(tmp_path / "out" / "model.onnx")
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) >= 2
    levels = {a.i for node in products for a in node.attribute if a.name == "accuracy_level"}
    assert levels <= {0}
    halves = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert any(t.name.endswith("scale") for t in halves)


@no_gpu
def test_a_missed_gate_leaves_no_engine(run: Run, tmp_path: Path) -> None:
    done = run("build", MODEL, "--fp16", *DATA, *CUDA, "--min-sqnr", "200", "-o", "out")
    assert done.code == 3
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"plan.json", "manifest.json", "report.json"}


# -- check -----------------------------------------------------------------------------------------


def test_check_of_the_cuda_provider(run: Run, tmp_path: Path) -> None:
    ir.save(conv(), tmp_path / "conv.onnx")
    ir.save(nbits(bits=2), tmp_path / "bits.onnx")
    done = run("check", "conv.onnx", *CUDA)
    assert (done.code, done.err) == (0, "")
    assert "CUDAExecutionProvider of ONNX Runtime, by a table of its kernels" in done.out
    assert "C04" in done.out
    assert run("check", "conv.onnx", *CUDA, "--ep", "tensorrt", "--json").json()["findings"] == []
    done = run("check", "bits.onnx", *CUDA, "--json")
    assert done.code == 1
    assert [finding["rule"] for finding in done.json()["findings"]] == ["C08"]
