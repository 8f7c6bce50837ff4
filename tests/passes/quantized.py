"""Small quantized graphs: nodes of codes behind an input x, its batch dynamic."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from qcompile.passes.infer_shapes import InferShapes


def typed(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray | np.generic],
) -> ir.Model:
    """Return a model with named nodes and types, whose input is ``x`` of shape ``(N, *shape)``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    InferShapes()(model)
    return model


def quantized_conv(
    rng: np.random.Generator,
    shape: Sequence[int],
    count: int,
    kernel: Sequence[int],
    code: type[np.integer] = np.uint8,
    outputs: Sequence[str] = ("y",),
    **attributes: object,
) -> ir.Model:
    """QDQ around one Conv with a bias; with more outputs as many read the same codes.

    Args:
        rng: Draws the constants.
        shape: Channels and sizes of x.
        count: Kernels.
        kernel: Their sizes.
        code: Type of activations.
        outputs: Name of what each Conv makes.
        attributes: Of the Conv.
    """
    channels = shape[0] // int(attributes.get("group", 1))  # type: ignore[call-overload]
    steps = rng.uniform(0.01, 0.02, count).astype(np.float32)
    constants: dict[str, np.ndarray | np.generic] = {
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
    ]
    for name in outputs:
        nodes += [
            helper.make_node("Conv", ["d", "k", "a"], [f"{name}.f"], **attributes),
            helper.make_node("QuantizeLinear", [f"{name}.f", "t", "z"], [f"{name}.c"]),
            helper.make_node("DequantizeLinear", [f"{name}.c", "t", "z"], [name]),
        ]
    return typed(nodes, shape, outputs, constants)
