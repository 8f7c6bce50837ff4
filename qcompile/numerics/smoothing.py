"""SmoothQuant's scales, and what rounding both factors of a product costs (arXiv:2211.10438)."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qcompile.numerics.grids import CODE_RANGE, code_dtype, symmetric_scales

Wide = npt.NDArray[np.float64]
Narrow = npt.NDArray[np.float32]

SPAN = 1e4
"""Scales stay within this factor of 1."""


def smoothing_scale(activation: Wide, weight: Wide, strength: float) -> Narrow:
    """Return what each input column is divided by (equation 4).

    Args:
        activation: Largest magnitude of each column of the input, ``(K,)``.
        weight: Largest magnitude of each column of the weights that read it, ``(K,)``.
        strength: alpha, 0 to 1: how much of the range moves from the input to the weights.

    Returns:
        ``activation^a / weight^(1-a)``, float32 ``(K,)``, with a geometric mean of 1: a factor that
        all columns share changes no rounding. Columns without values or weights get 1.
    """
    alive = (activation > 0) & (weight > 0)
    if not alive.any():
        return np.ones(len(activation), np.float32)
    logs = strength * np.log(activation[alive]) - (1 - strength) * np.log(weight[alive])
    scale = np.ones(len(activation))
    scale[alive] = np.exp(logs - logs.mean())
    clipped: Narrow = np.clip(scale, 1 / SPAN, SPAN).astype(np.float32)
    return clipped


@dataclass(frozen=True)
class Grid:
    """Grids of an array: ``real = scale * (code - zero)``.

    Attributes:
        scale: Broadcast to the array, positive.
        zero: Broadcast to the array, whole.
        dtype: Of the codes, as in ``CODE_RANGE``.
    """

    scale: Narrow
    zero: Narrow
    dtype: str

    def rounded(self, values: Narrow) -> Narrow:
        """Return values rounded to codes and back, in float32."""
        low, high = CODE_RANGE[self.dtype]
        codes = values / self.scale
        if code_dtype(self.dtype).kind in "iu":
            np.rint(codes, out=codes)
            np.clip(codes, low - self.zero, high - self.zero, out=codes)
        else:
            codes = np.clip(codes, low, high).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        result: Narrow = codes * self.scale
        return result


def rounded_weight(weight: Narrow, dtype: str, high: int) -> Narrow:
    """Return a weight ``(R, K)`` rounded with a symmetric scale for each row.

    Args:
        weight: Already multiplied by the scale of its columns.
        dtype: Of the codes.
        high: Largest code.
    """
    scale = symmetric_scales(weight, 0, high).astype(np.float32)[:, None]
    return Grid(scale, np.zeros(1, np.float32), dtype).rounded(weight)


def product_error(rows: Narrow, rounded: Narrow, weight: Narrow, weight_rounded: Narrow) -> float:
    """Return the squared error of a product of which both factors are rounded.

    Args:
        rows: Inputs ``(n, K)``.
        rounded: The same, rounded.
        weight: ``(R, K)``.
        weight_rounded: The same, rounded.
    """
    difference = rows @ weight.T
    difference -= rounded @ weight_rounded.T
    return float(np.einsum("nr,nr->", difference, difference, dtype=np.float64))
