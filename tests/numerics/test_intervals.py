import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics import intervals as iv


def coverage(draw, interval, truth, rounds=300):
    """Share of rounds whose interval holds the truth."""
    found = [interval(draw(np.random.default_rng(seed))) for seed in range(rounds)]
    return np.mean([i is not None and i.low <= truth <= i.high for i in found])


@pytest.mark.parametrize("count", [12, 60])
def test_mean_interval_covers_the_mean_of_skewed_differences(count, monkeypatch):
    monkeypatch.setattr(iv, "RESAMPLES", 500)
    share = coverage(lambda r: r.exponential(size=count), iv.mean_interval, 1.0)
    assert 0.85 <= share <= 0.99


def test_ratio_interval_covers_the_ratio(monkeypatch):
    monkeypatch.setattr(iv, "RESAMPLES", 500)

    def draw(rng):
        noise = rng.gamma(4.0, size=40)
        return 7 * noise * rng.uniform(0.8, 1.2, size=40), noise

    share = coverage(draw, lambda pair: iv.ratio_interval(*pair), 7.0)
    assert 0.88 <= share <= 0.99


def test_median_interval_covers_the_median(monkeypatch):
    monkeypatch.setattr(iv, "RESAMPLES", 500)
    share = coverage(lambda r: r.lognormal(size=40), iv.median_interval, 1.0)
    assert 0.88 <= share <= 0.995


def test_mean_interval_is_that_of_scipy(monkeypatch):
    monkeypatch.setattr(iv, "RESAMPLES", 40_000)
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(7).lognormal(sigma=1.5, size=25)
    found = iv.mean_interval(values)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.02 * width)
    assert found.high == pytest.approx(expected.high, abs=0.02 * width)


def test_intervals_are_reproducible_and_independent_of_chunks(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    whole = iv.mean_interval(values)
    assert iv.mean_interval(values) == whole
    monkeypatch.setattr(iv, "_DRAWS", 500)
    assert iv.mean_interval(values) == whole


def test_too_few_and_constant_values():
    assert iv.mean_interval(np.array([1.0])) is None
    assert iv.median_interval(np.array([1.0])) is None
    assert iv.ratio_interval(np.array([1.0, 2.0]), np.array([0.0, 1.0])) is None
    assert iv.mean_interval(np.array([2.0, 2.0, 2.0])) == (2.0, 2.0)
    assert iv.jackknife_interval(lambda kept: float(kept.sum()), 1) is None


def test_scale_moves_the_interval_along():
    values = np.random.default_rng(1).normal(size=30)
    low, high = iv.mean_interval(values)
    assert iv.mean_interval(3 * values) == pytest.approx((3 * low, 3 * high))


def test_wilson_is_the_published_interval():
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3.
    assert iv.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert iv.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert iv.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert iv.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert iv.wilson_interval(0, 0) == (0, 1)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_holds_the_share(hits, misses):
    count = hits + misses
    low, high = iv.wilson_interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    mirrored = iv.wilson_interval(misses, count)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high))


def cells(both, only_1, only_2, neither):
    first = np.repeat([True, True, False, False], [both, only_1, only_2, neither])
    second = np.repeat([True, False, True, False], [both, only_1, only_2, neither])
    return first, second


def test_paired_interval_is_the_published_one():
    # Newcombe 1998 (Statistics in Medicine 17, 2635), table II, method 10; difference 1 - 2 there.
    low, high = iv.paired_proportion_interval(*cells(36, 12, 2, 0))
    assert (-high, -low) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    low, high = iv.paired_proportion_interval(*cells(53, 0, 0, 1))
    assert low < 0 < high
    assert high < 0.1


def test_paired_interval_covers_the_difference():
    def draw(rng):
        first = rng.random(200) < 0.8
        second = np.where(rng.random(200) < 0.05, ~first, first)
        return first, second

    truth = 0.05 * (0.2 - 0.8)
    share = coverage(draw, lambda pair: iv.paired_proportion_interval(*pair), truth)
    assert 0.92 <= share <= 0.995


def test_pairing_narrows_the_interval():
    first = np.arange(200) % 5 > 0
    second = first.copy()
    second[1] = not second[1]
    shuffled = np.roll(second, 2)
    paired = iv.paired_proportion_interval(first, second)
    unpaired = iv.paired_proportion_interval(first, shuffled)
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 3


def test_equal_answers_still_leave_doubt():
    same = np.array([True] * 18 + [False] * 2)
    low, high = iv.paired_proportion_interval(same, same)
    assert low < 0 < high
    assert iv.paired_proportion_interval(np.zeros(0, bool), np.zeros(0, bool)) == (-1, 1)


def test_jackknife_of_a_mean_is_close_to_the_normal_interval():
    values = np.random.default_rng(5).normal(size=400)
    low, high = iv.jackknife_interval(lambda kept: float(values[kept].mean()), 400)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.5)


def test_jackknife_covers():
    share = coverage(
        lambda r: r.exponential(size=60),
        lambda v: iv.jackknife_interval(lambda kept: float(v[kept].mean()), 60),
        1.0,
    )
    assert 0.88 <= share <= 0.985


@pytest.mark.parametrize(("freedom", "quantile"), [(4, 2.776), (9, 2.262), (19, 2.093)])
def test_student_quantiles_are_those_of_the_tables(freedom, quantile):
    assert iv._student_quantile(freedom) == pytest.approx(quantile, abs=0.01)
