"""Which weights are stored in few bits, and the reasons of the others."""

import numpy as np
import pytest

from qcompile.errors import PlanError, RecipeError
from qcompile.plan import NodePlan, Plan, WeightPlan
from qcompile.planning.weights import LEAST, WeightSelection, layer_nodes, select_weights
from qcompile.planning.wishes import Wishes
from qcompile.recipe import Weights
from qcompile.targets.onnx_std import ONNX_STD
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.tensorrt import TENSORRT, TENSORRT_RTX
from tests.planning.tools import graph_of, normal

K, N = 64, 48
W = normal(0, K, N)
ROWS = f"float[3, {K}] x"


def selected(model, target=ORT_CPU, *, edited=None, wishes=Wishes(), **options):  # noqa: B008
    return select_weights(model, target, Weights(**options), wishes, edited)


@pytest.mark.parametrize(
    ("body", "inputs", "weights"),
    [
        ("[n] y = MatMul(x, w)", ROWS, {"w": W}),
        ("[n] y = MatMul(x, w)", f"float[2, 1, 3, {K}] x", {"w": W}),
        ("[n] y = MatMul(x, w)", f"float[{K}] x", {"w": W}),
        ("[n] y = MatMul(x, w)", f"float16[3, {K}] x", {"w": W.astype(np.float16)}),
        ("[n] y = Gemm(x, w, b)", ROWS, {"w": W, "b": normal(1, N)}),
        ("[n] y = Gemm <transB = 1> (x, w)", ROWS, {"w": np.ascontiguousarray(W.T)}),
    ],
)
def test_what_is_stored_in_few_bits(body, inputs, weights):
    outputs = "float16[] y" if "float16" in inputs else "y"
    model = graph_of(inputs, body, outputs, **weights)
    found = selected(model)
    assert found.nodes["n"].precision == "weight-only"
    assert found.nodes["n"].reason == "constant weights, stored in 4 bits"
    (layer,) = found.layers
    assert (layer.name, layer.rows, layer.columns) == ("w", N, K)
    assert layer.scale_type == ("float16" if "float16" in inputs else "float32")
    np.testing.assert_array_equal(layer.values(), W.T.astype(layer.scale_type))
    np.testing.assert_array_equal(layer.shaped(layer.values()), weights["w"])
    assert layer.values().shape == (N, K)
    assert [node.name for node in layer_nodes(model, found)] == ["n"]


SMALL = normal(0, 32, 32)
REFUSED = {
    "an activation": (
        "[n] y = MatMul(x, z)",
        f"{ROWS}, float[{K}, {N}] z",
        {},
        "both inputs are activations",
    ),
    "the constant first": (
        "[n] y = MatMul(w, x)",
        f"float[{N}, 3] x",
        {"w": W},
        "its first input is the constant one",
    ),
    "batches": (
        "[n] y = MatMul(x, w)",
        f"float[2, 3, {K}] x",
        {"w": normal(0, 2, K, N)},
        "its weight is no matrix",
    ),
    "few": (
        "[n] y = MatMul(x, w)",
        "float[3, 32] x",
        {"w": SMALL},
        f"fewer than {LEAST} weights",
    ),
    "alpha": ("[n] y = Gemm <alpha = 0.5> (x, w)", ROWS, {"w": W}, "alpha, beta or transA"),
    "beta": (
        "[n] y = Gemm <beta = 2.0> (x, w, b)",
        ROWS,
        {"w": W, "b": normal(1, N)},
        "alpha, beta or transA",
    ),
    "transA": ("[n] y = Gemm <transA = 1> (x, w)", f"float[{K}, 3] x", {"w": W}, "transA"),
    "doubles": (
        "[n] y = MatMul(x, w)",
        f"double[3, {K}] x",
        {"w": W.astype(np.float64)},
        "weights of double: float32 and float16 have a form",
    ),
    "no weights": ("[n] y = Relu(x)", ROWS, {}, "no weights"),
    "a table": (
        "[n] y = Gather(w, x)",
        "int64[3] x",
        {"w": W},
        "a table look-up",
    ),
    "a convolution": (
        "[n] y = Conv(x, w)",
        "float[1, 16, 8, 8] x",
        {"w": normal(0, 16, 16, 3, 3)},
        "no kernel reads codes of few bits",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stays_in_float_and_why(case):
    body, inputs, weights, reason = REFUSED[case]
    outputs = "double[] y" if "double" in inputs else "y"
    model = graph_of(inputs, body, outputs, **weights)
    found = selected(model)
    assert found.nodes["n"].precision == "float"
    assert reason in found.nodes["n"].reason
    assert found.layers == []
    assert list(layer_nodes(model, found)) == []


def test_what_is_in_a_subgraph_stays_in_float():
    body = f"""y = If (c) <
        then_branch = a () => (float[3, {N}] p) {{ [inner] p = MatMul(x, w) }},
        else_branch = b () => (float[3, {N}] q) {{ [other] q = MatMul(x, w) }}
    >"""
    found = selected(graph_of(f"{ROWS}, bool c", body, w=W))
    for name in ("inner", "other"):
        assert found.nodes[name].reason == "inside If, Loop or Scan: control flow stays in float"
    assert found.layers == []


TAKEN = {
    "awq": "rtn",
    "rtn": "rtn",
    "auto": "gptq",
    "gptq": "gptq",
    "awq+gptq": "gptq",
    "adaround": "adaround",
}
"""Algorithm that is asked for to that of a convolution."""


def test_convolutions_where_the_target_has_a_form():
    weights = {"w": normal(0, 16, 16, 3, 3), "g": normal(1, 16, 4, 6, 6)}
    body = "[n] a = Conv(x, w)\n[m] y = Conv <group = 4> (a, g)"
    model = graph_of("float[1, 16, 8, 8] x", body, **weights)
    for asked, taken in TAKEN.items():
        found = selected(model, ONNX_STD, operators=("Conv",), algorithm=asked)
        (layer,) = found.layers
        assert (layer.rows, layer.columns, layer.by_rows) == (16, 144, True)
        assert (layer.options.group_size, layer.options.algorithm) == (0, taken)
        assert "grouped convolution" in found.nodes["m"].reason
        np.testing.assert_array_equal(layer.shaped(layer.values()), weights["w"])
    by_default = selected(model, ONNX_STD)
    assert by_default.nodes["n"].reason == "Conv is not among the operators of [weights]"


def test_a_shared_weight_is_one_layer():
    body = "[a] h = MatMul(x, w)\n[b] k = Relu(h)\n[c] y = MatMul(k, w)"
    found = selected(graph_of(ROWS.replace("64", "48"), body, w=normal(0, 48, 48)))
    assert [layer.node.name for layer in found.layers] == ["a"]
    assert [found.nodes[n].precision for n in "abc"] == ["weight-only", "float", "weight-only"]


def test_a_weight_cannot_be_read_by_rows_and_by_columns():
    body = "[a] h = MatMul(x, w)\n[b] y = Gemm <transB = 1> (h, w)"
    found = selected(graph_of("float[3, 48] x", body, w=normal(0, 48, 48)))
    assert found.nodes["a"].precision == "weight-only"
    assert found.nodes["b"].reason == "its weight is read by rows and by columns"


def test_wishes_are_kept():
    body = "[a] h = MatMul(x, w)\n[b] k = Relu(h)\n[c] y = MatMul(k, v)"
    model = graph_of(ROWS, body, w=W, v=normal(1, N, K))
    for wishes in (Wishes(patterns=("a*",)), Wishes(first=True)):
        found = selected(model, wishes=wishes)
        assert [layer.node.name for layer in found.layers] == ["c"]
    assert selected(model, wishes=Wishes(operators=("MatMul",))).layers == []


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (ORT_CPU, {"bits": 2, "group_size": 16}, "group size 16: for 2 bits ort-cpu takes 0, 32"),
        (ORT_CPU, {"bits": 2, "group_size": 256}, "0.01 of the speed"),
        (ORT_CPU, {"bits": 8, "accuracy_level": 0}, "accuracy level 0: for 8 bits ort-cpu takes 4"),
        (ORT_CPU, {"bits": 2, "accuracy_level": 0}, "unpack all weights in each run"),
        (ONNX_STD, {"accuracy_level": 4}, "accuracy level 4: for 4 bits onnx takes none"),
        (ORT_CPU, {"operators": ("Conv",)}, "ort-cpu stores no weights of Conv in few bits: no k"),
        (ONNX_STD, {"operators": ("Relu",)}, "onnx stores no weights of Relu in few bits: it has"),
        (TENSORRT, {"asymmetric": True}, "--asymmetric: tensorrt takes zero points of 0 only"),
        (TENSORRT, {"bits": 8}, "tensorrt takes weights of 3, 4 bits, not 8"),
        (TENSORRT, {"group_size": 32}, "group size 32: for 4 bits tensorrt takes 64, 128"),
        (TENSORRT_RTX, {"group_size": 0}, "group size 0: for 4 bits tensorrt-rtx takes 16, 32, 64"),
        (TENSORRT, {"accuracy_level": 4}, "accuracy level 4: for 4 bits tensorrt takes none"),
        (TENSORRT, {"operators": ("Conv",)}, "int4 in groups is taken by MatMul and Gemm alone"),
    ],
)
def test_what_a_target_has_not_is_refused(target, options, message):
    with pytest.raises(RecipeError) as found:
        selected(graph_of(ROWS, "[n] y = MatMul(x, w)", w=W), target, **options)
    assert message in str(found.value)


def test_rows_that_end_in_a_part_of_a_group_stay_in_float_where_groups_must_be_whole():
    body = "[a] h = MatMul(x, w)\n[b] y = MatMul(h, v)"
    model = graph_of("float[3, 128] x", body, w=normal(0, 128, 96), v=normal(1, 96, 64))
    found = selected(model, TENSORRT, group_size=64)
    assert [layer.name for layer in found.layers] == ["w"]
    assert found.nodes["b"].precision == "float"
    assert found.nodes["b"].reason == "each output sums 96 weights, no multiple of 64"
    assert len(selected(model, TENSORRT_RTX, group_size=32).layers) == 2
    assert len(selected(model, ORT_CPU, group_size=64).layers) == 2


def test_the_target_decides_the_sign_of_scales_and_a_cast_their_type():
    model = graph_of("float[2, 128] x", "[n] y = MatMul(x, w)", w=normal(0, 128, 32))
    weights = Weights(group_size=64)
    for target, signed in ((ORT_CPU, True), (TENSORRT, False)):
        for scales in (None, "float16"):
            found = select_weights(model, target, weights, Wishes(), None, scales)
            (layer,) = found.layers
            assert layer.signed == signed
            assert layer.scale_type == (scales or "float32")
            assert layer.shaped(layer.values()).dtype == np.float32, "the weight is what it was"


BODY = "[a] h = MatMul(x, w)\n[b] k = Relu(h)\n[c] y = MatMul(k, v)"


def two():
    return graph_of(ROWS, BODY, w=W, v=normal(1, N, K))


def plan_of(found: WeightSelection, **weights: WeightPlan) -> Plan:
    all_of_them = {
        layer.name: WeightPlan(bits=4, group_size=128, accuracy_level=4) for layer in found.layers
    }
    return Plan(
        model="m", target="ort-cpu", device="vnni", scheme="weight-only", tensors={},
        weights={**all_of_them, **weights}, nodes=found.nodes,
    )  # fmt: skip


def test_an_edited_plan_is_followed():
    model = two()
    edited = WeightPlan(bits=8, group_size=32, symmetric=False, algorithm="awq", accuracy_level=4)
    found = selected(model, edited=plan_of(selected(model), v=edited), bits=3, algorithm="gptq")
    w, v = (layer.options for layer in found.layers)
    assert (w.bits, w.group_size, w.asymmetric, w.algorithm) == (4, 128, False, "rtn")
    assert (v.bits, v.group_size, v.asymmetric, v.algorithm) == (8, 32, True, "awq")
    assert (w.accuracy_level, v.accuracy_level) == (4, 4)
    assert found.nodes["c"].reason == "constant weights, stored in 8 bits"


def test_an_edited_accuracy_level_is_followed():
    model = two()
    exact = WeightPlan(bits=4, group_size=128, accuracy_level=0)
    found = selected(model, edited=plan_of(selected(model), v=exact))
    assert [layer.options.accuracy_level for layer in found.layers] == [4, 0]


@pytest.mark.parametrize("how", ["float", "left out"])
def test_a_node_that_the_plan_leaves_in_float_stays_there(how):
    model = two()
    plan = plan_of(selected(model))
    nodes = dict(plan.nodes)
    if how == "float":
        nodes["c"] = NodePlan(op="MatMul", precision="float", reason="I say so")
    else:
        del nodes["c"]
    found = selected(model, edited=plan.model_copy(update={"nodes": nodes}))
    assert [layer.name for layer in found.layers] == ["w"]
    assert found.nodes["c"].precision == "float"
    assert found.nodes["c"].reason == ("I say so" if how == "float" else "not in the plan")


def test_a_weight_without_an_entry_is_stored_as_the_recipe_says():
    model = two()
    plan = plan_of(selected(model))
    weights = {name: entry for name, entry in plan.weights.items() if name == "w"}
    found = selected(model, edited=plan.model_copy(update={"weights": weights}), bits=3)
    assert [layer.options.bits for layer in found.layers] == [4, 3]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"gone": WeightPlan(bits=4, group_size=32)}, "--plan: weight gone is not in the model"),
        ({"h": WeightPlan(bits=4, group_size=32)}, "--plan: weight h is not in the model"),
        (
            {"v": WeightPlan(bits=2, group_size=16)},
            "--plan: weight v: group size 16: for 2 bits ort-cpu takes 0, 32, 64, 128",
        ),
        (
            {"v": WeightPlan(bits=8, group_size=32, accuracy_level=0)},
            "--plan: weight v: accuracy level 0: for 8 bits ort-cpu takes 4",
        ),
    ],
)
def test_a_weight_that_cannot_be_as_planned_is_refused(weights, message):
    model = two()
    with pytest.raises(PlanError) as found:
        selected(model, edited=plan_of(selected(model), **weights))
    assert message in str(found.value)


def test_a_node_that_cannot_be_as_planned_is_refused():
    model = two()
    plan = plan_of(selected(model))
    nodes = {**plan.nodes, "b": NodePlan(op="Relu", precision="weight-only", reason="")}
    with pytest.raises(PlanError, match="--plan: node b has to stay in float: no weights"):
        selected(model, edited=plan.model_copy(update={"nodes": nodes}))


def test_a_plan_whose_float_nodes_became_half_is_followed():
    model = two()
    plan = plan_of(selected(model))
    half = NodePlan(op="MatMul", precision="fp16", reason="")
    found = selected(model, edited=plan.model_copy(update={"nodes": {**plan.nodes, "c": half}}))
    assert [layer.name for layer in found.layers] == ["w"]
    assert found.nodes["c"].precision == "float"
    assert found.nodes["c"].reason == "the plan says so"


def test_a_plan_cannot_break_off_a_group():
    model = graph_of("float[3, 192] x", "[n] y = MatMul(x, w)", w=normal(0, 192, 64))
    found = selected(model, TENSORRT, group_size=64)
    plan = plan_of(found, w=WeightPlan(bits=4, group_size=128, form="dequantize"))
    with pytest.raises(PlanError) as error:
        selected(model, TENSORRT, edited=plan.model_copy(update={"target": "tensorrt"}))
    assert "node n has to stay in float: each output sums 192 weights, no multiple of 128" in str(
        error.value
    )


def test_a_single_group_stays_in_float_where_no_kernel_reads_it():
    model = graph_of("float[2, 64] x", "[n] y = MatMul(x, w)", w=normal(0, 64, 64))
    found = select_weights(model, TENSORRT, Weights(group_size=64), Wishes())
    assert found.nodes["n"].reason.startswith("each output sums 64 weights, one group")
    assert select_weights(model, ORT_CPU, Weights(group_size=64), Wishes()).layers
