"""The folded Conv computes the same codes, in the kernel that ONNX Runtime really takes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcompile.passes.fold_stride import FoldStride
from qcompile.passes.infer_shapes import InferShapes
from qcompile.runtime.ort import Session, kernels

Weights = dict[str, np.ndarray]
REFUSALS = {
    "it has too little arithmetic",
    "its kernels would grow too much",
    "its last row or column is read by no kernel",
}


def quantized_conv(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    count: int,
    kernel: tuple[int, int],
    code: type[np.integer] = np.uint8,
    **attributes: object,
) -> ir.Model:
    """QDQ around one Conv with a bias; the batch is dynamic."""
    channels = shape[0] // int(attributes.get("group", 1))  # type: ignore[call-overload]
    steps = rng.uniform(0.01, 0.02, count).astype(np.float32)
    weights: Weights = {
        "s": np.float32(0.02),
        "z": rng.integers(0, 100, ()).astype(code),
        "w": rng.integers(-127, 128, (count, channels, *kernel)).astype(np.int8),
        "ws": steps,
        "wz": np.zeros(count, np.int8),
        "b": rng.integers(-1000, 1000, count).astype(np.int32),
        "bs": np.float32(0.02) * steps,
        "bz": np.zeros(count, np.int32),
        "t": np.float32(0.3),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["k"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["a"], axis=0),
        helper.make_node("Conv", ["d", "k", "a"], ["f"], **attributes),
        helper.make_node("QuantizeLinear", ["f", "t", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "t", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    InferShapes()(model)
    return model


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3, 5, 6]),
    st.sampled_from([(2, 2, 3), (2, 3, 3), (2, 7, 7), (2, 4, 6), (4, 4, 4), (2, 5, 3)]),
    st.tuples(st.integers(40, 80), st.integers(40, 80)),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.booleans(),
)
def test_same_codes_and_still_an_int8_kernel(seed, channels, form, size, pads, spelled):
    stride, *kernel = form
    rng = np.random.default_rng(seed)
    attributes: dict[str, object] = {"strides": [stride, stride], "pads": pads}
    if spelled:
        attributes["kernel_shape"] = kernel
    model = quantized_conv(rng, (channels, *size), 256, tuple(kernel), **attributes)
    x = {"x": rng.normal(1, 1, (2, channels, *size)).astype(np.float32)}
    before = Session(model).run(x)["y"]
    step = FoldStride()
    modified = step(model).modified
    assert modified or (step.refusals and set(step.refusals) <= REFUSALS), step.refusals
    assert not FoldStride()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(before, Session(model).run(x)["y"])
    found = kernels(model)
    assert found["com.microsoft::QLinearConv"] + found["ai.onnx::QLinearConv"] == 1, found
    # one for the rows, one for channels last, one back at the end: none is left before the Conv
    assert not modified or found["ai.onnx::Transpose"] == 3, found


@pytest.mark.parametrize(
    ("shape", "count", "code", "attributes"),
    [
        ((3, 200, 200), 8, np.uint8, {"strides": [2, 2]}),
        ((4, 200, 200), 16, np.uint8, {"strides": [2, 2]}),
        ((6, 200, 200), 16, np.uint8, {"strides": [2, 2], "group": 2}),
        ((3, 200, 200), 16, np.uint8, {"strides": [2, 1]}),
        ((3, 200, 200), 16, np.uint8, {"strides": [2, 2], "dilations": [2, 2]}),
        ((3, 200, 200), 16, np.uint8, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((3, 200, 200), 16, np.int8, {"strides": [2, 2]}),
        ((3, 200, 200), 16, np.uint8, {}),
        ((3, 20, 20), 16, np.uint8, {"strides": [2, 2]}),
    ],
    ids=[
        "kernels",
        "channels",
        "groups",
        "strides",
        "dilations",
        "auto_pad",
        "ARM",
        "no stride",
        "small",
    ],
)
def test_left_alone(shape, count, code, attributes):
    model = quantized_conv(np.random.default_rng(0), shape, count, (3, 3), code, **attributes)
    assert not FoldStride()(model).modified
