"""``--target ort-mobile`` and ``--cpu arm`` as a user runs them, on a machine that is no phone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompile.runtime.host import host_cpu
from tests.cli.nets import CALIB, MODEL, perceptron
from tests.cli.process import Ended, files, run

FOREIGN = "not timed: the engine is for ARM, and this machine is not"
QUICK = ("--calib", CALIB, "--calib-method", "minmax", "--no-keep-accuracy")
ORT_FILES = ["model.ort", "required_operators.config", "required_operators_and_types.config"]


def built(
    folder: Path, *options: str | Path, model: str | Path = MODEL
) -> tuple[dict[str, Any], Path]:
    """Build for a phone; return the report and the bundle."""
    done = run(folder, "build", model, "--target", "ort-mobile", *options, "-o", "out", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out), folder / "out"


def refused(folder: Path, *options: str | Path) -> str:
    """Return the one line that a build ends with."""
    done: Ended = run(folder, "build", MODEL, *options, "-o", "out")
    assert done.code == 2
    assert not (folder / "out").exists()
    lines = done.err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_int8_for_the_cores_is_converted_loaded_run_and_compared(tmp_path):
    report, bundle = built(tmp_path, "--ep", "cpu", *QUICK)
    assert set(ORT_FILES) < set(files(bundle))
    assert set(report["delivery"]["loads_ms"]) == {"model.onnx", "model.ort"}
    assert report["delivery"]["bytes"] == (bundle / "model.ort").stat().st_size
    assert report["delivery"]["state"] == "run"
    assert not report["delivery"]["placed"], "there is but one provider"
    assert report["kernels"]["missing"] == []
    assert report["kernels"]["obtained"]["QLinearConv"] > 2
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20
    types = (bundle / ORT_FILES[2]).read_text("utf-8")
    assert "int8_t" in types
    assert "uint8_t" not in types, "int8 stays int8 for ARM"
    assert host_cpu() == "arm" or FOREIGN in report["notices"]
    assert onnx.load(bundle / "model.onnx").opset_import[0].version == 19


def test_uint8_for_nnapi_with_fixed_sizes_and_products_of_its_kind(tmp_path):
    report, bundle = built(tmp_path, "--ep", "nnapi", *QUICK)
    model = onnx.load(bundle / "model.onnx")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert all(dim.HasField("dim_value") for dim in dims)
    assert any("--shapes" in notice for notice in report["notices"])
    placed = report["delivery"]["placed"]
    assert placed["NnapiExecutionProvider"] > 2 * placed["CPU"]
    assert not any("opset" in reason for reason in report["delivery"]["fallen"])
    plan = json.loads((bundle / "plan.json").read_text("utf-8"))
    kinds = {t["type"] for t in plan["tensors"].values() if t["kind"] == "activation"}
    assert kinds == {"uint8"}
    weights = {len(t["scale"]) > 1: t["type"] for t in plan["tensors"].values() if t["axis"] == 0}
    assert weights[True] in {"int8", "int32"}
    (product,) = [n for n in model.graph.node if n.op_type == "Gemm"]
    dequantize = next(n for n in model.graph.node if n.output[0] == product.input[1])
    codes = next(t for t in model.graph.initializer if t.name == dequantize.input[0])
    assert codes.data_type == TensorProto.UINT8


def test_float16_is_delivered_as_the_onnx_file(tmp_path):
    report, bundle = built(tmp_path, "--ep", "coreml", "--fp16", "--calib", CALIB)
    assert not {*ORT_FILES} & {*files(bundle)}
    delivery = report["delivery"]
    assert (delivery["path"], delivery["kind"][:21]) == ("model.onnx", "ONNX model in float16")
    assert delivery["bytes"] < 0.6 * MODEL.stat().st_size
    assert any(note.startswith("no .ort file") for note in delivery["notes"])
    assert delivery["placed"]["CPU"] <= 2
    assert list(delivery["loads_ms"]) == ["model.onnx"]


def test_weights_in_few_bits_fall_to_the_cpu_of_core_ml_and_that_is_said(tmp_path):
    onnx.save(perceptron(64), tmp_path / "net.onnx")
    report, bundle = built(
        tmp_path, "--ep", "coreml", "--int4", "--group-size", "16", model="net.onnx"
    )
    count = report["delivery"]["fallen"]["coreml has no MatMulNBits"]
    told = f"coreml has no MatMulNBits: products with weights in few bits ({count} here)"
    assert any(notice.startswith(told) for notice in report["notices"])
    assert "MatMulNBits" in (bundle / ORT_FILES[1]).read_text("utf-8")


def test_core_ml_has_no_int8_and_says_what_it_has(tmp_path):
    line = refused(tmp_path, "--target", "ort-mobile", "--ep", "coreml", "--calib", CALIB)
    assert "--ep coreml has no scheme int8 (it has no QuantizeLinear" in line
    assert "it has: " in line
    assert "--fp16" in line


def test_unknown_providers_are_answered_with_those_that_there_are(tmp_path):
    line = refused(tmp_path, "--target", "ort-mobile", "--ep", "metal", "--calib", CALIB)
    assert "--ep metal: ort-mobile has no such device" in line
    assert "cpu, xnnpack, nnapi, coreml, qnn" in line


def sliced() -> onnx.ModelProto:
    """Two convolutions with a Slice between: of its int8 form ONNX Runtime 1.31 makes a wrong one.

    On x86, that is, where it turns int8 activations into uint8.
    """
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(0, 0.2, (16, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(0, 0.1, (16, 16, 3, 3)).astype(np.float32),
        "zero": np.array([0, 0]),
        "end": np.array([16, 16]),
        "axes": np.array([2, 3]),
        "two": np.array([2, 2]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["a", "zero", "end", "axes", "two"], ["b"], "slice"),
        helper.make_node("Conv", ["b", "v"], ["y"], "second", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "sliced",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_engines_for_arm_are_run_as_arm_would_and_not_timed_elsewhere(tmp_path):
    onnx.save(sliced(), tmp_path / "net.onnx")
    x = np.random.default_rng(1).normal(size=(40, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x)
    options = ("--cpu", "arm", "--calib", "calib.npz", "--no-keep-accuracy", "--json", "-o", "out")
    done = run(tmp_path, "build", "net.onnx", *options)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["kernels"]["missing"] == []
    assert report["kernels"]["obtained"] == {"QLinearConv": 2}
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20
    if host_cpu() != "arm":
        assert FOREIGN in report["notices"]
        assert report["speed"] is None
