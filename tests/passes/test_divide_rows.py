"""Dynamic int8 with a scale for each row: the same in float, less error on codes."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.passes.divide_rows import DivideRows
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.planning.outliers import float_nodes
from qcompile.planning.plan import assemble
from qcompile.planning.select import select
from qcompile.planning.wishes import Wishes
from qcompile.remedies import Outliers, Remedies
from qcompile.runtime.ort import Session, kernels
from qcompile.samples import Array
from qcompile.targets.ort_cpu import ORT_CPU
from tests.passes.tools import check_equivalent
from tests.planning.tools import HOLDS, graph_of, normal

KERNEL = "com.microsoft::DynamicQuantizeMatMul"


def rewritten(model: ir.Model, *, by_rows: bool, remedies: Remedies | None = None) -> ir.Model:
    """Quantize dynamically, per tensor or by rows, behind a split where there is one."""
    remedies = remedies or Remedies()
    out = model.clone()
    run_passes(out, [SplitOutliers(remedies=remedies)], holds=HOLDS)
    wishes = Wishes(nodes=float_nodes(out, remedies))
    chosen = select(out, ORT_CPU, "int8-dynamic", wishes)
    plan = assemble(out, chosen, ORT_CPU, "vnni", "int8-dynamic", {})
    steps = [DivideRows(plan=plan), DynamicMatmul(plan=plan)]
    run_passes(out, steps if by_rows else steps[1:], holds=HOLDS, paranoid=True)
    verify(out)
    return out


def error(exact: ir.Model, found: ir.Model, x: Array) -> float:
    """Relative L2 distance of the engine's ``y``."""
    reference, y = (Session(model).run({"x": x})["y"] for model in (exact, found))
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


@given(st.data())
def test_computes_the_same_in_float(data) -> None:
    columns, width, seed = (data.draw(st.integers(1, 9)) for _ in range(3))
    gemm, transposed, bias = (data.draw(st.booleans()) for _ in range(3))
    shape = (width, columns) if gemm and transposed else (columns, width)
    end = ", b" if bias else ""
    call = f"Gemm <transB={int(transposed)}> (x, w{end})" if gemm else "MatMul(x, w)"
    model = graph_of(
        f"float[{'3' if gemm else '2, 3'}, {columns}] x",
        f"[n] p = {call}\n[o] y = Tanh(p)",
        w=normal(seed, *shape, scale=0.3),
        b=normal(1, width),
    )
    plan = assemble(
        model, select(model, ORT_CPU, "int8-dynamic", Wishes()), ORT_CPU, "vnni", "int8-dynamic", {}
    )
    check_equivalent(model, DivideRows(plan=plan), changes=True)


@pytest.mark.parametrize("call", ["MatMul(x, w)", "Gemm(x, w, b)"])
def test_rows_of_different_sizes_keep_their_resolution(call) -> None:
    model = graph_of("float[16, 64] x", f"[n] y = {call}", w=normal(1, 64, 48), b=normal(2, 48))
    x = normal(3, 16, 64) * np.logspace(-2, 2, 16, dtype=np.float32)[:, None]
    exact = Session(model).run({"x": x})["y"]
    errors = {}
    for by_rows in (False, True):
        engine = rewritten(model, by_rows=by_rows)
        assert kernels(engine)[KERNEL] == 1
        found = Session(engine).run({"x": x})["y"]
        errors[by_rows] = np.linalg.norm(found - exact, axis=1)
    assert (errors[True] < 1.3 * errors[False]).all()  # the loudest row sets both steps
    assert (errors[True][:8] < errors[False][:8] / 20).all()
    assert error(model, rewritten(model, by_rows=True), x) < 0.02


@given(st.integers(0, 999))
def test_the_error_is_that_of_vector_wise_codes(seed) -> None:
    """No more than half a step of each row's largest magnitude, times the weights."""
    weight = normal(seed, 12, 5)
    model = graph_of("float[6, 12] x", "[n] y = MatMul(x, w)", w=weight)
    x = normal(seed + 1, 6, 12) * np.exp(normal(seed + 2, 6, 1, scale=3))
    exact = x.astype(np.float64) @ weight
    found = Session(rewritten(model, by_rows=True)).run({"x": x})["y"]
    steps = np.abs(weight).max(axis=0) / 127
    size = np.abs(x).max(axis=1, keepdims=True)
    of_x = size / 127 * 0.51 * (np.abs(weight) + steps / 2).sum(axis=0)
    of_w = np.abs(x).sum(axis=1, keepdims=True) * steps * 0.51
    assert (np.abs(found - exact) <= of_x + of_w + 1e-6).all()


def test_rows_of_zeros_and_tiny_numbers() -> None:
    model = graph_of("float[3, 4] x", "[n] y = Gemm(x, w, b)", w=normal(1, 4, 2), b=normal(2, 2))
    x = np.array([[0] * 4, [1e-42] * 4, [1, -2, 3, -4]], np.float32)
    y = Session(rewritten(model, by_rows=True)).run({"x": x})["y"]
    np.testing.assert_allclose(y[:2], np.tile(normal(2, 2), (2, 1)), rtol=1e-6)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("run_time", [False, True])
def test_outlier_columns_beside_codes(run_time) -> None:
    """Known columns help on inputs like those they were found on, run-time ones on all."""
    model = graph_of(
        "float[16, 64] x", "[n] y = Gemm(x, w, b)", w=normal(1, 64, 48), b=normal(2, 48)
    )
    x, other = normal(3, 16, 64), normal(4, 16, 64)
    x[:, [3, 40]] *= 200
    other[:, [7, 50]] *= 200
    channels = [] if run_time else [3, 40]
    one = Outliers(channels=channels, columns=64, threshold=6.0, run_time=run_time)
    engine = rewritten(model, by_rows=True, remedies=Remedies(outliers={"n": one}))
    assert kernels(engine)[KERNEL] == 1
    plain = rewritten(model, by_rows=True)
    regular = x.copy()
    regular[:, [3, 40]] = 0

    def lost(of: ir.Model, x: Array) -> float:
        y, exact = (Session(m).run({"x": x})["y"] for m in (of, model))
        return float(np.linalg.norm(y - exact))

    floor = lost(plain, regular)
    assert lost(plain, x) > 20 * floor
    assert lost(engine, x) < 1.1 * floor
    assert (lost(engine, other) < lost(plain, other) / 20) == run_time


def test_no_columns_at_run_time() -> None:
    model = graph_of("float[4, 8] x", "[n] y = Gemm <transB=1> (x, w)", w=normal(1, 6, 8))
    one = Outliers(channels=[], columns=8, threshold=2.0, run_time=True)
    engine = rewritten(model, by_rows=True, remedies=Remedies(outliers={"n": one}))
    assert error(model, engine, np.full((4, 8), 0.5, np.float32)) < 0.02
