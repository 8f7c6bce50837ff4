"""A small convolution with a dynamic batch: in float, and as int8 codes; samples for it."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompile.emit.tensorrt_files import EngineRequest
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from qcompile.targets.profiles import Profile

PROFILE = {"x": Profile((1, 16, 8, 8), (2, 16, 8, 8), (4, 16, 8, 8))}
SCALE = np.float32(1 / 32)


def convolution(*, codes, operator="Relu"):
    """Conv(16 -> 32, 3x3) and an activation, then the mean over pixels: ``(n, 32)`` scores."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 16, 3, 3)).astype(np.float32)
    scales = np.abs(weight).max(axis=(1, 2, 3)) / 127
    stored = np.round(weight / scales[:, None, None, None]).astype(np.int8)
    arrays = {"b": rng.normal(size=32).astype(np.float32), "axes": np.array([2, 3])}
    nodes, x, w = [], "x", "w"
    if codes:
        arrays |= {"w": stored, "ws": scales, "wz": np.zeros(32, np.int8)}
        arrays |= {"xs": SCALE, "xz": np.int8(0)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "x_Q"),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "x_DQ"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "w_DQ", axis=0),
        ]
        x, w = "xd", "wd"
    else:
        arrays["w"] = weight
    nodes += [
        helper.make_node("Conv", [x, w, "b"], ["c"], "conv", pads=[1] * 4),
        helper.make_node(operator, ["c"], ["a"], "act"),
        helper.make_node("ReduceMean", ["a", "axes"], ["y"], "mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def heavy(model, times=40):
    """Return the model with work in front that changes nothing: products with the identity."""
    like, eye = "x", numpy_helper.from_array(np.eye(8, dtype=np.float32), "eye")
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.initializer.append(eye)
    made = []
    for index in range(times):
        made.append(helper.make_node("MatMul", [like, "eye"], [f"t{index}"], f"heavy{index}"))
        like = f"t{index}"
    for node in model.graph.node:
        node.input[:] = [like if name == "x" else name for name in node.input]
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def samples(count=6, batch=2):
    rng = np.random.default_rng(1)
    shape = (batch, 16, 8, 8)
    return InMemory([{"x": rng.uniform(-2, 2, shape).astype(np.float32)} for _ in range(count)])


def float_model(folder):
    """Return a session of the float model, the reference of all comparisons."""
    path = folder / "float.onnx"
    onnx.save(convolution(codes=False), path)
    return Session(path, optimize=False)


def request(session, version=11, profiles=None, **fields):
    return EngineRequest(
        "model.onnx",
        session.inputs,
        tuple(port.name for port in session.outputs),
        version,
        profiles=PROFILE if profiles is None else profiles,
        **fields,
    )
