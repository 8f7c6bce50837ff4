"""Codes of weights and biases against a direct computation; types and ranges by instruction set."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PlanError
from qcompile.planning.select import select
from qcompile.planning.tensors import activation_plan, constant_plan, plan_tensors, weight_plan
from qcompile.planning.wishes import Wishes
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.tools import Quantized, feeds_of, graph_of, normal, quantize_graph

SIZES = st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e12])
SEEDS = st.integers(0, 9999)


def stored(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def spread_out(seed: int, shape: tuple[int, ...], axis: int, size: float) -> np.ndarray:
    """Return weights whose channels differ by orders of magnitude, one of them zero."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape) * size
    scales = np.exp(rng.normal(0, 2, shape[axis]))
    scales[rng.integers(shape[axis])] = 0
    return (weight * scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])).astype(
        np.float32
    )


def assert_codes_are_the_nearest(done: Quantized, axis: int, high: int) -> None:
    """Compare every stored number of w and b with a computation in float64."""
    w = stored(done.source, "w").astype(np.float64)
    b = stored(done.source, "b").astype(np.float64)
    scale = stored(done.model, "w.scale")
    others = tuple(i for i in range(w.ndim) if i != axis)
    largest = np.abs(w).max(axis=others)
    data = done.plan.tensors["x"].scale[0]
    room = 2.0**30
    needed = np.maximum(largest / high, np.abs(b) / room / data)
    used = largest / high > 1e-30
    np.testing.assert_allclose(scale[used], needed[used], rtol=1e-6)
    wide = scale.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(w.ndim)])
    codes = stored(done.model, "w.codes")
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, np.clip(np.rint(w / wide), -high, high))
    assert not stored(done.model, "w.zero_point").any()
    product = stored(done.model, "b.scale")
    np.testing.assert_allclose(product, np.float64(data) * scale, rtol=1e-6)
    bias = stored(done.model, "b.codes")
    assert bias.dtype == np.int32
    np.testing.assert_array_equal(bias, np.rint(b / product.astype(np.float64)))
    assert np.abs(bias.astype(np.int64)).max() <= room * (1 + 1e-6)


@given(SEEDS, st.sampled_from([1, 16]), st.integers(1, 3), SIZES, st.booleans())
def test_codes_of_conv(seed, group, kernel, size, reduced):
    w = spread_out(seed, (16, 16 // group, kernel, kernel), 0, size)
    model = graph_of(
        "float[1, 16, 5, 5] x", f"[n] y = Conv <group={group}> (x, w, b)", w=w, b=normal(seed, 16)
    )
    done = quantize_graph(model, cpu="avx2" if reduced else "vnni")
    assert_codes_are_the_nearest(done, 0, 63 if reduced else 127)


@given(SEEDS, st.booleans(), st.integers(1, 9), st.integers(1, 9), SIZES)
def test_codes_of_gemm(seed, transposed, rows, columns, size):
    shape, axis = ((columns, rows), 0) if transposed else ((rows, columns), 1)
    model = graph_of(
        f"float[3, {rows}] x",
        f"[n] y = Gemm <transB={int(transposed)}> (x, w, b)",
        w=spread_out(seed, shape, axis, size),
        b=normal(seed, columns),
    )
    done = quantize_graph(model)
    assert done.plan.tensors["w"].axis == axis
    assert_codes_are_the_nearest(done, axis, 127)


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e6])
def test_a_large_bias_widens_the_weight_grid_and_the_engine_is_right(size):
    w = (normal(1, 16, 16, 1, 1) * size).astype(np.float32)
    b = np.full(16, 100.0, np.float32)
    done = quantize_graph(graph_of("float[1, 16, 9, 9] x", "[n] y = Conv(x, w, b)", w=w, b=b))
    widened = np.asarray(done.plan.tensors["w"].scale) > np.abs(w).max(axis=(1, 2, 3)) / 127 * 1.01
    assert widened.all() == (size < 1e-6)
    assert not done.missing()
    feeds = feeds_of(done.source)[0]
    fused, plain = (done.run(feeds, optimize=o)["y"] for o in (True, False))
    step = done.plan.tensors["y"].scale[0]
    np.testing.assert_allclose(fused, plain, atol=1.01 * step)
    np.testing.assert_allclose(plain.mean(), 100.0 if size < 1 else plain.mean(), rtol=0.02)


@pytest.mark.parametrize(
    ("cpu", "activation", "limit"),
    [("vnni", "uint8", 127), ("avx512", "uint8", 63), ("avx2", "uint8", 63), ("arm", "int8", 127)],
)
def test_types_of_each_instruction_set(cpu, activation, limit):
    body = "[n] a = Conv(x, w, b)\n[r] p = Relu(a)\n[m] y = Conv(p, w, b2)"
    weights = {"w": normal(1, 16, 16, 1, 1), "b": normal(2, 16), "b2": normal(3, 16)}
    done = quantize_graph(graph_of("float[1, 16, 9, 9] x", body, **weights), cpu=cpu)
    kinds = {t.type for t in done.plan.tensors.values() if t.kind == "activation"}
    assert kinds == {activation}
    assert done.plan.tensors["p"].zero_point == [0 if activation == "uint8" else -128]
    assert np.abs(stored(done.model, "w.codes").astype(int)).max() == limit
    assert done.plan.tensors["w"].reduce_range == (limit == 63)
    feeds = feeds_of(done.source)[0]
    fused, plain = (done.run(feeds, optimize=o)["y"] for o in (True, False))
    np.testing.assert_allclose(fused, plain, atol=1.01 * done.plan.tensors["y"].scale[0])


def test_grids_of_activations_and_constants():
    types = ORT_CPU.types("int8", "vnni")
    relu = activation_plan(0.5, 6.0, types, "mse")
    assert (relu.zero_point, relu.type, relu.method) == ([0], "uint8", "mse")
    assert relu.bounds() == pytest.approx((0.0, 6.0))
    for values in (np.float32([-1, 3]), np.float32([2, 3]), np.float32([-3]), np.float32([0])):
        grid = constant_plan(values, types)
        low, high = grid.bounds()
        half = grid.scale[0] / 2
        assert low - half <= min(values.min(), 0)
        assert high + half >= max(values.max(), 0)
        assert grid.axis is None


def test_the_bias_of_a_dead_channel_stays_exact():
    """Its weights say nothing about a scale; a step of 1 would round the bias to the input's."""
    w, b = normal(1, 16, 16, 1, 1, scale=1e-3), np.full(16, 0.3, np.float32)
    w[5] = 0
    model = graph_of("float[1, 16, 9, 9] x", "[n] y = Conv(x, w, b)", w=w, b=b)
    samples = [{"x": feeds["x"] * np.float32(100)} for feeds in feeds_of(model)]
    done = quantize_graph(model, samples=samples)
    step = done.plan.tensors["y"].scale[0]
    for optimize in (True, False):
        dead = done.run(samples[0], optimize=optimize)["y"][:, 5]
        np.testing.assert_allclose(dead, 0.3, atol=0.51 * step)


def test_a_weight_of_zeros_has_a_grid():
    grid = weight_plan(np.zeros((3, 4), np.float32), 0, ORT_CPU.types("int8", "vnni"))
    assert grid.scale == [1.0] * 3


def test_an_activation_without_a_range_is_named():
    model = graph_of("float[1, 4] x", "[n] y = MatMul(x, w)", w=normal(1, 4, 4))
    chosen = select(model, ORT_CPU, "int8", Wishes())
    with pytest.raises(PlanError, match="x: no range; calibrate this tensor"):
        plan_tensors(model, chosen, ORT_CPU.types("int8", "vnni"), {})
