"""AWQ's two searches: neither may end above where it began, measured as the search measures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics.awq import NARROWER, clipped_parameters, input_scale
from qcompile.numerics.groups import (
    SolvedWeight,
    WeightFormat,
    group_parameters,
    round_nearest,
    round_to,
)

seeds = st.integers(0, 9999)
formats = st.builds(
    WeightFormat,
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([0, 16, 32]),
    st.booleans(),
    st.sampled_from(["float32", "float16"]),
)
columns = st.integers(1, 70)


def some(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def inputs_of(seed, count, width, spread=2.0):
    """Inputs whose columns differ in power by orders of magnitude, as those of a decoder do."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) * np.exp(spread * rng.standard_normal(width))


def nearest(form):
    def rounding(weight, scale):
        assert scale.dtype == np.float32
        return round_nearest(weight, form)

    return rounding


def scaled_error(weights, rows, form, scale):
    """Squared error at the outputs of weights that are rounded in the basis of a scale."""
    total = 0.0
    for weight in weights:
        values = round_nearest(weight * scale, form).stored() / scale.astype(np.float64)
        total += np.square((values - weight) @ rows.T).sum()
    return total


@given(seeds, columns, formats, st.integers(1, 3))
def test_a_scale_is_never_worse_than_none_on_its_rows(seed, width, form, layers):
    rows = inputs_of(seed, 40, width)
    weights = [some(seed + n, 6, width) for n in range(layers)]
    scale = input_scale(weights, rows, np.abs(rows).mean(axis=0), nearest(form))
    if scale is None:
        return
    assert scale.dtype == np.float32
    assert scale.shape == (width,)
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    without = scaled_error(weights, rows, form, np.ones(width))
    assert scaled_error(weights, rows, form, scale) < without * (1 + 1e-6)


def test_loud_columns_get_the_finer_steps():
    rows = some(0, 200, 64) * np.where(np.arange(64) % 16 == 3, 30.0, 1.0)
    weight, form = some(1, 32, 64), WeightFormat(3, 16)
    magnitude = np.abs(rows).mean(axis=0)
    scale = input_scale([weight], rows, magnitude, nearest(form))
    assert scale is not None
    loud = np.arange(64) % 16 == 3
    assert scale[loud].min() > scale[~loud].max()
    without = scaled_error([weight], rows, form, np.ones(64))
    assert scaled_error([weight], rows, form, scale) < 0.5 * without


def test_layers_with_one_input_share_a_scale_that_suits_their_sum():
    rows = inputs_of(5, 100, 48)
    magnitude, form = np.abs(rows).mean(axis=0), WeightFormat(3, 16)
    weights = [some(1, 8, 48), 10 * some(2, 8, 48)]
    both = input_scale(weights, rows, magnitude, nearest(form))
    again = input_scale(weights[::-1], rows, magnitude, nearest(form))
    np.testing.assert_array_equal(both, again)
    for alone in ([weights[0]], [weights[1]]):
        other = input_scale(alone, rows, magnitude, nearest(form))
        assert scaled_error(weights, rows, form, both) <= scaled_error(weights, rows, form, other)


@pytest.mark.parametrize(
    "magnitude",
    [np.zeros(16), np.ones(16), np.array([1e-30] * 8 + [1e30] * 8), np.array([0.0] * 15 + [2.0])],
)
def test_no_magnitude_makes_an_unusable_scale(magnitude):
    rows = some(0, 20, 16) * magnitude.clip(1e-3, 1e3)
    scale = input_scale([some(1, 4, 16)], rows, magnitude, nearest(WeightFormat(4, 16)))
    assert scale is None or (np.isfinite(scale) & (scale > 0)).all()


def test_as_many_exponents_are_tried_as_asked():
    tried = []

    def rounding(weight, scale):
        tried.append(scale)
        return round_nearest(weight, WeightFormat(4, 16))

    rows = inputs_of(0, 30, 32)
    input_scale([some(1, 4, 32)], rows, np.abs(rows).mean(axis=0), rounding, 5)
    assert len(tried) == 5
    assert (tried[0] == 1).all()
    assert np.ptp(np.log(tried[4])) > np.ptp(np.log(tried[1])) > 0


def block_errors(weights, hessian, scale, form, scales, zeros):
    """Squared error at the output of each row's groups alone, ``(R, G)``."""
    codes = round_to(weights, form, scales, zeros)
    moved = SolvedWeight(form, codes, scales, zeros).stored() - weights
    group = form.group_of(weights.shape[1])
    whole = hessian / scale / scale[:, None]
    return np.stack(
        [
            np.einsum("rk,rk->r", moved[:, group == g] @ whole[np.ix_(group == g, group == g)],
                      moved[:, group == g])
            for g in range(scales.shape[1])
        ],
        axis=1,
    )  # fmt: skip


@given(seeds, columns, formats, st.booleans())
def test_clipping_is_never_worse_than_the_whole_range(seed, width, form, scaled):
    rows = inputs_of(seed, 90, width, spread=0.7)
    hessian = rows.T @ rows
    scale = np.exp(0.5 * some(seed + 1, width)).astype(np.float32) if scaled else np.ones(width)
    weights = some(seed + 2, 5, width) ** 3
    found = clipped_parameters(weights, hessian, scale, form)
    plain = group_parameters(weights, form)
    assert found[0].dtype == np.dtype(form.scale_type)
    np.testing.assert_array_equal(found[1], plain[1])
    share = np.abs(found[0].astype(np.float64) / plain[0])
    other_end = form.middle / (form.middle - 1) if form.symmetric else 1.0
    assert (share <= other_end * 1.01).all()
    assert (share >= NARROWER[-1] * 0.99).all()
    before = block_errors(weights, hessian, scale, form, *plain)
    after = block_errors(weights, hessian, scale, form, *found)
    assert (after <= before * (1 + 1e-4) + 1e-9 * np.square(weights).sum()).all()


def test_clipping_cuts_off_a_value_that_meets_no_input():
    weights = some(0, 4, 32)
    weights[:, 5] = 8.0
    power = np.ones(32)
    power[5] = 1e-6
    scales, _ = clipped_parameters(weights, np.diag(power), np.ones(32), WeightFormat(4, 32))
    whole, _ = group_parameters(weights, WeightFormat(4, 32))
    assert (scales / whole < 0.7).all()


def test_weights_of_zero_keep_a_usable_scale():
    scales, _ = clipped_parameters(np.zeros((2, 32)), np.eye(32), np.ones(32), WeightFormat(4, 16))
    assert (scales == 1).all()
