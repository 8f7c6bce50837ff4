"""Which columns are outliers, against the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompile.numerics.outliers import outlier_columns

MAXIMA = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 100, width=32))


@given(MAXIMA, st.floats(0.1, 90))
def test_threshold(maxima, threshold):
    columns, limit = outlier_columns(maxima, threshold)
    assert columns == [k for k, size in enumerate(maxima) if size >= threshold]
    assert limit == threshold


@given(MAXIMA, st.floats(0.01, 0.99))
def test_share(maxima, share):
    columns, limit = outlier_columns(maxima, 6.0, share)
    assert columns == sorted(set(columns))
    wanted = -(-len(maxima) * share // 1)
    assert len(columns) == min(wanted, np.count_nonzero(maxima))
    others = np.delete(maxima, columns)
    if columns:
        assert limit == maxima[columns].min()
        assert others.size == 0 or others.max() <= limit
    else:
        assert limit == 6.0


@pytest.mark.parametrize(("share", "columns"), [(None, [1, 3]), (0.2, [3]), (0.5, [1, 3, 4])])
def test_by_hand(share, columns):
    assert outlier_columns(np.array([1.0, 6, 0, 60, 5]), 6.0, share)[0] == columns
