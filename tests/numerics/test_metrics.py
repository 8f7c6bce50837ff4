import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics import metrics

finite = st.floats(-1e6, 1e6, width=32)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=6)
pairs = shapes.flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=finite)] * 2)
)


@given(pairs)
def test_sums_are_those_of_the_definitions(pair):
    r, t = (np.asarray(a, np.float64) for a in pair)
    sums = metrics.error_sums(*pair)
    noise, signal = float(((r - t) ** 2).sum()), float((r**2).sum())
    assert sums.elements == r.size
    assert sums.max_abs == np.abs(r - t).max(initial=0)
    if noise and signal:
        assert sums.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)
        assert sums.relative_l2 == pytest.approx(math.sqrt(noise / signal))
        norms = np.linalg.norm(r) * np.linalg.norm(t)
        if norms > 1e-200:
            assert sums.cosine == pytest.approx((r * t).sum() / norms, abs=1e-9)
    assert sums.identical == bool((r == t).all())


@given(pairs, st.data())
def test_sums_of_parts_add_up(pair, data):
    r, t = (a.reshape(-1) for a in pair)
    cut = data.draw(st.integers(0, r.size))
    parts = metrics.error_sums(r[:cut], t[:cut]) + metrics.error_sums(r[cut:], t[cut:])
    whole = metrics.error_sums(r, t)
    assert parts.elements == whole.elements
    assert parts.max_abs == whole.max_abs
    assert parts.noise == pytest.approx(whole.noise, rel=1e-12)
    assert parts.product == pytest.approx(whole.product, rel=1e-9, abs=1e-3)


def test_blocks_cover_a_large_array(monkeypatch):
    rng = np.random.default_rng(0)
    r, t = rng.normal(size=(2, 1001)).astype(np.float32)
    whole = metrics.error_sums(r, t)
    monkeypatch.setattr(metrics, "_BLOCK", 10)
    assert metrics.error_sums(r, t).noise == pytest.approx(whole.noise, rel=1e-12)
    assert metrics.error_sums(r, t).elements == 1001


def test_halving_the_error_gives_six_decibels():
    rng = np.random.default_rng(0)
    r, e = rng.normal(size=(2, 1000))
    gain = metrics.sqnr_db(r, r + e / 2) - metrics.sqnr_db(r, r + e)
    assert gain == pytest.approx(20 * math.log10(2))


def test_equal_arrays():
    a = np.array([1.0, -2.0])
    assert metrics.sqnr_db(a, a) == math.inf
    assert metrics.cosine(a, a) == 1
    assert metrics.relative_l2(a, a) == 0
    zeros = np.zeros(3)
    assert (metrics.sqnr_db(zeros, zeros), metrics.cosine(zeros, zeros)) == (math.inf, 1)


def test_zero_reference():
    zero, one = np.zeros(2), np.ones(2)
    assert metrics.sqnr_db(zero, one) == -math.inf
    assert metrics.relative_l2(zero, one) == math.inf
    assert math.isnan(metrics.cosine(zero, one))


def test_same_nonfinite_elements_are_left_out():
    r = np.array([np.inf, -np.inf, np.nan, 1.0])
    sums = metrics.error_sums(r, np.array([np.inf, -np.inf, np.nan, 1.5]))
    assert (sums.skipped, sums.broken, sums.elements, sums.noise) == (3, 0, 1, 0.25)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_new_nonfinite_elements_are_broken(bad):
    r = np.array([1.0, 2.0])
    t = np.array([1.0, bad])
    assert metrics.error_sums(r, t).broken == 1
    assert metrics.sqnr_db(r, t) == -math.inf
    assert math.isnan(metrics.cosine(r, t))
    assert metrics.max_abs_error(r, t) == math.inf
    assert metrics.error_sums(t, r).broken == 1


def test_opposite_infinities_are_broken():
    assert metrics.error_sums(np.array([np.inf]), np.array([-np.inf])).broken == 1


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.error_sums(np.zeros((2, 1)), np.zeros(2))


@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.integers(0, 3))
)
def test_rank_0_is_argmax_and_ranks_are_a_stable_order(codes):
    scores = codes.astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    for place in range(scores.shape[1]):
        assert (metrics.class_ranks(scores, order[:, place]) == place).all()
    assert (order[:, 0] == scores.argmax(axis=1)).all()


def test_rows_with_nan_have_no_best_class():
    scores = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]])
    assert metrics.class_ranks(scores, np.array([2, 2])).tolist() == [3, 0]
