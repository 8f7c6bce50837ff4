"""The grid of an activation over a range, as the codes of a target want it."""

import numpy as np

from qcompile.numerics.grids import CODE_RANGE, affine_grid, rounded_scales, symmetric_grid
from qcompile.targets.target import Types


def activation_grid(low: float, high: float, types: Types) -> tuple[float, int]:
    """Return scale and zero point.

    Args:
        low: Lowest real value.
        high: Highest.
        types: Of the codes; symmetric ones have the zero point 0.
    """
    lowest, highest = CODE_RANGE[types.activation]
    if not types.symmetric:
        return affine_grid(low, high, lowest, highest)
    scale, zero = symmetric_grid(low, high, highest)
    return float(rounded_scales(np.asarray(scale), types.scale)), zero
