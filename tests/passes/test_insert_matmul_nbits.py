"""MatMulNBits as ONNX Runtime computes it, for every format, shape, type and level."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PassError, PlanError
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.passes.insert_matmul_nbits import InsertMatmulNbits
from qcompile.plan import WeightPlan
from qcompile.runtime.ort import Session, kernels
from qcompile.targets.ort_cpu import ORT_CPU
from tests.passes.weights import HOLDS, linear, plan_of, relative, rewritten, solved_for
from tests.planning.tools import feeds_of, graph_of, normal

KERNEL = "com.microsoft::MatMulNBits"
WIDTHS = ORT_CPU.weight_only.widths
FORMATS = [(bits, size) for bits, width in WIDTHS.items() for size in width.group_sizes]


def planned(bits: int = 4, group_size: int = 32, **more: object) -> WeightPlan:
    return WeightPlan(bits=bits, group_size=group_size, **more)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
@pytest.mark.parametrize("call", ["MatMul(x, w)", "Gemm(x, w, b)", "Gemm <transB=1> (x, w, b)"])
def test_computes_what_the_solved_values_say(call, bits, group_size, symmetric):
    model = linear(call)
    for level, limit in ((0, 1e-5), (4, 1e-2)):
        plan = planned(bits, group_size, symmetric=symmetric, accuracy_level=level)
        done = rewritten(model, {"w": plan})
        assert kernels(done.model) == {KERNEL: 1}
        for feeds in feeds_of(model):
            exact = done.expected(feeds)["y"]
            for optimize in (False, True):
                assert relative(done.found(feeds, optimize=optimize)["y"], exact) < limit


@given(
    st.integers(0, 999),
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(FORMATS),
    st.booleans(),
)
def test_any_shape_with_columns_in_any_order(seed, k, n, rank, form, symmetric):
    order = np.random.default_rng(seed).permutation(k)
    model = linear("MatMul(x, w)", k, n, seed, rank)
    plan = planned(*form, symmetric=symmetric, permuted=True)
    done = rewritten(model, {"w": plan}, orders={"w": order})
    feeds = feeds_of(model, 1)[0]
    np.testing.assert_allclose(done.found(feeds)["y"], done.expected(feeds)["y"], atol=5e-5)


@pytest.mark.parametrize("bias", [(), (1,), (1, 7), (3, 1), (3, 7), (7,)])
def test_any_bias_of_a_gemm(bias):
    weights = {"w": normal(1, 48, 7), "b": normal(2, *bias)}
    model = graph_of("float[3, 48] x", "[n] y = Gemm(x, w, b)", **weights)
    done = rewritten(model, {"w": planned()})
    feeds = feeds_of(model)[0]
    assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < 1e-5
    added = [node.op_type for node in done.model.graph] != ["MatMulNBits"]
    assert added == (bias != (7,))


def test_half_precision_graphs_and_scales():
    half = {"w": normal(1, 64, 8, scale=0.2).astype(np.float16), "b": normal(2, 8)}
    half["b"] = half["b"].astype(np.float16)
    body = "[n] y = Gemm(x, w, b)"
    model = graph_of("float16[3, 64] x", body, "float16[] y", **half)
    feeds = {"x": normal(2, 3, 64).astype(np.float16)}
    for level, limit in ((0, 2e-3), (4, 1e-2)):
        plan = planned(scale_type="float16", accuracy_level=level)
        done = rewritten(model, {"w": plan})
        stored = done.model.graph.initializers["w.scale"]
        assert stored.dtype is ir.DataType.FLOAT16
        np.testing.assert_array_equal(stored.const_value.numpy(), done.solved["w"].scales)
        assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < limit
    left = rewritten(model, {"w": planned()})
    assert left.refusals["insert-matmul-nbits"] == {
        "scales in float32 would be rounded in a float16 graph": 1
    }


def test_bfloat16_is_refused_as_the_cpu_has_no_kernel():
    model = linear("MatMul(x, w)", 64, 8)
    weight, kind = model.graph.initializers["w"], ir.DataType.BFLOAT16
    array = weight.const_value.numpy().astype(kind.numpy())
    weight.const_value = ir.tensor(array, dtype=kind, name="w")
    step = InsertMatmulNbits(plan=plan_of(model, {"w": planned()}))
    assert not step(model).modified
    assert step.refusals == {"no runtime takes few bits in a graph of bfloat16": 1}


def test_attributes_and_layout():
    done = rewritten(linear("Gemm(x, w, b)"), {"w": planned(3, 64, symmetric=False)})
    (node,) = done.model.graph
    found = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    assert found == {"K": 150, "N": 7, "bits": 4, "block_size": 64, "accuracy_level": 0}
    assert [v and v.name for v in node.inputs] == [
        "x",
        "w.codes",
        "w.scale",
        "w.zero_point",
        None,
        "b",
    ]
    stored = done.model.graph.initializers
    shapes = {name: tuple(value.shape) for name, value in stored.items()}
    assert shapes == {"w.codes": (7, 3, 32), "w.scale": (7, 3), "w.zero_point": (7, 2), "b": (7,)}
    assert all(isinstance(stored[n].const_value, ir.LazyTensor) for n in shapes if n != "b")
    assert done.model.opset_imports["com.microsoft"] == 1


def test_a_file_gives_the_same_outputs(tmp_path):
    done = rewritten(linear("MatMul(x, w)"), {"w": planned(symmetric=False)})
    path = tmp_path / "model.onnx"
    ir.save(done.model, path)
    assert onnx.load(path).graph.initializer
    feeds = feeds_of(done.source)[0]
    np.testing.assert_array_equal(
        Session(path).run(feeds)["y"], done.found(feeds, optimize=True)["y"]
    )


def test_a_shared_weight_is_packed_once_and_an_order_is_gathered_once():
    body = "[a] p = MatMul(x, w)\n[b] q = MatMul(x, v)\n[c] r = Mul(p, q)\n[d] y = MatMul(r, w)"
    weights = {"w": normal(1, 32, 32, scale=0.2), "v": normal(2, 32, 32, scale=0.2)}
    model = graph_of("float[2, 3, 32] x", body, **weights)
    order = np.random.default_rng(0).permutation(32)
    plans = dict.fromkeys(weights, planned(permuted=True))
    done = rewritten(model, plans, orders=dict.fromkeys(weights, order))
    operators = [node.op_type for node in done.model.graph]
    assert operators.count("Gather") == 2, "one for x, one for r"
    stored = sorted(name for name in done.model.graph.initializers if name.startswith("w"))
    assert stored == ["w.codes", "w.scale"]
    for feeds in feeds_of(model):
        assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < 1e-5


def test_a_weight_that_others_read_stays():
    model = graph_of(
        "float[32, 32] x", "[a] p = MatMul(x, w)\n[b] y = Add(p, w)", w=normal(1, 32, 32)
    )
    done = rewritten(model, {"w": planned()})
    assert "w" in done.model.graph.initializers


def test_nodes_in_subgraphs_are_refused():
    branch = "g{0} () => (float[3, 8] {0}) {{ [m{0}] {0} = MatMul(x, w) }}"
    body = (
        "[i] y = If (c) <then_branch = "
        + branch.format("p")
        + ", else_branch = "
        + branch.format("q")
        + ">"
    )
    model = graph_of("float[3, 32] x, bool c", body, w=normal(1, 32, 8))
    plan = plan_of(linear("MatMul(x, w)"), {"w": planned()})
    nodes = dict.fromkeys(("mp", "mq"), plan.nodes["n"])
    step = InsertMatmulNbits(plan=plan.model_copy(update={"nodes": nodes}))
    assert not step(model).modified
    assert step.refusals == {"it is in a subgraph": 2}
    verify(model)


@pytest.mark.parametrize(
    ("inputs", "body", "weight", "reason"),
    [
        ("float[3, 32] x", "Gemm <beta=2.0> (x, w)", (32, 8), "Gemm with a factor"),
        ("float[2, 3, 32] x", "MatMul(x, w)", (2, 32, 8), "its weight is not a matrix"),
        ("float[1, 4, 9, 9] x", "Conv(x, w)", (6, 4, 3, 3), "Conv has no operator with few bits"),
        ("float[1, 4, 9, 9] x", "ConvTranspose(x, w)", (4, 6, 3, 3), "ConvTranspose has no form"),
    ],
)
def test_reasons(inputs, body, weight, reason):
    model = graph_of(inputs, f"[n] y = {body}", w=normal(0, *weight))
    plan = plan_of(model, {"w": planned()})
    nodes = {"n": next(iter(plan.nodes.values()))}
    step = InsertMatmulNbits(plan=plan.model_copy(update={"nodes": nodes}))
    assert not step(model).modified
    (found,) = step.refusals
    assert found.startswith(reason)


def test_a_weight_that_is_computed_is_refused():
    model = graph_of("float[3, 32] x, float[32, 8] w", "[n] y = MatMul(x, w)")
    step = InsertMatmulNbits(plan=plan_of(model, {"w": planned()}))
    assert not step(model).modified
    assert step.refusals == {"its weight is not a constant": 1}


def test_a_second_run_finds_nothing_and_order_is_checked():
    model = linear("MatMul(x, w)")
    solved = solved_for(model, {"w": planned()})
    step = InsertMatmulNbits(plan=plan_of(model, {"w": planned()}), solved=solved.__getitem__)
    with pytest.raises(PassError, match="insert-matmul-nbits needs INPUTS_SCALED"):
        run_passes(model, [step])
    first, second = run_passes(model, [step, step], holds=HOLDS, paranoid=True)
    assert (first.modified, second.modified) == (True, False)
    assert not second.refusals


def test_an_input_scale_that_was_not_folded_is_an_error_when_it_is_written():
    model = linear("MatMul(x, w)")
    plans = {"w": planned(input_scaled=True)}
    solved = solved_for(model, plans, scales={"w": np.full(150, 2, np.float32)})
    step = InsertMatmulNbits(plan=plan_of(model, plans), solved=solved.__getitem__)
    run_passes(model, [step], holds=HOLDS)
    with pytest.raises(PlanError, match="weight w has an input scale that was not folded"):
        model.graph.initializers["w.codes"].const_value.numpy()


def test_codes_in_another_order_than_planned_are_an_error():
    model = linear("MatMul(x, w)")
    solved = solved_for(model, {"w": planned()})
    plan = plan_of(model, {"w": planned(permuted=True)})
    with pytest.raises(PlanError, match="weight w: permuted does not fit"):
        run_passes(model, [InsertMatmulNbits(plan=plan, solved=solved.__getitem__)], holds=HOLDS)


def test_an_unsolved_weight_is_named():
    model = linear("MatMul(x, w)")
    run_passes(model, [InsertMatmulNbits(plan=plan_of(model, {"w": planned()}))], holds=HOLDS)
    with pytest.raises(PlanError, match="weight w has not been solved"):
        model.graph.initializers["w.scale"].const_value.numpy()
