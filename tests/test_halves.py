"""Half precision in a build: what stays in fp32, what plans say of it, and what is simulated."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from qcompile.errors import PlanError
from qcompile.plan import Plan, read_plan
from qcompile.runtime.ort import Session
from tests.tiny import CONV_WEIGHTS, build, convs, products, weight, write_net, write_samples

LOUD = (
    "float[1,16,8,8] x",
    """[c0] a = Conv<pads = [1, 1, 1, 1]> (x, w0, b0)
    [up] b = Mul(a, up)
    [c1] c = Conv<pads = [1, 1, 1, 1]> (b, w1)
    [down] y = Mul(c, down)""",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))


def loud(folder: Path) -> Path:
    """Write a net whose middle is far beyond float16."""
    write_samples(folder / "data", x=(1, 16, 8, 8))
    scales = {"up": np.asarray(1e6, np.float32), "down": np.asarray(1e-6, np.float32)}
    return write_net(folder / "net.onnx", *LOUD, **CONV_WEIGHTS, **scales)


def precisions(plan: Plan) -> dict[str, str]:
    return {name: entry.precision for name, entry in plan.nodes.items()}


def types(path: Path) -> set[int]:
    """Return the element types of the weights of a file."""
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("scheme", "stored", "least"),
    [("fp16", TensorProto.FLOAT16, 60), ("bf16", TensorProto.BFLOAT16, 40)],
)
def test_all_of_a_tame_net_becomes_half(tmp_path, scheme, stored, least):
    report, _ = build(convs(tmp_path), target="tensorrt", scheme=scheme, sm=(89,))
    assert report.plan.nodes == {scheme: 4}
    assert report.plan.float_nodes == ()
    assert types(tmp_path / "out" / "model.onnx") == {stored}
    assert least < report.simulated.outputs[0].sqnr_db < least + 20, "it is rounded, but only so"
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    ports = [*graph.input, *graph.output]
    assert {port.type.tensor_type.elem_type for port in ports} == {TensorProto.FLOAT}


def test_what_would_overflow_stays_in_fp32_and_says_why(tmp_path):
    report, _ = build(loud(tmp_path), target="tensorrt", scheme="fp16")
    reasons = {node.name: node.reason for node in report.plan.float_nodes}
    assert list(reasons) == ["up", "c1", "down"]
    assert reasons["up"].startswith("fp32: up holds 1e+06, beyond 65504")
    assert reasons["c1"].startswith("fp32: b reaches ")
    assert report.simulated.outputs[0].sqnr_db > 60
    assert build(tmp_path / "net.onnx", target="tensorrt", scheme="bf16", sm=(80,))[
        0
    ].plan.nodes == {"bf16": 4}


def test_a_plan_of_weights_in_few_bits_builds_the_same_again(tmp_path):
    wished = {"target": "tensorrt", "scheme": "weight-only"}
    weights = {"weights": {"group_size": 64, "algorithm": "rtn"}}
    build(products(tmp_path), "first", **wished, **weights)
    build(tmp_path / "net.onnx", "again", plan=tmp_path / "first" / "plan.json", **wished)
    for file in ("plan.json", "model.onnx"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()


@pytest.mark.parametrize("scheme", ["int8", "fp16"])
def test_a_plan_builds_the_same_again(tmp_path, scheme):
    first, _ = build(loud(tmp_path), "first", target="tensorrt", scheme=scheme, sm=(89,))
    plan = tmp_path / "first" / "plan.json"
    again, _ = build(
        tmp_path / "net.onnx", "again", plan=plan, target="tensorrt", scheme=scheme, sm=(89,)
    )
    for file in ("plan.json", "model.onnx"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()
    assert again.simulated == first.simulated
    assert again.simulated.outputs[0].broken == 0, "int8 nodes still give fp32 where they must"


def test_an_edited_plan_is_followed(tmp_path):
    build(convs(tmp_path), "first", target="tensorrt", scheme="fp16")
    path = tmp_path / "first" / "plan.json"
    plan = json.loads(path.read_text())
    plan["nodes"]["c1"] |= {"precision": "float", "reason": "I say so"}
    del plan["nodes"]["r0"]
    path.write_text(json.dumps(plan))
    report, _ = build(tmp_path / "net.onnx", plan=path, target="tensorrt", scheme="fp16")
    reasons = {node.name: node.reason for node in report.plan.float_nodes}
    assert reasons["c1"] == "fp32: I say so"
    stored = {
        t.name: t.data_type for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    }
    assert stored["w1"] == TensorProto.FLOAT
    assert stored["w0"] == TensorProto.FLOAT16
    relu = next(n for n in ir.load(tmp_path / "out" / "model.onnx").graph if n.op_type == "Relu")
    assert relu.outputs[0].dtype == ir.DataType.FLOAT, "not in the plan"


def test_plans_that_do_not_fit(tmp_path):
    path = convs(tmp_path)
    build(path, "first", target="tensorrt", scheme="fp16")
    half = tmp_path / "first" / "plan.json"
    with pytest.raises(
        PlanError, match="for scheme fp16, this build is for int8: build with --fp16"
    ):
        build(path, plan=half, target="tensorrt")
    with pytest.raises(PlanError, match="for device any, this build is for 87"):
        build(path, plan=half, target="tensorrt", scheme="fp16", sm=(87,))
    write_net(path, *LOUD, **CONV_WEIGHTS, up=weight(3, 1), down=weight(4, 1))
    with pytest.raises(PlanError, match="it belongs to another model"):
        build(path, plan=half, target="tensorrt", scheme="fp16")


def test_a_plan_knows_its_half(tmp_path):
    path = convs(tmp_path)
    build(path, "first", target="tensorrt", sm=(89,))
    plan = tmp_path / "first" / "plan.json"
    assert precisions(read_plan(plan))["r0"] == "fp16"
    for other in ("bf16", "fp32"):
        with pytest.raises(PlanError) as found:
            build(path, plan=plan, target="tensorrt", sm=(89,), high_precision=other)
        assert str(found.value) == (
            f"--plan: node r0 is fp16, but what this build computes in float becomes {other}: "
            "build with --high-precision fp16, or edit the plan"
        )


def test_wishes_are_kept(tmp_path):
    path, wished = convs(tmp_path), {"target": "tensorrt", "scheme": "fp16"}
    for wish, kept in (
        ({"exclude": ["c?"]}, {"c0": "excluded by name (c?)", "c1": "excluded by name (c?)"}),
        ({"exclude_ops": ["Add"]}, {"add": "excluded by operator (Add)"}),
        ({"float_first": True}, {"c0": "first weighted layer (--float-first)"}),
    ):
        report, _ = build(path, **wished, **wish)
        reasons = {node.name: node.reason for node in report.plan.float_nodes}
        assert reasons == {name: f"fp32: {why}" for name, why in kept.items()}


def test_without_samples_norms_stay_in_fp32(tmp_path):
    body = "[m] a = MatMul(x, w)\n[s] b = Softmax(a)\n[v] y = MatMul(b, v)"
    path = write_net(
        tmp_path / "net.onnx", "float[4,64] x", body, w=weight(0, 64, 64), v=weight(1, 64, 64)
    )
    report, heard = build(path, target="tensorrt", scheme="fp16", data=False)
    assert {n.name: n.reason for n in report.plan.float_nodes} == {
        "s": "fp32: no samples show what Softmax does"
    }
    assert any("no samples to measure" in notice for notice in heard.notices)
    assert report.simulated is None


def test_reasons_of_nodes_that_only_follow(tmp_path):
    body = """[up] b = Mul(x, up)
    [shape] r = Reshape(b, to)
    [down] c = Mul(r, down)
    [n] k = Shape(c)
    [if] d = If (f) <
        then_branch = t () => (float[64] p) { [inner] p = Mul(c, down) },
        else_branch = e () => (float[64] q) { [other] q = Relu(c) }
    >
    [out] y = Mul(d, down)"""
    constants = {
        "up": np.asarray(2, np.float32), "down": np.asarray(0.5, np.float32),
        "to": np.asarray([64]),
    }  # fmt: skip
    write_samples(tmp_path / "data", x=(8, 8))
    path = write_net(
        tmp_path / "net.onnx", "float[8,8] x, bool f", body, "float[] y, int64[] k", **constants
    )
    for index, file in enumerate(sorted((tmp_path / "data").iterdir())):
        with np.load(file, allow_pickle=False) as arrays:
            np.savez(file, f=np.asarray(bool(index % 2)), **arrays)
    report, _ = build(path, target="tensorrt", scheme="fp16", exclude=["up", "down"])
    reasons = {node.name: node.reason for node in report.plan.float_nodes}
    assert reasons["shape"] == "between nodes in fp32"
    assert reasons["inner"] == "inside If, Loop or Scan: control flow stays in fp32"
    assert reasons["if"].startswith("fp32: If has bodies")


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "int8", "weight-only"])
def test_half_ports(tmp_path, scheme):
    path = products(tmp_path)
    weights = {"weights": {"group_size": 64, "algorithm": "rtn"}}
    report, _ = build(path, target="tensorrt", scheme=scheme, sm=(89,), half_ports=True, **weights)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    stored = TensorProto.BFLOAT16 if scheme == "bf16" else TensorProto.FLOAT16
    ports = [*graph.input, *graph.output]
    assert {port.type.tensor_type.elem_type for port in ports} == {stored}
    assert report.simulated.outputs[0].sqnr_db > {"weight-only": 15, "int8": 25}.get(scheme, 40)
    assert report.simulated.outputs[0].dtype == "float32", "compared with the float model"


def test_an_engine_with_half_ports_takes_samples_of_float32(tmp_path):
    path = convs(tmp_path)
    build(path, target="tensorrt", scheme="fp16", half_ports=True)
    with np.load(next((tmp_path / "data").iterdir()), allow_pickle=False) as arrays:
        feeds = dict(arrays)
    half = Session(tmp_path / "out" / "model.onnx").run(feeds)["y"]
    exact = Session(path).run(feeds)["y"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype(np.float32), exact, rtol=0, atol=0.02)


def test_weights_in_few_bits_beside_halves_are_simulated_from_the_file(tmp_path):
    weights = {"weights": {"group_size": 64, "algorithm": "rtn"}}
    report, _ = build(products(tmp_path), target="tensorrt", scheme="weight-only", **weights)
    assert report.plan.nodes == {"weight-only": 2, "fp16": 1}
    assert TensorProto.INT4 in types(tmp_path / "out" / "model.onnx")
    assert report.simulated.outputs[0].sqnr_db > 15
    scales = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
        if tensor.name.endswith(".scale")
    ]
    assert len(scales) == 2
    assert all(scale.dtype == np.float16 and (scale > 0).all() for scale in scales)
