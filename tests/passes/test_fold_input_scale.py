"""Input scales of AWQ: what takes the division, what does not, and that outputs stay."""

from dataclasses import replace

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qcompile.errors import PlanError
from qcompile.graph.runner import run_passes
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.plan import WeightPlan
from tests.passes.weights import HOLDS, Rewritten, plan_of, relative, rewritten, solved_for
from tests.planning.tools import feeds_of, graph_of, normal

K = 48
X = f"float[2, 3, {K}] x"
S = np.exp(normal(7, K, scale=0.8))
MUL = "divided by a Mul of its own: "
SQUARE = [normal(i, K, K, scale=0.2) for i in range(4)]
ROW = [normal(i, K) for i in range(10, 14)]

SIMPLIFIED = "SimplifiedLayerNormalization <axis=-1, epsilon=0.00001> (x, g)"
SKIP = "com.microsoft.SkipLayerNormalization <epsilon=0.00001> (x, x, g, c)"
SKIP_SIMPLE = "com.microsoft.SkipSimplifiedLayerNormalization <epsilon=0.00001> (x, x, g, c)"
FOLDS = {
    "gamma": "n = Tanh(x)\n v = Mul(n, g)",
    "gamma first": "n = Tanh(x)\n v = Mul(g, n)",
    "gamma of three axes": "n = Tanh(x)\n v = Mul(n, g3)",
    "gamma and beta": "n = Tanh(x)\n m = Mul(n, g)\n v = Add(m, c)",
    "LayerNormalization": "v = LayerNormalization(x, g, c)",
    "LayerNormalization without bias": "v = LayerNormalization(x, g)",
    "linear": "v = MatMul(x, u)",
    "linear with bias": "p = MatMul(x, u)\n v = Add(c, p)",
    "linear, relu": "p = MatMul(x, u)\n v = Relu(p)",
    "gated": "p = MatMul(x, t)\n a = Sigmoid(p)\n b = MatMul(x, u)\n v = Mul(a, b)",
    "gate last": "p = MatMul(x, t)\n a = Sigmoid(p)\n b = MatMul(x, u)\n v = Mul(b, a)",
    "half of a linear": "p = MatMul(x, u)\n v = Mul(p, half)",
}
WEIGHTS = {
    "w": SQUARE[0],
    "w2": SQUARE[1],
    "u": SQUARE[2],
    "t": SQUARE[3],
    "g": ROW[0],
    "c": ROW[1],
    "g3": ROW[0].reshape(1, 1, K),
    "half": np.float32(0.5).reshape(()),
}


def model_of(body: str, outputs: str = "y, z", inputs: str = X) -> ir.Model:
    used = {name: w for name, w in WEIGHTS.items() if f"{name})" in body or f"{name}," in body}
    named = "\n".join(f"[n{i}] {line.strip()}" for i, line in enumerate(body.split("\n")))
    return graph_of(inputs, named, outputs, **used)


def scaled(form: str = "dequantize", **more: object) -> WeightPlan:
    return WeightPlan(bits=4, group_size=16, input_scaled=True, algorithm="awq", form=form, **more)


def awq(model: ir.Model, *others: str, form: str = "dequantize", **more: object) -> Rewritten:
    """Write w and w2 with the scale S, others without a scale."""
    plans = {name: scaled(form=form) for name in ("w", "w2")}
    plans |= {name: WeightPlan(bits=4, group_size=16, form=form, **more) for name in others}
    return rewritten(model, plans, scales={"w": S, "w2": S})


def operators(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in model.graph)


def check(done: Rewritten, limit: float = 1e-5) -> None:
    for feeds in feeds_of(done.source):
        exact, found = done.expected(feeds), done.found(feeds)
        for name in exact:
            assert relative(found[name], exact[name]) < limit


READERS = "\n y = MatMul(v, w)\n z = MatMul(v, w2)"


@pytest.mark.parametrize("form", ["dequantize", "nbits"])
@pytest.mark.parametrize("case", FOLDS)
def test_constants_take_the_division(case, form):
    model = model_of(FOLDS[case] + READERS)
    done = awq(model, form=form)
    assert not done.refusals["fold-input-scale"]
    assert operators(done.model).count("Mul") == operators(model).count("Mul")
    check(done)


@pytest.mark.parametrize("case", [case for case in FOLDS if "u)" in FOLDS[case]])
def test_rows_of_solved_weights_are_divided_in_their_scales(case):
    done = awq(model_of(FOLDS[case] + READERS), "u")
    assert not done.refusals["fold-input-scale"]
    stored = done.model.graph.initializers
    np.testing.assert_array_equal(
        stored["u.scale"].const_value.numpy().T, done.solved["u"].scales / S[:, None]
    )
    codes = stored["u.codes"].const_value.numpy().astype(int).T + 8
    np.testing.assert_array_equal(codes, done.solved["u"].codes)
    check(done)


def test_a_gemm_and_its_bias_are_divided_by_rows():
    body = "v = Gemm <transB=1> (x, u, c)\n y = Gemm <transB=1> (v, w, c)"
    model = model_of(body, "y", inputs=f"float[5, {K}] x")
    for plans in (
        {"w": scaled()},
        {"w": scaled(), "u": WeightPlan(bits=8, group_size=0, form="dequantize")},
    ):
        done = rewritten(model, plans, scales={"w": S})
        assert not done.refusals["fold-input-scale"]
        assert "c" in done.model.graph.initializers, "the other Gemm reads it undivided"
        check(done)


NOT_FOLDED = {
    "an input": ("\n y = MatMul(x, w)\n z = MatMul(x, w2)"[2:], "no node"),
    "other readers": ("n = Tanh(x)\n v = Mul(n, g)" + READERS + "\n q = Tanh(v)", "others read"),
    "an output": ("n = Tanh(x)\n v = Mul(n, g)" + READERS, "the value is an output"),
    "behind Tanh": ("v = Tanh(x)" + READERS, "Tanh makes it"),
    "a residual": ("a = Tanh(x)\n v = Add(a, x)" + READERS, "a sum of values makes it"),
    "beta alone": ("a = Tanh(x)\n v = Add(a, c)" + READERS, "Tanh makes it"),
    "read before": ("a = MatMul(x, u)\n v = Relu(a)" + READERS + "\n q = Tanh(a)", "others read a"),
    "one number": ("a = Tanh(x)\n v = Mul(a, half)" + READERS, "what scales it before is no"),
    "shared": ("a = MatMul(x, u)\n v = MatMul(a, u)" + READERS, "the layer before it shares"),
}


@pytest.mark.parametrize("form", ["dequantize", "nbits"])
@pytest.mark.parametrize("case", NOT_FOLDED)
def test_otherwise_a_mul_divides(case, form):
    body, reason = NOT_FOLDED[case]
    outputs = "y, z, q" if " q = " in body else "y, z, v" if "output" in case else "y, z"
    model = model_of(body, outputs)
    done = awq(model, *(["u"] if case == "shared" else []), form=form)
    (found,) = done.refusals["fold-input-scale"]
    assert found.startswith(MUL + reason)
    assert operators(done.model).count("Mul") == operators(model).count("Mul") + 1
    check(done)


def test_half_precision_scales_and_weights_are_not_divided():
    body = "n = MatMul(x, u)\n v = Relu(n)" + READERS
    half = {name: w.astype(np.float16) for name, w in WEIGHTS.items() if name in ("u", "w", "w2")}
    named = "\n".join(f"[n{i}] {line.strip()}" for i, line in enumerate(body.split("\n")))
    for others, reason in (
        (("u",), "the layer before it has scales in float16"),
        ((), "a product makes it that has no weight in float32"),
    ):
        model = graph_of(f"float16[3, {K}] x", named, "float16[] y, float16[] z", **half)
        plans = {name: scaled(scale_type="float16") for name in ("w", "w2")}
        plans |= {
            n: WeightPlan(bits=4, group_size=16, scale_type="float16", form="dequantize")
            for n in others
        }
        done = rewritten(model, plans, scales={"w": S, "w2": S})
        assert done.refusals["fold-input-scale"] == {MUL + reason: 1}
        feeds = {"x": normal(2, 3, K).astype(np.float16)}
        assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < 5e-3


def test_a_half_precision_gamma_takes_the_division_in_its_own_type():
    body = "[a] n = Tanh(x)\n[b] v = Mul(n, g)\n[c] y = MatMul(v, w)"
    half = {name: WEIGHTS[name].astype(np.float16) for name in ("g", "w")}
    model = graph_of(f"float16[3, {K}] x", body, "float16[] y", **half)
    done = rewritten(model, {"w": scaled(scale_type="float16")}, scales={"w": S})
    assert not done.refusals["fold-input-scale"]
    assert done.model.graph.initializers["g.divided"].dtype is ir.DataType.FLOAT16
    feeds = {"x": normal(2, 3, K).astype(np.float16)}
    assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < 5e-3


def test_a_constant_that_would_overflow_is_left():
    body = "[a] n = Tanh(x)\n[b] v = Mul(n, g)\n[c] y = MatMul(v, w)"
    half = {"g": np.full(K, 6e4, np.float16), "w": (WEIGHTS["w"] * 1e-4).astype(np.float16)}
    model = graph_of(f"float16[3, {K}] x", body, "float16[] y", **half)
    plan = plan_of(model, {"w": scaled(scale_type="float16")})
    solved = solved_for(model, plan.weights, scales={"w": np.full(K, 0.5, np.float32)})
    step = FoldInputScale(plan=plan, solved=solved.__getitem__)
    assert step(model).modified
    assert step.refusals == {MUL + "a constant before it would leave float16": 1}


def test_two_bases_and_float_readers_each_get_their_own():
    """auto may choose AWQ for one of the readers alone."""
    model = model_of("n = Tanh(x)\n v = Mul(n, g)" + READERS)
    plans = {"w": scaled(), "w2": WeightPlan(bits=4, group_size=16, form="dequantize")}
    done = rewritten(model, plans, scales={"w": S})
    assert done.refusals["fold-input-scale"] == {MUL + "others read the same value": 1}
    check(done)
    two = rewritten(model, {"w": scaled(), "w2": scaled()}, scales={"w": S, "w2": 1 / S})
    assert operators(two.model).count("Mul") == 3
    check(two)


def test_a_shared_gamma_is_copied():
    body = "n = Tanh(x)\n v = Mul(n, g)\n q = Mul(x, g)" + READERS
    done = awq(model_of(body, "y, z, q"))
    assert {"g", "g.divided"} <= set(done.model.graph.initializers)
    check(done)


@pytest.mark.parametrize("operator", [SIMPLIFIED, SKIP, SKIP_SIMPLE])
def test_fused_norms_of_language_models(operator):
    body = f"[a] v = {operator}\n[b] y = MatMul(v, w)"
    model = contrib_graph(body)
    done = rewritten(model, {"w": scaled()}, scales={"w": S})
    assert not done.refusals["fold-input-scale"]
    assert "g.divided" in done.model.graph.initializers
    assert ("c.divided" in done.model.graph.initializers) == (operator == SKIP)
    check(done)


def contrib_graph(body: str) -> ir.Model:
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
        f"g ({X}) => (float[2, 3, {K}] y) {{\n{body}\n}}"
    )
    proto = onnx.parser.parse_model(text)
    used = [name for name in ("g", "c", "w") if f"{name})" in body or f"{name}," in body]
    proto.graph.initializer.extend(numpy_helper.from_array(WEIGHTS[n], n) for n in used)
    return ir.from_proto(proto)


@given(st.integers(0, 999), st.sampled_from(sorted(FOLDS)), st.booleans(), st.booleans())
def test_any_scale_in_any_order(seed, case, permuted, also_u):
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.uniform(-6, 6, K)).astype(np.float32)
    order = rng.permutation(K) if permuted else None
    model = model_of(FOLDS[case] + READERS)
    plans = {name: scaled(permuted=permuted) for name in ("w", "w2")}
    if also_u and "u)" in FOLDS[case]:
        plans["u"] = WeightPlan(bits=4, group_size=16, form="dequantize")
    orders = {"w": order, "w2": order}
    done = rewritten(model, plans, orders=orders, scales={"w": scale, "w2": scale})
    assert operators(done.model).count("Gather") == int(permuted), "shared by the readers"
    check(done, 3e-5)


def test_operators_of_others_and_refused_layers_are_left():
    model = contrib_graph("[a] v = com.microsoft.Mul(x, g)\n[b] y = MatMul(v, w)")
    plan = plan_of(model, {"w": scaled()})
    solved = solved_for(model, plan.weights, scales={"w": S})
    next(node for node in model.graph if node.name == "a").domain = "somebody"
    step = FoldInputScale(plan=plan, solved=solved.__getitem__)
    assert step(model).modified
    assert step.refusals == {MUL + "somebody.Mul makes it": 1}
    body = "p = Gemm(x, u)\n v = Gemm <transB=1> (p, u)\n y = MatMul(v, w)"
    both = model_of(body, "y", inputs=f"float[5, {K}] x")
    plain = scaled().model_copy(update={"input_scaled": False})
    done = rewritten(both, {"w": scaled(), "u": plain}, scales={"w": S})
    assert done.refusals["fold-input-scale"] == {
        MUL + "the layer before it is planned and was refused": 1
    }
    assert done.refusals["insert-block-dequantize"] == {
        "its weight is read by rows and by columns": 1
    }


def test_a_second_run_finds_nothing():
    model = model_of("n = Tanh(x)\n v = Mul(n, g)" + READERS)
    plan = plan_of(model, {"w": scaled(), "w2": scaled()})
    solved = solved_for(model, plan.weights, scales={"w": S, "w2": S})
    step = FoldInputScale(plan=plan, solved=solved.__getitem__)
    first, second = run_passes(model, [step, step], holds=HOLDS, paranoid=True)
    assert (first.modified, second.modified) == (True, False)
    assert step.folded("w").input_scale is None


@pytest.mark.parametrize("bad", [np.zeros(K), np.full(K, np.nan), np.ones(3), None])
def test_unusable_scales_are_refused(bad):
    model = model_of("n = Tanh(x)\n y = MatMul(n, w)", "y")
    plan = plan_of(model, {"w": scaled()})
    solved = solved_for(model, plan.weights)["w"]
    scale = None if bad is None else bad.astype(np.float32)
    broken = replace(solved, input_scale=scale)
    with pytest.raises(PlanError, match="weight w: the input scale of its codes is unusable"):
        run_passes(model, [FoldInputScale(plan=plan, solved=lambda _: broken)], holds=HOLDS)
