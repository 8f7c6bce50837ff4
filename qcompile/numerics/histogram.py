"""Counts of a histogram whose range was fixed beforehand: whole numbers that merge by addition.

Bin i of B holds ``low + [i, i + 1) * (high - low) / B``; the last one also holds ``high``. Because
the range never moves, the counts of any split of the data add up to the counts of the whole,
whatever the order.
"""

import numba
import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def add_to_histogram(
    counts: Counts, values: npt.NDArray[np.generic], low: float, high: float
) -> None:
    """Add values to the counts, in place; releases the GIL.

    Args:
        counts: int64 ``(B,)``; the caller keeps other threads away.
        values: Any shape, float32 (other floats are converted); no NaN. Elements outside the
            range count in the first or the last bin.
        low: Lower end of the first bin, finite.
        high: Upper end of the last bin, finite; equal to ``low`` puts everything into bin 0.
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    bins_per_unit = counts.size / (high - low) if high > low else 0.0
    _add(counts, flat, low, bins_per_unit)


@numba.njit(nogil=True, cache=True)
def _add(counts: Counts, values: npt.NDArray[np.float32], low: float, bins_per_unit: float) -> None:
    last = counts.size - 1
    for value in values:
        # float64, so that the bin of a float32 does not depend on how the range is scaled
        index = int((np.float64(value) - low) * bins_per_unit)
        counts[min(max(index, 0), last)] += 1
