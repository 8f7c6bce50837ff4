"""Bias correction's sums, against the definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics.bias_correction import channel_means, error_change, weight_shift

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, axis=st.sampled_from([0, 1, 2, -1]))
def test_channel_means_are_those_of_each_channel(seed: int, axis: int) -> None:
    values = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    moved = np.moveaxis(values, axis, 0).astype(np.float64)
    np.testing.assert_allclose(channel_means(values, axis), [c.mean() for c in moved], rtol=1e-12)


@given(seed=SEEDS, groups=st.sampled_from([1, 2, 4]))
def test_the_shift_of_weights_is_the_mean_of_what_their_error_makes(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    error = rng.normal(size=(4, 4 // groups, 3))
    patches = rng.normal(size=(50, 4, 1)) + np.zeros((1, 1, 3))  # each place has the same mean
    made = np.zeros((50, 4))
    for row in range(4):
        first = row // (4 // groups) * (4 // groups)
        made[:, row] = (patches[:, first : first + 4 // groups] * error[row]).sum(axis=(1, 2))
    means = patches[:, :, 0].mean(axis=0)
    np.testing.assert_allclose(weight_shift(error, means, groups), made.mean(axis=0), atol=1e-12)


@given(seed=SEEDS)
def test_error_change_is_what_the_squared_error_changes_by(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(5, 7, 3))  # samples, places, channels
    correction = rng.normal(size=3)
    exact = ((errors + correction) ** 2 - errors**2).mean(axis=(0, 1)).sum()
    assert np.isclose(error_change(correction, errors.mean(axis=1)), exact)


@given(seed=SEEDS)
def test_the_mean_error_is_the_best_correction(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shifts = rng.normal(1, 1, size=(5, 3))
    best = -shifts.mean(axis=0)
    other = best + rng.normal(size=3)
    assert error_change(best, shifts) <= error_change(other, shifts) + 1e-12
    assert error_change(best, shifts) <= 0
