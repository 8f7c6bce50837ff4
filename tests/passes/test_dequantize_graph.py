"""Codes of all types become the floats that ONNX Runtime makes of them."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qcompile.graph.runner import run_passes
from qcompile.numerics.regrid import Given
from qcompile.passes import dequantizing
from tests.passes.tools import session

TYPES: dict[str, type] = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e5m2": ml_dtypes.float8_e5m2,
}


def model(
    nodes: list[onnx.NodeProto], inputs: str, outputs: dict[str, int], **constants: np.ndarray
) -> onnx.ModelProto:
    initializers = [ir.to_proto(ir.tensor(a, name=n)) for n, a in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(inputs, onnx.TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def floats(proto: onnx.ModelProto) -> tuple[ir.Model, Given]:
    graph, found = ir.from_proto(proto), Given()
    run_passes(graph, dequantizing(found))
    left = [n.op_type for n in graph.graph if "Linear" in n.op_type or n.domain]
    assert not left
    return graph, found


def both(proto: onnx.ModelProto) -> list[tuple[np.ndarray, np.ndarray]]:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)}
    old = session(proto).run(None, feeds)
    new = session(floats(proto)[0]).run(None, feeds)
    return list(zip(old, new, strict=True))


@given(
    kind=st.sampled_from(sorted(TYPES)),
    grouped=st.sampled_from(["tensor", "channel", "groups"]),
    axis=st.sampled_from([0, 1]),
    half=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=20)
def test_weights_of_all_types(kind: str, grouped: str, axis: int, half: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = TYPES[kind]
    codes = rng.integers(0, 8, (8, 6)).astype(dtype)
    shapes = {"tensor": (), "channel": (codes.shape[axis],), "groups": [8, 6]}
    shape = list(shapes[grouped])
    attributes = {} if grouped == "tensor" else {"axis": axis}
    if grouped == "groups":
        attributes["block_size"] = 2
        shape[axis] //= 2
    scale = rng.uniform(0.1, 2, shape).astype(np.float16 if half else np.float32)
    zero = (rng.integers(0, 4, shape) * ("float" not in kind)).astype(dtype)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], **attributes),
        helper.make_node("Cast", ["d"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    proto = model(nodes, "x", {"y": 1}, w=codes, s=scale, z=zero)
    tolerance = 3e-3 if half else 1e-6
    for old, new in both(proto):
        np.testing.assert_allclose(new, old, rtol=tolerance, atol=tolerance * np.abs(old).max())
    grid = floats(proto)[1].weights["d"]
    assert grid.type == kind
    assert np.array_equal(grid.scale, scale.astype(np.float32))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shifted", [False, True])
def test_weights_of_few_bits(bits: int, shifted: bool) -> None:
    rng = np.random.default_rng(bits)
    rows, size = 6, 16
    codes = rng.integers(0, 256, (rows, 1, size * bits // 8)).astype(np.uint8)
    scales = rng.uniform(0.1, 1, (rows, 1)).astype(np.float32)
    inputs = ["x", "w", "s"]
    constants = {"w": codes, "s": scales, "b": rng.standard_normal(rows).astype(np.float32)}
    if shifted:
        constants["z"] = rng.integers(0, 256, (rows, 1)).astype(np.uint8)
    inputs += ["z" if shifted else "", "", "b"]
    attributes = {"K": 8, "N": rows, "bits": bits, "block_size": size}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **attributes)
    for old, new in both(model([node], "x", {"y": 1}, **constants)):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5 * np.abs(old).max())


@pytest.mark.parametrize("kind", ["uint16", "int8", "float8e4m3fn"])
def test_activations_of_all_types(kind: str) -> None:
    domain = "com.microsoft" if kind == "uint16" else ""
    scale, zero = np.asarray(0.01, np.float32), np.zeros((), TYPES[kind])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain=domain),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], domain=domain),
        helper.make_node("Exp", ["d"], ["y"]),
    ]
    graph, found = floats(model(nodes, "x", {"y": 1}, s=scale, z=zero))
    assert [node.op_type for node in graph.graph] == ["Exp"]
    assert found.activations["x"].type == kind


def test_what_is_computed_stays() -> None:
    """A scale that is an activation has no grid; the nodes stay and the reason is told."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0),
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    graph = ir.from_proto(model(nodes, "x", {"y": 1}))
    runs = run_passes(graph, dequantizing(Given()))
    assert [node.op_type for node in graph.graph][1:] == ["QuantizeLinear", "DequantizeLinear"]
    assert "its scale or zero point is computed, or its type is not known" in runs[-1].refusals
