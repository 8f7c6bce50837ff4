"""Which columns of a layer's input are outliers, by the largest magnitude that each has shown."""

import math

import numpy as np
import numpy.typing as npt


def outlier_columns(
    maxima: npt.NDArray[np.floating], threshold: float, share: float | None = None
) -> tuple[list[int], float]:
    """Return the columns that LLM.int8() keeps out of the codes, ascending.

    As in arXiv:2208.07339, section 3.2, a column is one if any of its values reaches the threshold;
    or else the loudest share of columns is taken. Columns of zeros are none.

    Args:
        maxima: Largest magnitude in each column over all rows, ``(K,)``.
        threshold: A magnitude; positive.
        share: Of the columns, rounded up; the threshold is not looked at then.

    Returns:
        The columns, and the magnitude from which a column is one of them: the threshold, or that of
        the quietest column taken.
    """
    if share is not None:
        count = math.ceil(share * len(maxima))
        loudest = np.argsort(-maxima, kind="stable")[:count]
        chosen = np.sort(loudest[maxima[loudest] > 0])
        return chosen.tolist(), float(maxima[chosen].min()) if len(chosen) else threshold
    return np.flatnonzero(maxima >= threshold).tolist(), threshold
