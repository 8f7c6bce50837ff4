"""Graphs to cut into stages: from text, with control flow, and any that hypothesis thinks of."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'

CONTROL_FLOW = """g (float[N, 4] x, int64 n, bool c) => (float[N, 4] y, float[N, 4] b) {
    a = Relu(x)
    b = MatMul(a, w)
    i = If(c) <
        then_branch = t () => (float[N, 4] u) { u = Mul(b, a) },
        else_branch = e () => (float[N, 4] v) { v = MatMul(b, w) }
    >
    d = MatMul(i, w)
    yes = Constant<value_int = 1>()
    go = Cast<to = 9>(yes)
    l = Loop(n, go, d) <
        body = step (int64 k, bool on, float[N, 4] s) => (bool on2, float[N, 4] s2) {
            on2 = Identity(on)
            s1 = MatMul(a, w)
            s2 = Add(s, s1)
        }
    >
    r = Tanh(l)
    y = MatMul(r, w)
}"""


def parsed(text, *weights, size=4):
    proto = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    for name in weights:
        array = rng.normal(size=(size, size)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def control_flow():
    """An If and a Loop whose bodies read activations and a weight from outside."""
    return parsed(CONTROL_FLOW, "w")


@st.composite
def graphs(draw):
    """Any graph over (N, 4): element-wise nodes, MatMuls, constants on their way, captures."""
    values, static, nodes = ["x0", "x1"], ["w0", "w1"], []
    for index in range(draw(st.integers(1, 14))):
        name, value = f"v{index}", st.sampled_from(values)
        kind = draw(st.sampled_from(["Relu", "Add", "MatMul", "MatMul", "static", "If"]))
        if kind == "static":
            nodes.append(helper.make_node("Transpose", [draw(st.sampled_from(static))], [name]))
            static.append(name)
            continue
        if kind == "If":
            inner = [helper.make_node("Add", [draw(value), draw(value)], [f"{name}.in"])]
            port = helper.make_tensor_value_info(f"{name}.in", TensorProto.FLOAT, [None, 4])
            branch = helper.make_graph(inner, "branch", [], [port])
            other = [helper.make_node("Neg", [draw(value)], [f"{name}.in"])]
            otherwise = helper.make_graph(other, "otherwise", [], [port])
            branches = {"then_branch": branch, "else_branch": otherwise}
            nodes.append(helper.make_node("If", ["c"], [name], **branches))
        else:
            second = {"Relu": [], "Add": [draw(value)], "MatMul": [draw(st.sampled_from(static))]}
            nodes.append(helper.make_node(kind, [draw(value), *second[kind]], [name]))
        values.append(name)
    outputs = (
        draw(st.lists(st.sampled_from(values[2:]), min_size=1, unique=True))
        if (len(values) > 2)
        else ["x0"]
    )
    return nodes, outputs


def built(nodes, outputs):
    def port(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 4)).astype(np.float32), f"w{i}")
        for i in range(2)
    ]
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    inputs = [port("x0"), port("x1"), condition]
    graph = helper.make_graph(nodes, "any", inputs, [port(o) for o in outputs], weights)
    opset = [helper.make_opsetid("", 21)]
    proto = helper.make_model(graph, ir_version=10, opset_imports=opset)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)
