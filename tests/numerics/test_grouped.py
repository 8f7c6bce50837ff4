"""GPTQ group after group: its order, its codes, and what clipping gains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.numerics.gptq import prepare, solve_prepared
from qcompile.numerics.grouped import WIDEST, solve_grouped
from qcompile.numerics.groups import WeightFormat

formats = st.builds(
    WeightFormat,
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([0, 4, 16, 48, 128]),
    st.booleans(),
    st.sampled_from(["float32", "float16"]),
)


def layer(seed, rows, columns):
    """Weights, and a Hessian of inputs that share a few directions."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((4 * columns + 8, 1 + columns // 8))
    inputs = common @ rng.standard_normal((1 + columns // 8, columns))
    inputs = (inputs + rng.standard_normal(inputs.shape)) * rng.uniform(0.1, 3, columns)
    return rng.standard_normal((rows, columns)), inputs.T @ inputs


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(1, 90), st.sampled_from([1, 7, 16, 32]))
def test_the_order_keeps_groups_together(seed, columns, size):
    _, hessian = layer(seed, 1, columns)
    power = np.diag(hessian)
    order = prepare(hessian, group_size=size).order
    assert sorted(order) == list(range(columns))
    group = order // size
    turns = group[np.flatnonzero(np.diff(group, prepend=-1))]
    assert len(turns) == len(set(turns))
    means = [power[g * size : (g + 1) * size].mean() for g in turns]
    assert (np.diff(means) <= 0).all()
    for one in turns:
        assert (np.diff(power[order[group == one]]) <= 0).all()


def by_columns(weights, hessian, solved, order):
    """Return GPTQ's codes on given grids, one column at a time; columns as they are."""
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    group, work = solved.format.group_of(len(order))[order], weights[:, order]
    codes = np.empty(work.shape)
    for column, place in enumerate(order):
        scale = solved.scales[:, group[column]].astype(np.float64)
        zero = solved.zeros[:, group[column]].astype(np.float64)
        left, pivot = work[:, column].copy(), inverse[column, column]
        code = np.clip(np.rint(left / scale) + zero, 0, solved.format.high)
        codes[:, place] = code
        row = inverse[column].copy()
        work -= np.outer((left - (code - zero) * scale) / pivot, row)
        inverse -= np.outer(row, row) / pivot
    return codes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), st.integers(1, 150), formats, st.booleans(), st.booleans())
def test_codes_are_those_of_gptq_on_the_grids_that_were_found(
    seed, columns, form, act_order, scaled
):
    weights, hessian = layer(seed, 4, columns)
    scale = np.ones(columns, np.float32)
    if scaled:
        scale = np.exp2(np.random.default_rng(seed).integers(-2, 3, columns)).astype(np.float32)
    inverse = prepare(hessian, act_order=act_order, group_size=form.group_size)
    found = solve_grouped(weights, inverse, form, scale)
    assert found.order is None
    assert found.input_scale is scale
    assert found.scales.dtype == form.scale_type
    assert (found.scales != 0).all()
    damped = hessian + inverse.damping * np.diag(hessian).mean() * np.eye(columns)
    expected = by_columns(weights * scale, damped / scale / scale[:, None], found, inverse.order)
    np.testing.assert_array_equal(found.codes, expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_lowers_the_error_of_every_row_of_a_group(bits, symmetric):
    weights, hessian = layer(3, 64, 200)
    inverse, form = prepare(hessian), WeightFormat(bits, 0, symmetric)
    damped = hessian + inverse.damping * np.diag(hessian).mean() * np.eye(200)
    solved = solve_prepared(weights, inverse, form), solve_grouped(weights, inverse, form)
    moved = [weights - w.values() for w in solved]
    fixed, clipped = (np.einsum("rk,rk->r", m @ damped, m) for m in moved)
    assert (clipped <= fixed * (1 + 1e-6)).all()
    assert clipped.sum() < 0.97 * fixed.sum()


@pytest.mark.parametrize("search", [True, False])
def test_a_wide_group_takes_the_grid_of_gptq(search):
    weights, hessian = layer(4, 4, WIDEST + 30)
    inverse, form = prepare(hessian), WeightFormat(4, 0)
    found = solve_grouped(weights, inverse, form, search=search)
    plain = solve_prepared(weights, inverse, form, search=search)
    np.testing.assert_array_equal(found.scales, plain.scales)
    np.testing.assert_array_equal(found.codes, plain.codes)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999), st.integers(1, 150), st.sampled_from([0, 16, 48]), st.booleans())
def test_scales_are_positive_where_they_must_be(seed, columns, size, search):
    form = WeightFormat(4, size, symmetric=True, signed=False)
    weights, hessian = layer(seed, 4, columns)
    inverse = prepare(hessian, group_size=size)
    for solve in (solve_grouped, solve_prepared):
        found = solve(weights, inverse, form, search=search)
        assert (found.scales > 0).all()
        assert (found.zeros == form.middle).all()
    damped = hessian + inverse.damping * np.diag(hessian).mean() * np.eye(columns)
    grouped = solve_grouped(weights, inverse, form, search=search)
    expected = by_columns(weights, damped, grouped, inverse.order)
    np.testing.assert_array_equal(grouped.codes, expected)
