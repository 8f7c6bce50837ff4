"""Group formats, their grids and rounding to the nearest code."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.errors import ModelError, PlanError, RecipeError
from qcompile.numerics.groups import (
    SolvedWeight,
    WeightFormat,
    group_parameters,
    round_nearest,
    round_to,
)

formats = st.builds(
    WeightFormat,
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([0, 1, 5, 16, 32]),
    st.booleans(),
    st.sampled_from(["float32", "float16"]),
)
matrices = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.tuples(st.integers(1, 4), st.integers(1, 70)),
    elements=st.floats(-1e4, 1e4, width=32),
)


def some(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def loss(weights: np.ndarray, solved: SolvedWeight, importance: np.ndarray | float = 1.0) -> float:
    return float((importance * np.square(solved.values().astype(np.float64) - weights)).sum())


def spread(solved: SolvedWeight) -> tuple[np.ndarray, np.ndarray]:
    group = solved.format.group_of(solved.codes.shape[1])
    return solved.scales.astype(np.float64)[:, group], solved.zeros.astype(np.float64)[:, group]


@settings(deadline=None)
@given(matrices, formats, st.booleans())
def test_rounding_holds_what_it_promises(weights, used, search):
    solved = round_nearest(weights, used, search=search)
    columns = weights.shape[1]
    assert solved.codes.dtype == solved.zeros.dtype == np.uint8
    assert solved.scales.dtype == used.scale_type
    assert solved.scales.shape == solved.zeros.shape == (len(weights), used.groups(columns))
    assert solved.codes.max() <= used.high
    assert solved.zeros.max() <= used.high
    assert np.isfinite(solved.scales).all()
    assert (solved.scales != 0).all()
    if used.symmetric:
        assert (solved.zeros == used.middle).all()
    else:
        assert (solved.scales > 0).all()
    scales, zeros = spread(solved)
    nearest = np.clip(np.rint(weights.astype(np.float64) / scales) + zeros, 0, used.high)
    assert np.array_equal(solved.codes, nearest)
    exact = scales * (solved.codes - zeros)
    assert np.array_equal(solved.stored(), exact.astype(np.float32))


@settings(deadline=None)
@given(matrices, formats)
def test_no_code_is_far_away(weights, used):
    solved = round_nearest(weights, used)
    scales, _ = spread(solved)
    off = np.abs(solved.values().astype(np.float64) - weights) / np.abs(scales)
    # one step at the upper end, which a symmetric grid lacks; a float16 scale is itself rounded
    limit = 1.0 if used.symmetric else 0.5
    exact = used.scale_type == "float32" or np.abs(solved.scales).min() > 1e-3
    if exact:
        assert off.max() <= limit + used.high * 2.0**-11


@settings(deadline=None)
@given(st.integers(0, 10_000), formats, st.booleans(), st.integers(1, 70))
def test_values_on_a_grid_come_back(seed, used, weighted, columns):
    importance = np.random.default_rng(seed).uniform(0.1, 10, columns) if weighted else None
    first = round_nearest(some(seed, 3, columns), used, search=True, importance=importance)
    second = round_nearest(first.stored(), used, search=True, importance=importance)
    same = np.isclose(second.stored(), first.stored(), rtol=1e-6, atol=0)
    for group in range(used.groups(columns)):
        one = used.group_of(columns) == group
        outer = [(first.codes[:, one] == end).any(axis=1) for end in (0, used.high)]
        # a grid is known by its outer codes: symmetric ones by either
        known = outer[0] | outer[1] if used.symmetric else outer[0] & outer[1]
        assert known.all() or not used.symmetric
        assert same[:, one][known].all()


@settings(deadline=None)
@given(st.integers(0, 10_000), formats, st.integers(1, 70), st.booleans())
def test_search_lowers_the_error(seed, used, columns, weighted):
    weights = some(seed, 3, columns)
    importance = np.random.default_rng(seed).uniform(0.1, 10, columns) if weighted else None
    found = round_nearest(weights, used, search=True, importance=importance)
    plain = round_nearest(weights, used)
    weight = 1.0 if importance is None else importance
    assert loss(weights, found, weight) <= loss(weights, plain, weight) * (1 + 1e-6) + 1e-12


def twins(used: WeightFormat) -> tuple[WeightFormat, WeightFormat]:
    """Return the format with scales of either sign, and with positive ones."""
    signed = dataclasses.replace(used, symmetric=True)
    return signed, dataclasses.replace(signed, signed=False)


@settings(deadline=None)
@given(matrices, formats, st.booleans())
def test_scales_are_positive_where_they_must_be(weights, used, search):
    _, positive = twins(used)
    solved = round_nearest(weights, positive, search=search)
    assert (solved.scales > 0).all()
    assert (solved.zeros == positive.middle).all()
    scales, zeros = spread(solved)
    nearest = np.clip(np.rint(weights.astype(np.float64) / scales) + zeros, 0, positive.high)
    assert np.array_equal(solved.codes, nearest)


@settings(deadline=None)
@given(st.integers(0, 10_000), formats, st.integers(1, 70))
def test_a_sign_is_worth_one_code_at_most(seed, used, columns):
    """Without it the value of largest magnitude may be cut off by one step, not more."""
    weights = some(seed, 3, columns)
    _, positive = twins(used)
    found, plain = (round_nearest(weights, positive, search=search) for search in (True, False))
    assert loss(weights, found) <= loss(weights, plain) * (1 + 1e-6) + 1e-12
    scales, _ = spread(plain)
    off = np.abs(plain.values().astype(np.float64) - weights)
    if used.scale_type == "float32":
        assert (off <= scales * (1 + 1e-6)).all()


def test_what_a_sign_is_worth():
    """Of normal weights in groups of 64, plain rounding can be better than with a sign."""
    weights = some(8, 64, 2048)
    for bits, most, plainly in ((4, 1.12, 1.09), (8, 1.04, 1.0)):
        for search, limit in ((True, most), (False, plainly)):
            free, found = (
                loss(weights, round_nearest(weights, kind, search=search))
                for kind in twins(WeightFormat(bits, 64))
            )
            assert found < limit * free
            assert free < found or not search


def test_the_largest_value_is_kept_with_positive_scales_too():
    weights = np.array([[1.0, -3.0, 2.0, 7.0], [1.0, -8.0, 2.0, 3.0]])
    solved = round_nearest(weights, WeightFormat(4, 0, signed=False))
    assert np.array_equal(solved.scales, [[1.0], [1.0]])
    assert np.array_equal(solved.values(), weights)


def test_formats_that_differ_in_how_scales_are_found_store_the_same():
    signed, positive = twins(WeightFormat(4, 64))
    assert signed == positive
    assert hash(signed) == hash(positive)


def test_search_against_all_scales_of_a_fine_row():
    """The best of thousands of scales of both signs is less than 3 % better."""
    used, weights = WeightFormat(4, 0), some(1, 4, 64).astype(np.float64)
    found = round_nearest(weights, used, search=True)
    for row, weight in enumerate(weights):
        scales = np.abs(weight).max() / 7 * np.linspace(0.2, 1, 4000)
        scales = np.concatenate([scales, -scales])[:, None]
        codes = np.clip(np.rint(weight / scales), -8, 7)
        best = np.square(codes * scales - weight).sum(axis=1).min()
        one = np.square(found.values()[row] - weight).sum()
        assert best * (1 - 1e-6) <= one <= 1.03 * best


def test_search_gains_what_it_is_for():
    weights = some(2, 64, 4096)
    for bits, gain in ((2, 0.75), (3, 0.82), (4, 0.9)):
        used = WeightFormat(bits, 128)
        plain, found = (round_nearest(weights, used, search=search) for search in (False, True))
        assert loss(weights, found) < gain * loss(weights, plain)


def test_the_value_of_largest_magnitude_is_kept():
    weights = np.array([[1.0, -3.0, 2.0, 8.0], [1.0, -8.0, 2.0, 3.0]])
    solved = round_nearest(weights, WeightFormat(4, 0))
    assert np.array_equal(solved.scales, [[-1.0], [1.0]])
    assert np.array_equal(solved.values(), weights)


def test_asymmetric_grids_hold_zero_and_both_ends():
    weights = np.array([[0.0, 1.0, 15.0], [-15.0, -1.0, -2.0], [-5.0, 0.0, 10.0], [3.0, 6.0, 15.0]])
    solved = round_nearest(weights, WeightFormat(4, 0, symmetric=False))
    assert np.array_equal(solved.zeros, [[0], [15], [5], [0]])
    assert np.array_equal(solved.values(), weights)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [True, False])
def test_groups_of_zeros_and_the_last_short_group(symmetric, search):
    weights = some(3, 2, 35)
    weights[:, 16:32] = 0
    solved = round_nearest(weights, WeightFormat(4, 16, symmetric), search=search)
    assert (solved.scales[:, 1] == 1).all()
    assert not solved.values()[:, 16:32].any()
    alone = round_nearest(weights[:, 32:], WeightFormat(4, 16, symmetric), search=search)
    assert np.array_equal(solved.codes[:, 32:], alone.codes)
    assert np.array_equal(solved.scales[:, 2:], alone.scales)


def test_importance_decides():
    weights = np.tile(np.append(np.linspace(-1, 1, 31), 6.0), (1, 1))
    small, large = np.ones(32), np.ones(32)
    small[-1], large[-1] = 1e-6, 1e6
    used = WeightFormat(4, 0)
    shrunk, kept = (round_nearest(weights, used, search=True, importance=i) for i in (small, large))
    assert abs(kept.values()[0, -1] - 6) < 1e-3
    assert abs(shrunk.values()[0, -1] - 6) > 2
    nothing = round_nearest(weights, used, search=True, importance=np.zeros(32))
    assert np.isfinite(nothing.values()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_are_not_finite_are_refused(bad, symmetric):
    weights = some(4, 3, 20)
    weights[1, 7] = bad
    with pytest.raises(ModelError, match="NaN or infinity"):
        round_nearest(weights, WeightFormat(4, 16, symmetric))


def test_scales_beyond_float16():
    with pytest.raises(PlanError, match="float16"):
        round_nearest(np.full((1, 16), 1e6), WeightFormat(4, 0, scale_type="float16"))
    for tiny in (1e-6, 1e-9, 1e-38):  # float16 ends at 6e-8
        weights = tiny * some(5, 2, 16)
        for symmetric in (True, False):
            solved = round_nearest(weights, WeightFormat(4, 0, symmetric, "float16"))
            assert (solved.scales != 0).all()
            assert np.abs(solved.values() - weights).max() <= max(2.0**-24, 0.6 * tiny)


def test_the_smallest_and_largest_weights():
    for size in (1e-44, 1e-38, 3e38):
        weights = np.array([[size, -size, size / 2, 0]], np.float32)
        for symmetric in (True, False):
            values = round_nearest(weights, WeightFormat(8, 0, symmetric), search=True).values()
            assert np.abs(values - weights).max() <= 0.02 * size + 1.5e-45


def test_any_floating_type():
    import ml_dtypes

    weights = some(6, 3, 40).astype(np.float16)
    used = WeightFormat(4, 16)
    wide = round_nearest(weights.astype(np.float64), used, search=True)
    assert np.array_equal(round_nearest(weights, used, search=True).codes, wide.codes)
    brain = weights.astype(ml_dtypes.bfloat16)
    wide = round_nearest(brain.astype(np.float64), used)
    assert np.array_equal(round_nearest(brain, used).codes, wide.codes)
    assert np.array_equal(
        round_nearest(np.asfortranarray(weights)[:, ::2], used).zeros[:, 0], [8] * 3
    )


def test_rows_do_not_depend_on_each_other():
    weights = some(7, 700, 1000)  # more than one part
    used = WeightFormat(3, 128)
    whole = round_nearest(weights, used, search=True)
    some_rows = round_nearest(weights[301:305], used, search=True)
    assert np.array_equal(whole.codes[301:305], some_rows.codes)
    assert np.array_equal(whole.scales[301:305], some_rows.scales)


def test_order_and_input_scale_come_undone():
    """Multiplying the reordered, scaled inputs by what is stored is what ``values`` says."""
    rng = np.random.default_rng(8)
    weights, x = some(8, 5, 24), rng.standard_normal((3, 24))
    order, scale = rng.permutation(24), rng.uniform(0.5, 2, 24).astype(np.float32)
    solved = round_nearest((weights * scale)[:, order], WeightFormat(8, 8))
    solved = dataclasses.replace(solved, order=order, input_scale=scale)
    stored = solved.stored().astype(np.float64)
    assert np.allclose(((x / scale)[:, order]) @ stored.T, x @ solved.values().T, rtol=1e-5)
    assert np.allclose(solved.values(), weights, atol=0.05)


def test_parameters_of_one_group():
    weights, used = some(9, 4, 32), WeightFormat(4, 16)
    scales, zeros = group_parameters(weights, used)
    alone = group_parameters(weights[:, 16:], used)
    assert np.array_equal(scales[:, 1:], alone[0])
    assert np.array_equal(
        round_to(weights, used, scales, zeros), round_nearest(weights, used).codes
    )


def test_formats_that_do_not_exist():
    for bad in ({"bits": 5}, {"group_size": -1}, {"scale_type": "float64"}):
        with pytest.raises(RecipeError):
            WeightFormat(**{"bits": 4, "group_size": 32, **bad})
    assert [WeightFormat(3, g).groups(100) for g in (0, 32, 100, 128)] == [1, 4, 1, 1]
    assert (WeightFormat(3, 0).high, WeightFormat(3, 0).middle) == (7, 4)


@pytest.mark.slow
def test_a_large_matrix_needs_little_memory():
    """16000 x 4096 of float16: the codes are 62 MiB; beside them there is little."""
    code = """
import numpy as np
from qcompile.numerics.groups import WeightFormat, round_nearest
from tests.memory import peak_kib
used = WeightFormat(4, 128)
weights = np.random.default_rng(0).standard_normal((1000, 4096)).astype(np.float16)
round_nearest(weights, used, search=True)  # compiles
weights = np.tile(weights, (16, 1))
before = peak_kib()
round_nearest(weights, used, search=True)
print(peak_kib() - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) / 1024 <= 150


def test_importing_is_cheap():
    code = (
        "import sys, qcompile.numerics.gptq, qcompile.numerics.nbits;"
        "print([m for m in ('numba', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
