"""Counts over a fixed range: exact, complete, and the same for any split of the data."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.numerics.histogram import add_to_histogram
from qcompile.statistics import BINS, TensorStatistics

FLOATS = st.floats(-1e6, 1e6, width=32)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 200), elements=FLOATS)


def statistics_of(values, low=None, high=None):
    """Return the statistics of raw values, as calibration would take them."""
    values = np.asarray(values, np.float32)
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    counts = np.zeros(BINS, np.int64)
    add_to_histogram(counts, values, low, high)
    return TensorStatistics(low, high, values.size, unbounded=False, counts=counts)


@given(ARRAYS)
def test_each_element_lies_in_its_bin(values):
    found = statistics_of(values)
    assert found.counts.sum() == values.size
    width = (found.high - found.low) / BINS
    below = np.cumsum(found.counts)
    ordered = np.sort(values).astype(np.float64)
    bins = np.searchsorted(below, np.arange(values.size), side="right")
    slack = 1e-9 * max(abs(found.low), abs(found.high), 1e-300)
    assert np.all(ordered >= found.low + bins * width - slack)
    assert np.all(ordered <= found.low + (bins + 1) * width + slack)


@given(ARRAYS, ARRAYS, ARRAYS)
def test_merging_is_associative_and_commutative_to_the_bit(a, b, c):
    together = np.concatenate([a, b, c])
    low, high = float(together.min()), float(together.max())
    x, y, z = (statistics_of(part, low, high) for part in (a, b, c))
    whole = statistics_of(together)
    for merged in (x.merged(y).merged(z), x.merged(y.merged(z)), z.merged(y).merged(x)):
        np.testing.assert_array_equal(merged.counts, whole.counts)


def test_known_bins():
    counts = np.zeros(4, np.int64)
    add_to_histogram(counts, np.asarray([[0, 0.99], [1, 4]], np.float32), 0.0, 4.0)
    add_to_histogram(counts, np.asarray([-9, 9], np.float32), 0.0, 4.0)
    assert counts.tolist() == [3, 1, 0, 2]


def test_equal_elements_share_the_first_bin():
    counts = np.zeros(4, np.int64)
    add_to_histogram(counts, np.full((2, 3), 7, np.float32), 7.0, 7.0)
    assert counts.tolist() == [6, 0, 0, 0]


def test_non_contiguous_half_precision_and_empty():
    counts = np.zeros(4, np.int64)
    values = np.arange(8, dtype=np.float16).reshape(2, 4)[:, ::2]
    add_to_histogram(counts, values, 0.0, 8.0)
    add_to_histogram(counts, values[:0], 0.0, 8.0)
    assert counts.tolist() == [1, 1, 1, 1]
