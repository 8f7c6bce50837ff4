"""Range search against the raw data: brute force, numpy's quantiles, known behaviour."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import StatisticsError
from qcompile.numerics.density import density_of
from qcompile.numerics.ranges import power, range_of
from qcompile.statistics import BINS, TensorStatistics
from tests.numerics.test_histogram import statistics_of

METHODS = ("minmax", "percentile", "mse", "entropy")
SIZE = 20_000


def data(kind, seed=0):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=SIZE)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "shifted": normal + 5,
        "heavy": rng.standard_t(2, size=SIZE),
        "laplace": rng.laplace(size=SIZE) * 3,
        "silu": 3 * normal / (1 + np.exp(-3 * normal)),
        "negative": -np.abs(normal),
    }[kind].astype(np.float32)


KINDS = ("normal", "relu", "shifted", "heavy", "laplace", "silu", "negative")


def raw_error(values, low, high, levels):
    step = (high - low) / (levels - 1)
    zero_point = np.rint(-low / step)
    codes = np.clip(np.rint(values.astype(np.float64) / step + zero_point), 0, levels - 1)
    return float(np.mean(((codes - zero_point) * step - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_within_one_percent_of_brute_force(kind, symmetric):
    values = data(kind)
    low, high = range_of("mse", statistics_of(values), symmetric=symmetric)
    levels = 255 if symmetric else 256
    widest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if symmetric:
        most = max(-widest[0], widest[1])
        tried = [(-most * f, most * f) for f in np.linspace(0.01, 1, 300)]
    else:
        lows = widest[0] * np.linspace(0.04, 1, 25) if widest[0] else [0.0]
        highs = widest[1] * np.linspace(0.04, 1, 25) if widest[1] else [0.0]
        tried = [(a, b) for a in lows for b in highs]
    best = min(raw_error(values, a, b, levels) for a, b in tried)
    assert raw_error(values, low, high, levels) <= 1.01 * best


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(90, 99.99))
@settings(max_examples=15)
def test_percentile_matches_numpy_within_a_bin(kind, share):
    values = data(kind)
    statistics = statistics_of(values)
    width = (statistics.high - statistics.low) / BINS
    low, high = range_of("percentile", statistics, symmetric=False, percentile=share)
    ends = np.asarray([1 - share / 100, 1 + share / 100]) / 2
    wanted = np.quantile(values, ends, method="inverted_cdf")
    assert low == pytest.approx(min(wanted[0], 0.0), abs=1.001 * width)
    assert high == pytest.approx(max(wanted[1], 0.0), abs=1.001 * width)
    magnitude = np.quantile(np.abs(values), share / 100, method="inverted_cdf")
    _, high = range_of("percentile", statistics, symmetric=True, percentile=share)
    assert high == pytest.approx(magnitude, abs=2.001 * width)


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_clips_a_heavy_tail_and_is_not_minmax(symmetric):
    values = data("heavy")
    statistics = statistics_of(values)
    low, high = range_of("entropy", statistics, symmetric=symmetric)
    assert low > 0.7 * statistics.low
    assert high < 0.7 * statistics.high
    assert np.mean((values < low) | (values > high)) < 0.01


def divergence(counts, start, end, levels):
    """Migacz' KL, written out bin by bin."""
    clipped = counts[start:end].astype(np.float64)
    outside_low, outside_high = counts[:start].sum(), counts[end:].sum()
    reference = clipped.copy()
    reference[0] += outside_low
    reference[-1] += outside_high
    quantized = np.zeros_like(clipped)
    size = end - start
    for level in range(levels):
        part = slice(level * size // levels, (level + 1) * size // levels)
        filled = reference[part] > 0
        if filled.any():
            quantized[part][filled] = max(
                clipped[part].sum(), 1.0 if not clipped[part].sum() else 0
            )
            quantized[part][filled] /= filled.sum()
    p = reference / reference.sum()
    q = quantized / clipped.sum()
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


def test_entropy_finds_the_least_divergence_of_a_direct_search():
    values = np.abs(data("heavy")) + 1e-3
    statistics = statistics_of(values, 0.0, float(values.max()))
    _, high = range_of("entropy", statistics, symmetric=False)
    counts = statistics.counts.astype(np.float64)
    counts[0] = counts[1]
    width = statistics.high / BINS
    found = divergence(counts, 0, round(high / width), 256)
    direct = min(divergence(counts, 0, end, 256) for end in range(256, BINS, 61))
    assert found <= direct * 1.02


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60),
    st.sampled_from(METHODS),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_ranges_hold_zero_and_stay_within_the_data(values, method, symmetric):
    statistics = statistics_of(values)
    low, high = range_of(method, statistics, symmetric=symmetric)
    assert low <= 0 <= high
    if symmetric:
        assert low == -high
        assert high <= max(abs(statistics.low), abs(statistics.high))
    else:
        assert low >= min(statistics.low, 0)
        assert high <= max(statistics.high, 0)
    if statistics.low or statistics.high:
        assert high > low


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-42])
def test_constant_tensors(method, value):
    statistics = statistics_of(np.full(10, value))
    stored = float(np.float32(value))
    assert range_of(method, statistics, symmetric=False) == (min(stored, 0), max(stored, 0))
    assert power(statistics) == pytest.approx(stored**2)


@pytest.mark.parametrize("method", METHODS)
def test_an_offset_keeps_its_elements(method):
    """Nearly all mass far from zero: the plain KL search would clip to nothing."""
    _, high = range_of(method, statistics_of(data("shifted")), symmetric=True)
    assert high > 7


@pytest.mark.parametrize("kind", KINDS)
def test_error_and_power_from_the_histogram_match_the_data(kind):
    values = data(kind)
    statistics = statistics_of(values)
    density = density_of(statistics)
    for low, high in ((min(values.min(), 0), max(values.max(), 0)), (-1.0, 2.0), (-0.5, 0.0)):
        found = density.rounding_error(np.array([low]), np.array([high]), 256)[0]
        assert found / density.total == pytest.approx(raw_error(values, low, high, 256), rel=0.02)
    assert power(statistics) == pytest.approx(np.mean(values.astype(np.float64) ** 2), rel=1e-3)


def test_what_has_no_histogram_is_refused_by_name():
    empty = np.zeros(0, np.int64)
    infinite = TensorStatistics(0.0, 0.0, 9, unbounded=True, counts=empty)
    with pytest.raises(StatisticsError, match="infinite"):
        range_of("minmax", infinite, symmetric=False)
    only_range = TensorStatistics(-1.0, 2.0, 9, unbounded=False, counts=empty)
    assert range_of("minmax", only_range, symmetric=False) == (-1.0, 2.0)
    assert range_of("minmax", only_range, symmetric=True) == (-2.0, 2.0)
    with pytest.raises(StatisticsError, match="no histogram"):
        range_of("mse", only_range, symmetric=False)


@pytest.mark.parametrize(("method", "seconds"), [("mse", 0.05), ("entropy", 0.2)])
def test_searches_are_fast(method, seconds):
    """Goals are 5 and 50 ms; the bounds leave room for a busy machine."""
    statistics = statistics_of(data("heavy"))
    range_of(method, statistics, symmetric=False)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        range_of(method, statistics, symmetric=False)
        times.append(time.perf_counter() - started)
    assert min(times) < seconds
