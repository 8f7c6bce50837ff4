"""Weights that make up for what their inputs lost: least squares, and better on other inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import DataError
from qcompile.numerics.compensation import DAMPING, Compensation, LostSum
from qcompile.numerics.hessian import ROWS, HessianSum
from tests.numerics.test_gptq import devices

MARGIN = 0.6
"""What may be left of an error that is linear in the inputs, on inputs that were not seen."""


def streams(seed, count, columns):
    """Inputs, and what the float model has: they share directions, and differ along these."""
    fixed = np.random.default_rng(99)
    mix = fixed.standard_normal((1 + columns // 8, columns))
    turn = 0.02 * fixed.standard_normal((len(mix), columns))
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((count, len(mix)))
    loud = np.exp(fixed.standard_normal(columns))
    rows = (common @ mix + 0.3 * rng.standard_normal((count, columns))) * loud
    return rows.astype(np.float32), (rows + common @ turn * loud).astype(np.float32)


def sums(rows, exact):
    hessian, lost = HessianSum(rows.shape[1]), LostSum(rows.shape[1])
    hessian.add(rows)
    lost.add(rows, exact)
    return hessian.matrix(), lost.matrix


def weights_of(seed, rows, columns):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("device", devices)
@settings(deadline=None)
@given(st.integers(0, 999), st.integers(1, 140), st.integers(0, 3))
def test_equals_the_formula(device, seed, columns, silent):
    rows, exact = streams(seed, 60, columns)
    rows[:, :silent] = exact[:, :silent] = 0
    hessian, lost = sums(rows, exact)
    weight = weights_of(seed, 5, columns)
    power = np.diag(hessian)
    damped = hessian + DAMPING * np.diag(np.where(power > 0, power, 1))
    expected = weight + np.linalg.solve(damped, lost @ weight.T.astype(np.float64)).T
    found = Compensation(hessian.copy(), lost, device()).of(weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[:, :silent], weight[:, :silent])


def test_less_is_lost_on_inputs_that_were_not_seen():
    compensation = Compensation(*sums(*streams(1, 2000, 96)))
    weight = weights_of(2, 40, 96)
    rows, exact = streams(3, 500, 96)
    wanted = exact @ weight.T
    before = np.linalg.norm(rows @ weight.T - wanted)
    assert np.linalg.norm(rows @ compensation.of(weight).T - wanted) < MARGIN * before


def test_nothing_lost_nothing_moved():
    rows, _ = streams(1, 50, 32)
    weight = weights_of(2, 7, 32)
    np.testing.assert_array_equal(Compensation(*sums(rows, rows)).of(weight), weight)


@pytest.mark.parametrize("count", [1, ROWS, 2 * ROWS + 3])
def test_the_sum_is_that_of_all_rows(count):
    rows, exact = streams(4, count, 6)
    lost = LostSum(6)
    lost.add(rows[:1], exact[:1])
    lost.add(rows[1:], exact[1:])
    wide = rows.astype(np.float64)
    expected = wide.T @ (exact - wide)
    np.testing.assert_allclose(lost.matrix, expected, atol=1e-4 * np.abs(expected).max())


def test_the_hessian_is_left_as_it_is():
    hessian, lost = sums(*streams(5, 80, 20))
    kept = hessian.copy()
    Compensation(hessian, lost).of(weights_of(0, 3, 20))
    np.testing.assert_array_equal(hessian, kept)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sums_that_are_not_finite_are_refused(where, value):
    both = list(sums(*streams(6, 80, 20)))
    both[where] = np.full((20, 20), value)
    with pytest.raises(DataError, match="NaN or infinity, or overflow"):
        Compensation(*both)


def test_what_is_no_hessian_is_refused():
    hessian, lost = sums(*streams(7, 80, 20))
    with pytest.raises(DataError, match="not positive semidefinite"):
        Compensation(np.where(np.eye(20) > 0, hessian, 1e6), lost)
