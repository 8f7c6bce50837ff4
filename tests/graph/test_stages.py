"""Stages: a partition of the graph, with exactly the activations that flow between its parts."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from qcompile.graph.edit import lazy_tensor
from qcompile.graph.stages import cut, cut_by_weight, reader_groups, stage_model
from tests.graph.graphs import built, control_flow, graphs, parsed

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


def test_what_a_subgraph_captures_is_read():
    model = control_flow()
    stages = cut_everywhere(model)
    check_flow(model, stages)
    assert [written(s) for s in stages] == [
        ["a"],
        ["b", "i"],
        ["d", "yes", "go", "l", "r"],
        ["y"],
    ]
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
