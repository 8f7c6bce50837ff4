"""SmoothQuant's scale against its equation, rounding against the grids, errors in float64."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics.grids import affine_grid, dequantize, quantize, symmetric_scales
from qcompile.numerics.moments import Moments, absorbed_bias
from qcompile.numerics.smoothing import (
    Grid,
    product_error,
    rounded_weight,
    smoothing_scale,
)

seeds = st.integers(0, 9999)


def some(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@given(seeds, st.integers(1, 40), st.floats(0, 1))
def test_the_scale_is_equation_4_up_to_a_factor(seed, columns, strength):
    x, w = np.exp(some(seed, columns)), np.exp(some(seed + 1, columns))
    scale = smoothing_scale(x, w, strength)
    ratio = scale / (x**strength / w ** (1 - strength))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    np.testing.assert_allclose(np.log(scale.astype(np.float64)).mean(), 0, atol=1e-5)


@given(seeds)
def test_the_ends_flatten_one_side(seed):
    x, w = np.exp(some(seed, 20)), np.exp(some(seed + 1, 20))
    assert np.ptp(np.log(x / smoothing_scale(x, w, 1.0))) < 1e-5
    assert np.ptp(np.log(w * smoothing_scale(x, w, 0.0))) < 1e-5


def test_dead_columns_are_left():
    scale = smoothing_scale(np.array([4.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0]), 0.5)
    np.testing.assert_array_equal(scale, np.ones(3))
    np.testing.assert_array_equal(smoothing_scale(np.zeros(3), np.ones(3), 0.5), np.ones(3))


@given(seeds, st.sampled_from(["uint8", "int8", "float8e4m3fn"]))
def test_rounding_is_that_of_the_grids(seed, dtype):
    values = (some(seed, 5, 7) * 3).astype(np.float32)
    scale, zero = affine_grid(-4.0, 6.0, 0, 255) if dtype == "uint8" else (0.05, 0)
    found = Grid(np.float32([scale]), np.float32([zero]), dtype).rounded(values)
    codes = quantize(values, np.float32(scale), np.array(zero), None, dtype)
    np.testing.assert_allclose(found, dequantize(codes, np.float32(scale), np.array(zero), None))


@given(seeds)
def test_weights_have_a_scale_a_row(seed):
    weight = (some(seed, 6, 9) * np.exp(some(seed + 1, 6, 1))).astype(np.float32)
    scales = symmetric_scales(weight, 0, 127)
    codes = quantize(weight, scales, np.zeros(6), 0, "int8")
    expected = dequantize(codes, scales, np.zeros(6), 0)
    np.testing.assert_allclose(rounded_weight(weight, "int8", 127), expected, rtol=1e-6)


@given(seeds)
def test_the_error_is_that_of_the_products(seed):
    rows, weight = (some(seed + i, n, 8).astype(np.float32) for i, n in enumerate((5, 3)))
    moved = [(a + 0.1 * some(seed + 2, *a.shape)).astype(np.float32) for a in (rows, weight)]
    wide = [a.astype(np.float64) for a in (rows, weight, *moved)]
    expected = np.square(wide[0] @ wide[1].T - wide[2] @ wide[3].T).sum()
    np.testing.assert_allclose(product_error(rows, moved[0], weight, moved[1]), expected, rtol=1e-4)


@given(seeds, st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_moments_of_parts_are_those_of_the_whole(seed, sizes):
    parts = [some(seed + i, 4, size) + 1e3 for i, size in enumerate(sizes)]
    found = Moments.nothing(4)
    for part in parts:
        found = found.merged(part.shape[1], part.mean(axis=1), part.var(axis=1))
    whole = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found.mean, whole.mean(axis=1))
    np.testing.assert_allclose(found.deviation, whole.std(axis=1), atol=1e-9)


def test_what_a_relu_can_lose():
    found = absorbed_bias(np.array([10.0, 2.0, -5.0]), np.array([1.0, 1.0, 0.1]))
    np.testing.assert_array_equal(found, [7.0, 0.0, 0.0])
