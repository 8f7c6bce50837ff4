"""Whether an input was made by a random number generator instead of being measured.

Two signs together: neighbours along every axis are uncorrelated, and the skewness and kurtosis of
all elements are those of the uniform or the normal distribution. Pictures, sound, features and
text fail the first by far.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompile.samples import Array

_LEAST = 2048
"""Fewer elements than this prove nothing."""

_KURTOSIS = (1.8, 3.0)
"""Of the uniform and of the normal distribution."""


def looks_like_noise(arrays: Sequence[Array]) -> bool:
    """Return whether several samples of one input look like ``rand`` or ``randn``.

    Args:
        arrays: The input in each sample, any shapes; integers are never noise.
    """
    if not all(array.dtype.kind == "f" for array in arrays):
        return False
    pooled = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64)
    if pooled.size < _LEAST or pooled.std() == 0.0:
        return False
    standard = (pooled - pooled.mean()) / pooled.std()
    if abs(np.mean(standard**3)) > 6 * np.sqrt(6 / pooled.size) + 0.02:
        return False
    tolerance = 6 * np.sqrt(24 / pooled.size) + 0.02
    if min(abs(np.mean(standard**4) - wanted) for wanted in _KURTOSIS) > tolerance:
        return False
    return _uncorrelated(arrays, float(pooled.mean()))


def _uncorrelated(arrays: Sequence[Array], mean: float) -> bool:
    most_axes = max(array.ndim for array in arrays)
    for axis in range(most_axes):
        pairs = [_neighbours(array, axis, mean) for array in arrays if axis < array.ndim]
        first = np.concatenate([pair[0] for pair in pairs])
        second = np.concatenate([pair[1] for pair in pairs])
        power = np.sqrt(np.dot(first, first) * np.dot(second, second))
        if first.size and abs(np.dot(first, second)) > 5 / np.sqrt(first.size) * power:
            return False
    return True


def _neighbours(
    array: Array, axis: int, mean: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    centred = np.moveaxis(array.astype(np.float64) - mean, axis, 0)
    return centred[:-1].reshape(-1), centred[1:].reshape(-1)
