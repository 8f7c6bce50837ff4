"""Dynamic int8: the operator, its codes, and how near the float model it stays."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PlanError
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.own_constants import OwnConstants
from qcompile.plan import Plan
from qcompile.planning.plan import assemble
from qcompile.planning.select import select
from qcompile.planning.wishes import Wishes
from qcompile.recipe import Cpu
from qcompile.runtime.ort import Session, kernels
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.tools import HOLDS, feeds_of, graph_of, normal

KERNEL = "com.microsoft::DynamicQuantizeMatMul"
ROWS = "float[7, 32] x"
SQUARE = normal(4, 32, 24, scale=0.2)
CASES = {
    "matmul": ("float[2, 7, 32] x", "[n] y = MatMul(x, s)"),
    "gemm": (ROWS, "[n] y = Gemm(x, s, b)"),
    "gemm without bias": (ROWS, "[n] y = Gemm(x, s)"),
    "gemm transB": (ROWS, "[n] y = Gemm <transB=1> (x, t, b)"),
    "one number for all columns": (ROWS, "[n] y = Gemm(x, s, one)"),
}
WEIGHTS = {
    "s": SQUARE,
    "t": np.ascontiguousarray(SQUARE.T),
    "b": normal(5, 24),
    "one": np.full((1, 1), 0.3, np.float32),
}


def planned(model: ir.Model, cpu: Cpu = "vnni") -> Plan:
    chosen = select(model, ORT_CPU, "int8-dynamic", Wishes())
    return assemble(model, chosen, ORT_CPU, cpu, "int8-dynamic", {})


def rewritten(model: ir.Model, cpu: Cpu = "vnni") -> ir.Model:
    OwnConstants()(model)
    plan = planned(model, cpu)
    assert {entry.precision for entry in plan.nodes.values()} == {"int8-dynamic"}
    out = model.clone()
    run_passes(out, [DynamicMatmul(plan=plan)], holds=HOLDS, paranoid=True)
    verify(out)
    return out


@pytest.mark.parametrize("cpu", ["vnni", "avx2"])
@pytest.mark.parametrize("case", CASES)
def test_becomes_one_operator_and_stays_close(case, cpu):
    inputs, body = CASES[case]
    model = graph_of(inputs, body, **{k: v for k, v in WEIGHTS.items() if f"{k}" in body})
    out = rewritten(model, cpu)
    assert kernels(out) == {KERNEL: 1}
    for feeds in feeds_of(model):
        exact, found = (Session(m).run(feeds)["y"] for m in (model, out))
        assert exact.shape == found.shape
        assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_computes_what_the_rounded_weights_and_the_run_time_grid_say(seed, k, n, transposed):
    weight = normal(seed, k, n)
    weight[:, 0] = 0
    given_weight = np.ascontiguousarray(weight.T) if transposed else weight
    call = "Gemm <transB=1> (x, s)" if transposed else "Gemm(x, s)"
    model = graph_of(f"float[3, {k}] x", f"[n] y = {call}", s=given_weight)
    x = normal(seed + 1, 3, k)
    found = Session(rewritten(model)).run({"x": x})["y"]
    steps = np.abs(weight).max(axis=0) / 127
    steps[steps == 0] = 1
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    zero = round(float(-low / step)) if step else 0
    codes = np.clip(np.rint(x / (step or 1)) + zero, 0, 255) - zero
    expected = (codes * step) @ (np.rint(weight / steps) * steps)
    np.testing.assert_allclose(found, expected, atol=step * steps.max() * 2 + 1e-5)


def test_a_shared_weight_is_stored_once():
    model = graph_of(ROWS, "[a] p = MatMul(x, s)\n[c] y = MatMul(p, s)", s=normal(6, 32, 32))
    out = rewritten(model)
    assert sorted(out.graph.initializers) == ["s.codes", "s.scale", "s.zero_point"]
    assert kernels(out) == {KERNEL: 2}


def test_types_and_reduced_range():
    model = graph_of(ROWS, "[n] y = MatMul(x, s)", s=SQUARE)
    for cpu, limit in (("vnni", 127), ("avx2", 63), ("avx512", 63), ("arm", 127)):
        codes = rewritten(model.clone(), cpu).graph.initializers["s.codes"].const_value.numpy()
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int)).max() == limit


def test_reasons_of_nodes_that_stay():
    model = graph_of(
        "float[1, 4, 9, 9] x", "[c] a = Conv(x, w)\n[r] y = Relu(a)", w=normal(1, 4, 4, 3, 3)
    )
    plan = planned(model)
    assert plan.nodes["c"].reason == "dynamic quantization pays for MatMul and Gemm only"
    assert not DynamicMatmul(plan=plan)(model).modified


def test_a_plan_without_a_grid_is_refused():
    model = graph_of(ROWS, "[n] y = MatMul(x, s)", s=SQUARE)
    plan = planned(model).model_copy(update={"tensors": {}})
    with pytest.raises(PlanError, match="weight s has no grid"):
        run_passes(model, [DynamicMatmul(plan=plan)], holds=HOLDS)
