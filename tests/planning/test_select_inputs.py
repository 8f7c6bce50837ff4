"""Codes where TensorRT wants them: what weighted nodes read, skips of residuals, nothing else."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from qcompile.graph.dump import dump
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.graph.walk import is_constant
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.plan import Plan
from qcompile.planning.plan import activations_of, assemble
from qcompile.planning.ranges import Choice
from qcompile.planning.select import Selection
from qcompile.planning.select_inputs import ATTENTION, NO_SUM, select_inputs
from qcompile.planning.wishes import Wishes
from qcompile.runtime.ort import Session
from qcompile.targets.target import Placement
from qcompile.targets.tensorrt import TENSORRT
from tests.planning.tools import HOLDS, all_values, feeds_of, graph_of, normal

PICTURE = "float[1, 16, 8, 8] x"
WEIGHTS = {
    "w": normal(1, 16, 16, 3, 3, scale=0.1),
    "v": normal(2, 16, 16, 1, 1, scale=0.3),
    "wide": normal(3, 16, 32, 1, 1, scale=0.2),
    "few": normal(4, 8, 16, 1, 1),
    "b": normal(5, 16),
    "s": normal(6, 32, 32, scale=0.2),
    "d": normal(7, 16, 1, 3, 3),
    "row": normal(8, 1, 16, 1, 1),
    "from": np.asarray([1], np.int64),
    "to": np.asarray([9], np.int64),
    "axes": np.asarray([2], np.int64),
}
PADS = "<pads=[1, 1, 1, 1]>"


@dataclass(frozen=True)
class Made:
    """A graph, what was chosen in it, and the graph with its pairs."""

    source: ir.Model
    selection: Selection
    plan: Plan
    model: ir.Model

    def precisions(self) -> dict[str, str]:
        return {name: entry.precision for name, entry in self.selection.nodes.items()}

    def reason(self, node: str) -> str:
        return self.selection.nodes[node].reason

    def rounded(self) -> set[str]:
        return set(self.selection.activations)


def made(model: ir.Model, wishes: Wishes | None = None, scheme: str = "int8") -> Made:
    selection = select_inputs(model, TENSORRT, scheme, wishes or Wishes())
    choices = {name: Choice(-3.0, 4.0, "minmax", {}) for name in activations_of(selection)}
    plan = assemble(model, selection, TENSORRT, "89", scheme, choices)
    written = model.clone()
    run_passes(written, [InsertQdq(plan=plan, hand_on=False)], holds=HOLDS)
    verify(written)
    return Made(model, selection, plan, written)


def graph(body: str, inputs: str = PICTURE, outputs: str = "y", **more: np.ndarray) -> ir.Model:
    names = {**WEIGHTS, **more}
    used = {name: array for name, array in names.items() if name in _words(body)}
    return graph_of(inputs, body, outputs, **used)


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


# Any graph


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """Return a graph of convolutions, sums, joins and moves over pictures of 16 channels."""
    lines: list[str] = []
    values = ["x"]

    def pick() -> str:
        return draw(st.sampled_from(values[-5:]))

    for number in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["conv", "relu", "add", "join", "move", "pool", "cut"]))
        out, name = f"t{number}", f"n{number}"
        if kind == "conv":
            weight = draw(st.sampled_from(["w", "v", "d"]))
            about = "<group=16, pads=[1, 1, 1, 1]>" if weight == "d" else PADS
            about = "" if weight == "v" else about
            lines.append(f"[{name}] {out} = Conv {about} ({pick()}, {weight}, b)")
        elif kind == "relu":
            lines.append(f"[{name}] {out} = {draw(st.sampled_from(['Relu', 'Sigmoid']))}({pick()})")
        elif kind == "add":
            lines.append(f"[{name}] {out} = Add({pick()}, {pick()})")
        elif kind == "join":
            lines.append(f"[{name}.join] {out}.j = Concat <axis=1> ({pick()}, {pick()})")
            lines.append(f"[{name}] {out} = Conv({out}.j, wide)")
        elif kind == "move":
            lines.append(f"[{name}] {out} = Transpose <perm=[0, 1, 3, 2]> ({pick()})")
        elif kind == "pool":
            about = "kernel_shape=[3, 3], pads=[1, 1, 1, 1]"
            lines.append(f"[{name}] {out} = MaxPool <{about}> ({pick()})")
        else:
            lines.append(f"[{name}.cut] {out}.c = Slice({pick()}, from, to, axes)")
            lines.append(f'[{name}] {out} = Resize <mode="nearest"> ({out}.c, , , whole)')
        values.append(out)
    body = "\n".join(line.replace(".", "_") for line in lines) + f"\n[last] y = Conv({pick()}, v)"
    return graph(body, whole=np.asarray([1, 16, 8, 8], np.int64))


def readers(model: ir.Model) -> list[tuple[ir.Node, ir.Node, int]]:
    """Return each DequantizeLinear of an activation with a reader and the input that it is."""
    return [
        (node, use.node, use.idx)
        for node in model.graph
        if node.op_type == "DequantizeLinear" and not is_constant(node.inputs[0])
        for use in node.outputs[0].uses()
    ]


@given(networks(), st.sampled_from(["int8", "fp8"]))
def test_only_weighted_nodes_and_skips_read_rounded_values(model: ir.Model, scheme: str) -> None:
    note(dump(model))
    result = made(model, scheme=scheme)
    codes = {name for name, found in result.precisions().items() if found == scheme}
    for _, reader, index in readers(result.model):
        assert reader.name in codes
        assert (reader.op_type, index) == ("Conv", 0) or reader.op_type == "Add"
    for node in result.model.graph:
        rounded = [_comes_from_codes(value) for value in node.inputs]
        if node.op_type == "Conv":
            assert rounded[:2] == [node.name in codes] * 2, "both operands, or none"
            assert not any(rounded[2:]), "a bias stays in float"
        elif node.op_type == "Add":
            assert sum(rounded) == (node.name in codes), "one skip, and only of a residual"
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert not any(rounded)


def _comes_from_codes(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear"


@given(networks())
def test_each_value_is_rounded_once(model: ir.Model) -> None:
    rounded = Counter(
        node.inputs[0].name
        for node in made(model).model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None
    )
    assert set(rounded.values()) <= {1}


@given(networks())
def test_a_residual_adds_to_a_convolution_that_nothing_else_reads(model: ir.Model) -> None:
    result = made(model)
    codes = {name for name, found in result.precisions().items() if found == "int8"}
    for node in result.model.graph:
        if node.op_type != "Add" or node.name not in codes:
            continue
        (other,) = [v for v in node.inputs if not _comes_from_codes(v)]
        assert other is not None
        maker = other.producer()
        assert maker is not None
        assert maker.op_type == "Conv"
        assert maker.name in codes
        assert len(other.uses()) == 1
        assert not other.is_graph_output()


@given(networks())
def test_a_tied_grid_covers_the_values(model: ir.Model) -> None:
    """A grid is taken from another value's range, so that must hold all numbers."""
    note(dump(model))
    selection = select_inputs(model, TENSORRT, "int8", Wishes())
    (seen,) = all_values(model, feeds_of(model, 1)) if selection.tied else [{}]
    for name, root in selection.tied.items():
        assert root not in selection.tied, "a chain of ties ends at once"
        assert seen[root].min() <= seen[name].min()
        assert seen[root].max() >= seen[name].max()


@given(networks(), st.sampled_from(["n1*", "*"]))
def test_excluded_nodes_compute_in_float(model: ir.Model, pattern: str) -> None:
    result = made(model, Wishes(patterns=(pattern,)))
    for node in model.graph:
        if pattern == "*" or str(node.name).startswith("n1"):
            assert result.precisions()[str(node.name)] == "float"
    if pattern == "*":
        assert not result.plan.tensors


@given(networks())
def test_the_graph_with_pairs_runs(model: ir.Model) -> None:
    (feeds,) = feeds_of(model, 1)
    found = Session(made(model).model, optimize=False).run(feeds)["y"]
    assert np.isfinite(found).all()


# One pattern each


def test_no_pair_stands_between_a_convolution_and_its_activation() -> None:
    result = made(graph(f"a = Conv {PADS} (x, w, b)\nr = Relu(a)\ny = Conv(r, v)"))
    assert result.rounded() == {"x", "r"}
    assert result.selection.placement is Placement.INPUTS


def test_two_readers_share_a_pair() -> None:
    result = made(graph(f"a = Conv {PADS} (x, w)\nc = Conv(x, v)\ny = Mul(a, c)"))
    assert result.rounded() == {"x"}
    assert len({node for node, _, _ in readers(result.model)}) == 1


def test_the_skip_of_a_residual_is_rounded_and_the_branch_is_not() -> None:
    body = f"a = Conv {PADS} (x, w)\nr = Relu(a)\nc = Conv(r, v)\n[sum] y = Add(c, x)"
    result = made(graph(body))
    assert result.rounded() == {"x", "r"}
    assert result.precisions()["sum"] == "int8"


@pytest.mark.parametrize("order", ["a, c", "c, a"])
def test_where_both_come_from_convolutions_the_later_one_takes_the_sum(order: str) -> None:
    result = made(graph(f"a = Conv(x, v)\nc = Conv {PADS} (x, w)\n[sum] y = Add({order})"))
    assert result.rounded() == {"x", "a"}


@pytest.mark.parametrize(
    "body",
    {
        "constant": "c = Conv(x, v)\n[sum] y = Add(c, row)",
        "broadcast": "c = Conv(x, v)\ng = GlobalAveragePool(x)\n[sum] y = Add(c, g)",
        "read twice": "c = Conv(x, v)\nr = Relu(c)\n[sum] t = Add(c, x)\ny = Add(t, r)",
        "itself": "c = Conv(x, v)\n[sum] y = Add(c, c)",
        "behind an activation": "c = Conv(x, v)\nr = Relu(c)\n[sum] y = Add(r, x)",
    }.items(),
    ids=lambda item: item[0],
)
def test_other_sums_stay_in_float(body: tuple[str, str]) -> None:
    result = made(graph(body[1]))
    assert result.precisions()["sum"] == "float"
    assert result.reason("sum") == NO_SUM


def test_an_output_of_the_model_is_no_branch() -> None:
    result = made(graph("c = Conv(x, v)\n[sum] y = Add(c, x)", outputs="y, c"))
    assert result.precisions()["sum"] == "float"


def test_a_sum_behind_a_float_convolution_stays_in_float() -> None:
    body = "[left] c = Conv(x, v)\n[sum] y = Add(c, x)"
    result = made(graph(body), Wishes(patterns=("left",)))
    assert not result.rounded()
    assert result.reason("left") == "excluded by name (left)"


def test_an_excluded_sum_says_so() -> None:
    result = made(graph("c = Conv(x, v)\n[sum] y = Add(c, x)"), Wishes(operators=("Add",)))
    assert result.rounded() == {"x"}
    assert result.reason("sum") == "excluded by operator (Add)"


def test_branches_of_a_concat_share_its_grid() -> None:
    body = """a = Conv(x, v)
        r = Relu(a)
        c = Conv(r, v)
        t = Transpose <perm=[0, 1, 3, 2]> (r)
        j = Concat <axis=1> (t, c)
        y = Conv(j, wide)"""
    result = made(graph(body))
    assert result.rounded() == {"x", "r", "j"}
    assert result.selection.tied == {"r": "j"}
    assert result.plan.tensors["r"].scale == result.plan.tensors["j"].scale


def test_ties_run_through_joins_of_joins() -> None:
    body = """a = Conv(x, v)
        c = Conv(a, v)
        j = Concat <axis=1> (a, c)
        k = Conv(j, wide)
        l = Concat <axis=2> (j, j)
        y = Conv(l, wide)"""
    result = made(graph(body))
    assert result.selection.tied == {"a": "l", "j": "l"}


@pytest.mark.parametrize(
    "move",
    ["Slice(r, from, to, axes)", "MaxPool <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (r)"],
    ids=["cut", "pool"],
)
def test_a_branch_that_loses_numbers_keeps_its_own_grid(move: str) -> None:
    body = f"""a = Conv(x, v)
        r = Relu(a)
        c = Conv(r, v)
        t = {move}
        j = Concat <axis=2> (t, c)
        y = Conv(j, v)"""
    result = made(graph(body))
    assert result.rounded() == {"x", "r", "j"}
    assert not result.selection.tied


def test_attention_stays_in_float() -> None:
    body = """[q] q = MatMul(x, s)
        [k] k = MatMul(x, s)
        t = Transpose <perm=[0, 2, 1]> (k)
        [scores] a = MatMul(q, t)
        p = Softmax(a)
        [mix] m = MatMul(p, x)
        [out] y = MatMul(m, s)"""
    result = made(graph(body, "float[2, 24, 32] x"))
    assert result.rounded() == {"x", "m"}
    assert result.precisions()["scores"] == result.precisions()["mix"] == "float"
    assert result.reason("scores") == result.reason("mix") == ATTENTION
    assert result.precisions()["out"] == "int8"


def test_small_ones_stay_in_float_and_say_why() -> None:
    result = made(graph("a = Sigmoid(x)\n[few] y = Conv(a, few)"))
    assert result.reason("few") == TENSORRT.small["channels"]
    row = made(graph("[row] y = MatMul(x, s)", "float[1, 32] x"))
    assert row.reason("row") == TENSORRT.small["row"]
    assert not row.rounded()


def test_a_weight_that_is_read_along_two_axes_is_quantized_for_the_first() -> None:
    body = "[by_columns] a = MatMul(x, s)\n[by_rows] y = Gemm <transB=1> (a, s)"
    result = made(graph(body, "float[4, 32] x"))
    assert result.precisions() == {"by_columns": "int8", "by_rows": "float"}
    assert "along its other axis" in result.reason("by_rows")


def test_infinite_values_are_not_rounded() -> None:
    wishes = Wishes(tensors={"x": "x holds infinite values"})
    result = made(graph("[one] a = Conv(x, v)\ny = Conv(a, v)"), wishes)
    assert result.rounded() == {"a"}
    assert "infinite" in result.reason("one")


@pytest.mark.parametrize(("end", "left"), [("first", "n1"), ("last", "n3")])
def test_ends_are_left_in_float(end: str, left: str) -> None:
    body = "[n1] a = Conv(x, v)\n[n2] c = Conv(a, v)\n[n3] y = Conv(c, v)"
    result = made(graph(body), Wishes(**{end: True}))
    assert {n for n, p in result.precisions().items() if p == "float"} == {left}


def test_scales_have_rank_0_or_the_channels_axis_and_zero_points_are_0() -> None:
    model = made(graph(f"a = Conv {PADS} (x, w, b)\ny = Conv <group=16, pads=[1,1,1,1]> (a, d)"))
    for node in model.model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = node.inputs[1], node.inputs[2]
        assert scale is not None
        assert scale.const_value is not None
        assert zero is not None
        assert zero.const_value is not None
        weight = is_constant(node.inputs[0])
        assert scale.const_value.shape.rank() == (1 if weight else 0)
        assert (scale.const_value.numpy() > 0).all()
        assert not zero.const_value.numpy().any()
        assert zero.dtype == ir.DataType.INT8
