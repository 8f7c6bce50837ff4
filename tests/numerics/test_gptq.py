"""GPTQ against a loop written straight from the paper, and against plain rounding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics.gptq import DAMPING, inverse_factor, output_error, round_columns


def layer(seed, rows, columns, alike=0.0):
    """Weights, scales and a Hessian of inputs that share a common part."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((4 * columns, columns)) * rng.uniform(0.1, 3, columns)
    inputs += alike * rng.standard_normal((4 * columns, 1))
    weights = rng.standard_normal((rows, columns))
    scale = np.abs(weights).max(axis=1) / 127
    return weights, scale, inputs.T @ inputs


def reference(weights, scale, hessian, high):
    """Algorithm 1 with the inverse taken anew for the columns that remain, in float64."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    work, codes = weights[:, order].copy(), np.zeros(weights.shape)
    damped = damped[np.ix_(order, order)]
    for column in range(work.shape[1]):
        inverse = np.linalg.inv(damped[column:, column:])
        code = np.clip(np.rint(work[:, column] / scale), -high, high)
        error = (work[:, column] - code * scale) / inverse[0, 0]
        work[:, column + 1 :] -= np.outer(error, inverse[0, 1:])
        codes[:, order[column]] = code
    return codes


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 40), st.sampled_from([0.0, 2.0]))
def test_equals_the_paper(seed, rows, columns, alike):
    weights, scale, hessian = layer(seed, rows, columns, alike)
    found = round_columns(weights, scale, hessian, 127)
    differ = np.abs(found - reference(weights, scale, hessian, 127))
    assert differ.max(initial=0) <= 1  # a tie may fall to the other side
    assert (differ > 0).mean() <= 0.02


def test_blocks_change_nothing():
    weights, scale, hessian = layer(5, 8, 300, 1.0)
    found = round_columns(weights, scale, hessian, 127)
    assert (found != reference(weights, scale, hessian, 127)).mean() < 0.01


@pytest.mark.parametrize("size", [1, 127, 128, 129, 300])
def test_inverse_factor(size):
    _, _, hessian = layer(1, 1, size)
    factor = inverse_factor(hessian)
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(size)
    assert np.array_equal(factor, np.triu(factor))
    assert np.allclose(factor.T @ factor @ damped, np.eye(size), atol=1e-8)


def test_beats_plain_rounding_where_inputs_are_alike():
    weights, scale, hessian = layer(2, 16, 96, alike=10.0)
    plain = np.rint(weights / scale[:, None])
    solved = round_columns(weights, scale, hessian, 127)
    errors = [output_error(weights - c * scale[:, None], hessian) for c in (plain, solved)]
    assert errors[1] < 0.1 * errors[0]


def test_codes_stay_on_a_reduced_grid_and_dead_inputs_do_no_harm():
    weights, scale, hessian = layer(3, 4, 20)
    hessian[7], hessian[:, 7] = 0, 0
    codes = round_columns(weights, scale * 127 / 63, hessian, 63)
    assert np.abs(codes).max() <= 63
    zero = round_columns(weights, scale, np.zeros((20, 20)), 127)
    assert np.array_equal(zero, np.rint(weights / scale[:, None]))
