"""AWQ's two searches: neither may end above where it began, measured as the search measures."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.numerics.awq import (
    NARROWER,
    STEPS,
    harmless_scale,
    input_scale,
    round_clipped,
)
from qcompile.numerics.groups import WeightFormat, group_parameters, round_nearest, round_to
from qcompile.numerics.hessian import output_error

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
        return dataclasses.replace(round_nearest(weight * scale, form), input_scale=scale)

    return rounding


def searched(weights, rows, form, rounding=None):
    magnitude = np.abs(rows).mean(axis=0)
    rounding = rounding or nearest(form)
    return input_scale(weights, rows.T @ rows, magnitude, form.group_size, rounding)


def scaled_error(weights, rows, form, scale):
    """Squared error at the outputs of weights that are rounded in the basis of a scale."""
    total = 0.0
    for weight in weights:
        values = round_nearest(weight * scale, form).stored() / scale.astype(np.float64)
        total += np.square((values - weight) @ rows.T).sum()
    return total


@given(seeds, columns, formats, st.integers(1, 3))
def test_a_scale_is_never_worse_than_none(seed, width, form, layers):
    rows = inputs_of(seed, 40, width)
    weights = [some(seed + n, 6, width) for n in range(layers)]
    scale = searched(weights, rows, form)
    if scale is None:
        return
    assert scale.dtype == np.float32
    assert scale.shape == (width,)
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    without = scaled_error(weights, rows, form, np.ones(width))
    assert scaled_error(weights, rows, form, scale) < without * (1 + 1e-5)


def test_loud_columns_get_the_finer_steps():
    rows = some(0, 200, 64) * np.where(np.arange(64) % 16 == 3, 30.0, 1.0)
    weight, form = some(1, 32, 64), WeightFormat(3, 16)
    scale = searched([weight], rows, form)
    assert scale is not None
    loud = np.arange(64) % 16 == 3
    assert scale[loud].min() > scale[~loud].max()
    without = scaled_error([weight], rows, form, np.ones(64))
    assert scaled_error([weight], rows, form, scale) < 0.5 * without


def test_columns_of_large_weights_are_made_smaller():
    rows, form = some(0, 200, 64), WeightFormat(3, 16)
    large = np.arange(64) % 16 == 3
    weight = some(1, 32, 64) * np.where(large, 10.0, 1.0)
    scale = searched([weight], rows, form)
    assert scale is not None
    assert scale[large].max() < scale[~large].min()


def test_layers_with_one_input_share_a_scale_that_suits_their_sum():
    rows, form = inputs_of(5, 100, 48), WeightFormat(3, 16)
    weights = [some(1, 8, 48), 10 * some(2, 8, 48)]
    both = searched(weights, rows, form)
    np.testing.assert_allclose(both, searched(weights[::-1], rows, form), rtol=1e-6)
    found = scaled_error(weights, rows, form, both)
    assert found < scaled_error(weights, rows, form, np.ones(48))


@pytest.mark.parametrize(
    "magnitude",
    [np.zeros(16), np.ones(16), np.array([1e-30] * 8 + [1e30] * 8), np.array([0.0] * 15 + [2.0])],
)
def test_no_magnitude_makes_an_unusable_scale(magnitude):
    rows = some(0, 20, 16) * magnitude.clip(1e-3, 1e3)
    form = WeightFormat(4, 16)
    for weight in (some(1, 4, 16), np.zeros((4, 16))):
        scale = input_scale([weight], rows.T @ rows, magnitude, 16, nearest(form))
        assert scale is None or (np.isfinite(scale) & (scale > 0)).all()


def test_both_kinds_of_scales_are_tried():
    tried, form = [], WeightFormat(4, 16)

    def rounding(weight, scale):
        tried.append(scale)
        return nearest(form)(weight, scale)

    searched([some(1, 4, 32)], inputs_of(0, 30, 32), form, rounding)
    assert (tried[0] == 1).all()
    assert len({scale.tobytes() for scale in tried}) == len(tried) == 2 * STEPS


@given(seeds, columns, formats, st.integers(1, 3))
def test_a_harmless_scale_raises_the_error_of_no_layer(seed, width, form, layers):
    rows = inputs_of(seed, 40, width)
    weights = [some(seed + n, 6, width) * 10.0**n for n in range(layers)]
    magnitude = np.abs(rows).mean(axis=0)
    scale = harmless_scale(weights, rows.T @ rows, magnitude, nearest(form))
    if scale is None:
        return
    found = [scaled_error([weight], rows, form, scale) for weight in weights]
    without = [scaled_error([weight], rows, form, np.ones(width)) for weight in weights]
    assert (np.array(found) <= np.array(without) * (1 + 1e-5)).all()
    assert sum(found) < sum(without) * (1 + 1e-5)


def test_a_scale_that_harms_one_layer_is_not_taken():
    rows = some(0, 200, 64) * np.where(np.arange(64) % 16 == 3, 30.0, 1.0)
    form, helped = WeightFormat(3, 16), some(1, 32, 64)
    # on its grid as it is, and no longer so in any other basis
    exact = np.where(np.arange(64) % 16 == 0, -4.0, np.round(2 * some(2, 32, 64).clip(-1, 1)))
    magnitude, hessian = np.abs(rows).mean(axis=0), rows.T @ rows
    assert harmless_scale([helped], hessian, magnitude, nearest(form)) is not None
    assert input_scale([10 * helped, exact], hessian, magnitude, 16, nearest(form)) is not None
    assert harmless_scale([10 * helped, exact], hessian, magnitude, nearest(form)) is None


def clipped_by_the_book(weights, hessian, form):
    """Errors of the codes when each group's range, one after another, is the best of all."""
    scales, zeros = group_parameters(weights, form)
    moved, size = np.zeros(weights.shape), form.group_size or weights.shape[1]
    ends = [1.0, -form.middle / (form.middle - 1)] if form.symmetric else [1.0]
    for group in range(scales.shape[1]):
        part = slice(group * size, (group + 1) * size)
        for row in range(len(weights)):
            zero, least = float(zeros[row, group]), np.inf
            for share in np.outer(ends, NARROWER).ravel():
                step = float(np.dtype(form.scale_type).type(scales[row, group] * share))
                codes = np.clip(np.rint(weights[row, part] / step) + zero, 0, form.high)
                error = moved[row].copy()
                error[part] = weights[row, part] - step * (codes - zero)
                cost = error @ hessian @ error
                if cost < least:
                    least, best = cost, error
            moved[row] = best
    return moved


@settings(deadline=None, max_examples=40)
@given(seeds, columns, formats, st.booleans())
def test_clipping_finds_the_least_error_of_group_after_group(seed, width, form, scaled):
    rows = inputs_of(seed, 90, width, spread=0.7)
    hessian = rows.T @ rows
    scale = np.ones(width, np.float32)
    if scaled:
        scale = np.exp(0.5 * some(seed + 1, width)).astype(np.float32)
    weights = some(seed + 2, 3, width) ** 3
    found = round_clipped(weights, hessian, scale, form)
    whole, zeros = group_parameters(weights * scale, form)
    assert found.scales.dtype == np.dtype(form.scale_type)
    np.testing.assert_array_equal(found.zeros, zeros)
    rounded = round_to(weights * scale, form, found.scales, found.zeros)
    np.testing.assert_array_equal(found.codes, rounded)
    share = np.abs(found.scales.astype(np.float64) / whole)
    other_end = form.middle / (form.middle - 1) if form.symmetric else 1.0
    assert (share <= other_end * 1.01).all()
    assert (share >= NARROWER[-1] * 0.99).all()
    expected = clipped_by_the_book(weights * scale, hessian / scale / scale[:, None], form)
    least = output_error(expected / scale, hessian)
    floor = 1e-6 * output_error(weights, hessian)
    assert output_error(weights - found.values(), hessian) <= 1.01 * least + floor


@settings(deadline=None, max_examples=20)
@given(seeds, columns, st.sampled_from([0, 16, 32]), st.sampled_from(["float32", "float16"]))
def test_clipping_keeps_scales_positive_where_they_must_be(seed, width, size, kind):
    form = WeightFormat(4, size, symmetric=True, scale_type=kind, signed=False)
    rows, weights = inputs_of(seed, 90, width, spread=0.7), some(seed + 2, 3, width) ** 3
    hessian, one = rows.T @ rows, np.ones(width, np.float32)
    found = round_clipped(weights, hessian, one, form)
    assert (found.scales > 0).all()
    assert (found.zeros == form.middle).all()
    rounded = round_to(weights, form, found.scales, found.zeros)
    np.testing.assert_array_equal(found.codes, rounded)
    whole, _ = group_parameters(weights, form)
    assert (found.scales <= whole).all(), "ranges are narrowed"
    plain = round_nearest(weights, form)
    least = min(output_error(weights - plain.values(), hessian), np.inf)
    assert output_error(weights - found.values(), hessian) <= 1.01 * least + 1e-9


def test_clipping_cuts_off_a_value_that_meets_no_input():
    weights, power, form = some(0, 4, 32), np.ones(32), WeightFormat(4, 32)
    weights[:, 5], power[5] = 8.0, 1e-6
    found = round_clipped(weights, np.diag(power), np.ones(32, np.float32), form)
    whole, _ = group_parameters(weights, form)
    assert (found.scales / whole < 0.7).all()


def test_weights_of_zero_keep_a_usable_scale():
    form = WeightFormat(4, 16)
    found = round_clipped(np.zeros((2, 32)), np.eye(32), np.ones(32, np.float32), form)
    assert (found.scales == 1).all()
