"""The padded Conv computes the same codes, in the kernel that ONNX Runtime really takes."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.pad_channels import PadChannels
from qcompile.runtime.ort import kernels

Weights = dict[str, np.ndarray]


def quantized_conv(
    rng: np.random.Generator,
    channels: int,
    count: int,
    size: list[int],
    group: int = 1,
    code: type[np.integer] = np.uint8,
    *,
    shared: bool = False,
) -> ir.Model:
    """QDQ around one Conv with a bias; with ``shared`` a second one reads the same codes."""
    kernel = [int(k) for k in rng.integers(1, 4, len(size))]
    spots = (channels // group, *kernel)
    steps = rng.uniform(0.01, 0.02, count).astype(np.float32)
    weights: Weights = {
        "s": np.float32(0.02),
        "z": rng.integers(0, 100, ()).astype(code),
        "w": rng.integers(-127, 128, (count, *spots)).astype(np.int8),
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
    ]
    outputs = ["y", "y2"] if shared else ["y"]
    for name in outputs:
        nodes += [
            helper.make_node("Conv", ["d", "k", "a"], [f"{name}.f"], group=group),
            helper.make_node("QuantizeLinear", [f"{name}.f", "t", "z"], [f"{name}.c"]),
            helper.make_node("DequantizeLinear", [f"{name}.c", "t", "z"], [name]),
        ]
    shape = ["N", channels, *size]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    InferShapes()(model)
    return model


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )


@settings(max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 7),
    st.sampled_from([16, 24, 64]),
    st.sampled_from([[36, 40], [1100]]),
    st.booleans(),
)
def test_same_codes_and_still_an_int8_kernel(seed, channels, count, size, shared):
    rng = np.random.default_rng(seed)
    model = quantized_conv(rng, channels, count, size, shared=shared)
    x = rng.normal(1, 1, (2, channels, *size)).astype(np.float32)
    before = run(model, x)
    modified = PadChannels()(model).modified
    assert modified == (channels % 4 != 0)
    assert not PadChannels()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for old, new in zip(before, run(model, x), strict=True):
        np.testing.assert_array_equal(old, new)
    found = kernels(model)
    convs = found["com.microsoft::QLinearConv"] + found["ai.onnx::QLinearConv"]
    assert convs == len(before), found


@pytest.mark.parametrize(
    ("channels", "count", "size", "group", "code"),
    [
        (3, 8, [36, 40], 1, np.uint8),
        (3, 20, [36, 40], 1, np.uint8),
        (6, 16, [36, 40], 2, np.uint8),
        (3, 16, [16, 16], 1, np.uint8),
        (3, 16, [36, 40], 1, np.int8),
    ],
    ids=["few kernels", "kernels by the four", "groups", "few positions", "int8 of ARM"],
)
def test_left_alone(channels, count, size, group, code):
    model = quantized_conv(np.random.default_rng(0), channels, count, size, group, code)
    assert not PadChannels()(model).modified
