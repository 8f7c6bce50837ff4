"""Stages: a partition of the graph, with exactly the activations that flow between its parts."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcompile.graph.edit import lazy_tensor
from qcompile.graph.stages import cut, cut_by_weight, reader_groups, stage_model

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'

BLOCK = """block (float[N, 4] x) => (float[N, 4] y) {
    n = Relu(x)
    q = MatMul(n, wq)
    k = MatMul(n, wk)
    s = Mul(q, k)
    o = MatMul(s, wo)
    r = Add(x, o)
    late = Sqrt(x)
    g = MatMul(r, wg)
    y = Add(g, late)
}"""


def parsed(text, *weights, size=4):
    proto = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    for name in weights:
        array = rng.normal(size=(size, size)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def matmuls(model):
    return [node for node in model.graph if node.op_type == "MatMul"]


def cut_everywhere(model):
    return cut(model, reader_groups(matmuls(model)))


def written(stage):
    return [str(node.outputs[0].name) for node in stage.nodes]


def check_flow(model, stages):
    """Play the stages through: what one reads is there, and what is there will be read."""
    inputs = {v.name for v in model.graph.inputs}
    outputs = {v.name for v in model.graph.outputs}
    assert [n for s in stages for n in s.nodes if n not in set(model.graph)] == []
    assert sorted(n.name or "" for s in stages for n in s.nodes) == sorted(
        n.name or "" for n in model.graph
    )
    assert len({n for s in stages for n in s.nodes}) == sum(len(s.nodes) for s in stages)
    there: set[str] = set()
    for index, stage in enumerate(stages):
        assert set(stage.reads) <= there | inputs
        assert not there & set(stage.gives)
        there = there | set(stage.gives)
        if stage.group is not None:
            assert stage.group.x.name in there | inputs
            assert not set(stage.nodes) & set(stage.group.nodes)
        assert set(stage.drops) <= there
        there -= set(stage.drops)
        later = {name for s in stages[index + 1 :] for name in s.reads}
        assert there <= later | outputs
    assert there <= outputs


def test_a_block_is_cut_at_what_its_weights_read():
    model = parsed(BLOCK, "wq", "wk", "wo", "wg")
    groups = reader_groups(matmuls(model)[::-1])
    assert [(g.x.name, [n.outputs[0].name for n in g.nodes]) for g in groups] == [
        ("n", ["q", "k"]),
        ("s", ["o"]),
        ("r", ["g"]),
    ]
    stages = cut(model, groups)
    check_flow(model, stages)
    assert [written(s) for s in stages] == [["n"], ["q", "k", "s"], ["o", "r"], ["late", "g", "y"]]
    assert [s.reads for s in stages] == [("x",), ("n",), ("s", "x"), ("x", "r")]
    assert [s.gives for s in stages] == [("n",), ("s",), ("r",), ("y",)]
    assert [s.drops for s in stages] == [(), ("n",), ("s",), ("r",)]


def test_an_activation_that_is_there_makes_an_empty_stage():
    model = parsed(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a = MatMul(x, w)
            r = Relu(a)
            s = Neg(r)
            b = MatMul(s, v)
            c = MatMul(r, w)
            y = Add(b, c)
        }""",
        "w",
        "v",
    )
    stages = cut_everywhere(model)
    check_flow(model, stages)
    assert [written(s) for s in stages] == [[], ["a", "r", "s"], [], ["b", "c", "y"]]
    assert [s.reads for s in stages] == [("x",), ("x",), ("r",), ("s", "r")]
    assert [s.gives for s in stages] == [(), ("r", "s"), (), ("y",)]


def test_weights_on_their_way_are_no_activations():
    model = parsed(
        """g (float[N, 4] x) => (float[N, 4] y) {
            half = Constant<value_float = 0.5>()
            t = Transpose(w)
            a = MatMul(x, t)
            h = Mul(a, half)
            r = Relu(h)
            b = MatMul(r, t)
            y = Mul(b, half)
        }""",
        "w",
    )
    stages = cut_everywhere(model)
    check_flow(model, stages)
    assert [(s.reads, s.gives) for s in stages] == [
        (("x",), ()),
        (("x",), ("r",)),
        (("r",), ("y",)),
    ]
    last = stage_model(model, stages[-1], {"r": (ir.DataType.FLOAT, (None, 4))})
    assert [n.op_type for n in last.graph] == ["Constant", "Transpose", "MatMul", "Mul"]
    assert [n.op_type for n in stages[-1].nodes] == ["MatMul", "Mul"]


def test_a_constant_left_operand_is_not_what_a_node_reads():
    model = parsed("g (float[4, N] x) => (float[4, N] y) { r = Relu(x) y = MatMul(w, r) }", "w")
    assert [g.x.name for g in reader_groups(matmuls(model))] == ["r"]
    constants = parsed("g (float[4, N] x) => (float[4, 4] y) { y = MatMul(w, w) }", "w")
    assert reader_groups(matmuls(constants)) == []


CAPTURES = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
    a = Relu(x)
    b = MatMul(a, w)
    i = If(c) <
        then_branch = t () => (float[N, 4] u) { u = Mul(b, a) },
        else_branch = e () => (float[N, 4] v) { v = MatMul(b, w) }
    >
    d = MatMul(i, w)
    y = Add(d, a)
}"""


def test_what_a_subgraph_captures_is_read():
    model = parsed(CAPTURES, "w")
    stages = cut_everywhere(model)
    check_flow(model, stages)
    assert [written(s) for s in stages] == [["a"], ["b", "i"], ["d", "y"]]
    assert stages[1].reads == ("a", "c")
    small = stage_model(model, stages[1], {"a": (ir.DataType.FLOAT, (None, None))})
    assert [v.name for v in small.graph.inputs] == ["a", "c"]
    assert list(small.graph.initializers) == ["w"]
    inner = next(node for node in small.graph if node.op_type == "If")
    captured = inner.attributes["then_branch"].as_graph()[0].inputs
    assert all(value.graph is small.graph for value in captured)


def test_stage_model_shares_tensors_and_reads_none():
    model = parsed(BLOCK, "wq", "wk", "wo", "wg")

    def never():
        raise AssertionError("a weight was read")

    for name, value in model.graph.initializers.items():
        value.const_value = lazy_tensor(name, ir.DataType.FLOAT, (4, 4), never)
    other = ir.tensor(np.ones((4, 4), np.float32), name="wk")
    stages = cut_everywhere(model)
    types = {"n": (ir.DataType.FLOAT, None)}
    small = stage_model(model, stages[1], types, {"wk": other, "wo": other})
    assert {n: v.const_value for n, v in small.graph.initializers.items()} == {
        "wq": model.graph.initializers["wq"].const_value,
        "wk": other,
    }
    assert small.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert small.graph.inputs[0].shape is None
    assert [v.name for v in small.graph.outputs] == ["s"]
    assert small.ir_version == model.ir_version
    assert small.graph.opset_imports == model.graph.opset_imports
    assert model.graph.initializers["wk"].const_value is not other
    assert len(list(model.graph)) == 9


def test_budget():
    model = parsed(
        "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w0) b = Relu(a) "
        "c = MatMul(b, w1) d = MatMul(c, w2) e = Transpose(w3) y = MatMul(d, e) }",
        *(f"w{i}" for i in range(4)),
        size=64,
    )
    one = 64 * 64 * 4
    for budget, expected in ((one // 2, 4), (one, 4), (2 * one, 2), (3 * one, 2), (4 * one, 1)):
        stages = cut_by_weight(model, budget)
        check_flow(model, stages)
        assert len(stages) == expected
        for stage in stages:
            small = stage_model(model, stage, dict.fromkeys(stage.reads, (ir.DataType.FLOAT, None)))
            held = sum(v.const_value.nbytes for v in small.graph.initializers.values())
            assert held <= max(budget, one)


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


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_any_graph(parts):
    model = built(*parts)
    check_flow(model, cut_everywhere(model))
    for budget in (1, 100, 10_000):
        check_flow(model, cut_by_weight(model, budget))


@pytest.mark.parametrize("groups", [0, 1])
def test_no_more_cuts_than_asked_for(groups):
    model = parsed(BLOCK, "wq", "wk", "wo", "wg")
    stages = cut(model, reader_groups(matmuls(model))[:groups])
    check_flow(model, stages)
    assert len(stages) == groups + 1
    assert reader_groups([]) == []
