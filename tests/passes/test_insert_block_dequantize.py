"""Standard operators with weights of few bits: what ONNX Runtime computes, fuses, and refuses."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PassError, PlanError
from qcompile.graph.runner import run_passes
from qcompile.numerics.groups import WeightFormat
from qcompile.passes.insert_block_dequantize import InsertBlockDequantize
from qcompile.plan import WeightPlan
from qcompile.runtime.ort import Session, kernels
from tests.passes.weights import HOLDS, linear, plan_of, relative, rewritten, solved_for
from tests.planning.tools import feeds_of, graph_of, normal

FORMATS = [(2, 16), (2, 0), (3, 32), (3, 0), (4, 16), (4, 32), (4, 128), (4, 0), (8, 64), (8, 0)]


def planned(bits: int = 4, group_size: int = 32, **more: object) -> WeightPlan:
    return WeightPlan(bits=bits, group_size=group_size, form="dequantize", **more)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
@pytest.mark.parametrize("call", ["MatMul(x, w)", "Gemm(x, w, b)", "Gemm <transB=1> (x, w, b)"])
def test_computes_what_the_solved_values_say_and_fuses(call, bits, group_size, symmetric):
    model = linear(call)
    done = rewritten(model, {"w": planned(bits, group_size, symmetric=symmetric)})
    for feeds in feeds_of(model):
        exact = done.expected(feeds)["y"]
        assert relative(done.found(feeds)["y"], exact) < 1e-5
        # Its own choice is level 4: int8 activations.
        assert relative(done.found(feeds, optimize=True)["y"], exact) < 2e-2
    assert kernels(done.model) == {"com.microsoft::MatMulNBits": 1}


@given(
    st.integers(0, 999),
    st.integers(1, 80),
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
    np.testing.assert_allclose(done.found(feeds)["y"], done.expected(feeds)["y"], atol=2e-5)


def test_types_and_shapes_in_the_file():
    rows = {"bits": 2, "group_size": 16, "symmetric": False}
    for plan, codes, grid in (
        (planned(4, 16), "INT4", (4, 7)),
        (planned(4, 0), "INT4", (7,)),
        (planned(8, 0), "INT8", (7,)),
        (planned(8, 64, symmetric=False), "UINT8", (1, 7)),
        (planned(**rows), "UINT4", (4, 7)),
    ):
        stored = rewritten(linear("MatMul(x, w)", 50), {"w": plan}).model.graph.initializers
        assert stored["w.codes"].dtype is ir.DataType[codes]
        assert stored["w.codes"].shape == ir.Shape((50, 7))
        assert tuple(stored["w.scale"].shape) == grid
        assert ("w.zero_point" in stored) == (not plan.symmetric)
        assert isinstance(stored["w.codes"].const_value, ir.LazyTensor)
        assert "w" not in stored


def test_stored_codes_are_the_solved_ones():
    for symmetric in (True, False):
        done = rewritten(linear("MatMul(x, w)"), {"w": planned(3, 16, symmetric=symmetric)})
        stored = {n: v.const_value.numpy() for n, v in done.model.graph.initializers.items()}
        codes = stored["w.codes"].astype(np.int16).T + 4 * symmetric
        np.testing.assert_array_equal(codes, done.solved["w"].codes)
        np.testing.assert_array_equal(stored["w.scale"].T, done.solved["w"].scales)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_convolutions_have_a_scale_for_each_channel(bits, symmetric):
    model = graph_of(
        "float[1, 4, 9, 9] x",
        "[n] y = Conv <group=2> (x, w, b)",
        w=normal(1, 6, 2, 3, 3),
        b=normal(2, 6),
    )
    done = rewritten(model, {"w": planned(bits, 0, symmetric=symmetric)})
    assert tuple(done.model.graph.initializers["w.codes"].shape) == (6, 2, 3, 3)
    for feeds in feeds_of(model):
        assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < 1e-5
        optimized = done.found(feeds, optimize=True)["y"]
        assert relative(optimized, done.expected(feeds)["y"]) < 1e-5


def test_a_half_precision_graph_has_half_precision_scales():
    weight = normal(1, 64, 8, scale=0.2).astype(np.float16)
    model = graph_of("float16[3, 64] x", "[n] y = MatMul(x, w)", "float16[] y", w=weight)
    done = rewritten(model, {"w": planned(4, 32, scale_type="float16")})
    assert done.model.graph.initializers["w.scale"].dtype is ir.DataType.FLOAT16
    feeds = {"x": normal(2, 3, 64).astype(np.float16)}
    assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < 2e-3
    assert kernels(done.model)["com.microsoft::MatMulNBits"] == 1


def test_scales_of_half_precision_become_float32_in_a_float32_graph():
    model = linear("MatMul(x, w)")
    done = rewritten(model, {"w": planned(4, 32, scale_type="float16")})
    assert done.model.graph.initializers["w.scale"].dtype is ir.DataType.FLOAT
    feeds = feeds_of(model)[0]
    assert relative(done.found(feeds)["y"], done.expected(feeds)["y"]) < 1e-5


def test_a_shared_weight_is_stored_once_and_kept_for_others():
    body = "[a] p = MatMul(x, w)\n[b] q = MatMul(p, w)\n[c] y = Add(q, w)"
    model = graph_of("float[32, 32] x", body, w=normal(1, 32, 32, scale=0.2))
    done = rewritten(model, {"w": planned()})
    assert sorted(done.model.graph.initializers) == ["w", "w.codes", "w.scale"]
    operators = [node.op_type for node in done.model.graph]
    assert operators.count("DequantizeLinear") == 1
    feeds = feeds_of(model)[0]
    exact = (
        done.expected(feeds)["y"]
        - done.solved["w"].values().T
        + model.graph.initializers["w"].const_value.numpy()
    )
    assert relative(done.found(feeds)["y"], exact) < 1e-5


@pytest.mark.parametrize("columns", [8, 5])
def test_two_bits_are_stored_in_four_since_products_with_int2_are_wrong(columns):
    """ONNX Runtime 1.31 fuses int2 of opset 25 wrongly unless columns are a multiple of 4."""
    codes = np.random.default_rng(0).integers(-2, 2, (64, columns)).astype(np.int8)
    int2 = ir.DataType.INT2
    stored = ir.Value(
        name="c", const_value=ir.tensor(codes.astype(int2.numpy()), dtype=int2, name="c")
    )
    scales = np.full((2, columns), 0.1, np.float32)
    scale = ir.Value(name="s", const_value=ir.tensor(scales, name="s"))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((3, 64)))
    read = ir.node("DequantizeLinear", [stored, scale], attributes={"axis": 0, "block_size": 32})
    product = ir.node("MatMul", [x, read.outputs[0]])
    (weight,), (y,) = read.outputs, product.outputs
    weight.name, y.name, y.type = "r", "y", x.type
    model = ir.Model(
        ir.Graph(
            [x],
            [y],
            nodes=[read, product],
            initializers=[stored, scale],
            opset_imports={"": 25},
            name="g",
        ),
        ir_version=13,
    )
    feeds = {"x": normal(0, 3, 64)}
    exact = feeds["x"] @ (codes * np.float32(0.1))
    assert relative(Session(model, optimize=False).run(feeds)["y"], exact) < 1e-5
    wrong = relative(Session(model).run(feeds)["y"], exact) > 0.3
    assert wrong == bool(columns % 4), "if this fails, int2 may be used: see onnx_std.py"


@pytest.mark.parametrize(
    ("inputs", "body", "weight", "plan", "reason"),
    [
        ("float[3, 32] x", "Gemm <alpha=2.0> (x, w)", (32, 8), planned(), "Gemm with a factor"),
        ("float[32, 3] x", "Gemm <transA=1> (x, w)", (32, 8), planned(), "Gemm with a factor"),
        ("float[2, 3, 32] x", "MatMul(x, w)", (2, 32, 8), planned(), "its weight is not a matrix"),
        ("float[1, 4, 9, 9] x", "Conv(x, w)", (6, 4, 3, 3), planned(), "groups of a convolution"),
        ("float[8, 32] x", "Add(x, w)", (32,), planned(), "Add has no form with few bits"),
    ],
)
def test_reasons(inputs, body, weight, plan, reason):
    model = graph_of(inputs, f"[n] y = {body}", w=normal(0, *weight))
    step = InsertBlockDequantize(plan=plan_of(model, {"w": plan}))
    assert not step(model).modified
    (found,) = step.refusals
    assert found.startswith(reason)


def test_a_weight_read_both_ways_is_written_for_the_first():
    body = "[a] p = MatMul(x, w)\n[b] y = Gemm <transB=1> (p, w)"
    model = graph_of("float[3, 32] x", body, w=normal(1, 32, 32, scale=0.2))
    done = rewritten(model, {"w": planned()})
    assert done.refusals["insert-block-dequantize"] == {
        "its weight is read by rows and by columns": 1
    }
    assert [n.name for n in done.model.graph if n.op_type != "DequantizeLinear"] == ["a", "b"]


def test_a_second_run_finds_nothing_and_order_is_checked():
    model = linear("MatMul(x, w)")
    weights = {"w": planned()}
    step = InsertBlockDequantize(
        plan=plan_of(model, weights), solved=solved_for(model, weights).__getitem__
    )
    with pytest.raises(PassError, match="insert-block-dequantize needs INPUTS_SCALED"):
        run_passes(model, [step])
    first, second = run_passes(model, [step, step], holds=HOLDS, paranoid=True)
    assert (first.modified, second.modified) == (True, False)


def test_codes_of_another_format_are_refused_when_they_are_written():
    model = linear("MatMul(x, w)")
    solved = solved_for(model, {"w": planned(4, 32)})
    plan = plan_of(model, {"w": planned(3, 32)})
    run_passes(model, [InsertBlockDequantize(plan=plan, solved=solved.__getitem__)], holds=HOLDS)
    with pytest.raises(PlanError, match="weight w are not in the planned format"):
        model.graph.initializers["w.codes"].const_value.numpy()
    assert solved["w"].format == WeightFormat(4, 32)


def test_a_weight_without_an_entry_is_named():
    model = linear("MatMul(x, w)")
    plan = plan_of(model, {"w": planned()}).model_copy(update={"weights": {}})
    with pytest.raises(PlanError, match="weight w of node n has no entry"):
        run_passes(model, [InsertBlockDequantize(plan=plan)], holds=HOLDS)
