"""Counts of a histogram whose range was fixed beforehand: whole numbers that merge by addition.

Bin i of B holds ``low + [i, i + 1) * (high - low) / B``; the last one also holds ``high``. Because
the range never moves, the counts of any split of the data add up to the counts of the whole,
whatever the order.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_BLOCK = 1 << 14
"""Elements that are counted at once: what is computed of them stays in the processor's cache."""


def add_to_histogram(
    counts: Counts, values: npt.NDArray[np.generic], low: float, high: float
) -> None:
    """Add values to the counts, in place.

    Args:
        counts: int64 ``(B,)``; the caller keeps other threads away.
        values: Any shape, float32 (other floats are converted); no NaN. Elements outside the
            range count in the first or the last bin.
        low: Lower end of the first bin, finite.
        high: Upper end of the last bin, finite; equal to ``low`` puts everything into bin 0.
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    bins_per_unit = counts.size / (high - low) if high > low else 0.0
    # float64, so that the bin of a float32 does not depend on how the range is scaled
    position = np.empty(min(_BLOCK, flat.size), np.float64)
    index = np.empty(position.size, np.intp)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        size = block.size
        np.subtract(block, low, out=position[:size], dtype=np.float64)
        np.multiply(position[:size], bins_per_unit, out=position[:size])
        np.clip(position[:size], 0, counts.size - 1, out=position[:size])
        np.copyto(index[:size], position[:size], casting="unsafe")
        np.add.at(counts, index[:size], 1)
