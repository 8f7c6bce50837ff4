"""From the histogram of one tensor to the range that a grid should cover.

Every range contains 0, because padding, Relu and masks need an exact zero (Jacob et al. 2018,
arXiv:1712.05877, section 2.1). A symmetric range is ``(-a, a)``.
"""

from typing import Literal

import numpy as np

from qcompile.errors import StatisticsError
from qcompile.numerics.density import Density, Floats, Histogram, density_of
from qcompile.numerics.entropy import entropy_magnitude, entropy_range

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]

Range = tuple[float, float]

# Clipped ends that the coarse search tries: 12 an octave, down to one bin in 4096.
_FACTORS = np.exp2(-np.arange(0, 12 + 1 / 12, 1 / 12))


def range_of(
    method: RangeMethod,
    statistics: Histogram,
    *,
    symmetric: bool,
    levels: int = 256,
    percentile: float = 99.99,
) -> Range:
    """Return the range that a method finds for one tensor.

    Args:
        method: minmax (all elements), percentile (that share of them), mse (least squared error
            of clipping plus rounding) or entropy (least KL divergence).
        statistics: What calibration saw; a histogram except for minmax.
        symmetric: The grid is even about zero and leaves its lowest code unused, so that it has
            ``levels - 1`` points from ``-a`` to ``a``.
        levels: Codes of the grid: 256 for 8 bits, 128 with a reduced range.
        percentile: Share of the elements inside the range, in percent; what remains is cut half
            on each side (symmetric: by magnitude).

    Returns:
        Low and high, ``low <= 0 <= high``; ``(0, 0)`` for a tensor that is all zero or empty.

    Raises:
        StatisticsError: The tensor holds infinities, or the method needs a histogram that was not
            collected.
    """
    if statistics.unbounded:
        raise StatisticsError("a tensor with infinite elements has no range")
    widest = _symmetric(_minmax(statistics)) if symmetric else _minmax(statistics)
    if method == "minmax" or statistics.low == statistics.high or not statistics.elements:
        return widest
    density = density_of(statistics)
    if method == "percentile":
        found = _percentile(density, percentile, symmetric=symmetric)
    elif method == "mse":
        found = _mse(density, widest, levels, symmetric=symmetric)
    elif symmetric:
        magnitude = entropy_magnitude(density.magnitude(), levels // 2)
        found = (-magnitude, magnitude)
    else:
        found = entropy_range(density, levels)
    # the edges of bins are rounded; never beyond what was seen
    return max(found[0], widest[0]), min(found[1], widest[1])


def power(statistics: Histogram) -> float:
    """Return the mean square of the elements, 0 for an empty tensor.

    Raises:
        StatisticsError: The tensor has no histogram.
    """
    total, _, squares = density_of(statistics).moments()
    return squares / total if total else 0.0


def _minmax(statistics: Histogram) -> Range:
    return min(statistics.low, 0.0), max(statistics.high, 0.0)


def _symmetric(found: Range) -> Range:
    magnitude = max(abs(found[0]), found[1])
    return 0.0 - magnitude, magnitude


def _percentile(density: Density, percentile: float, *, symmetric: bool) -> Range:
    share = percentile / 100
    if symmetric:
        magnitude = _quantile(density.magnitude(), share)
        return -magnitude, magnitude
    low, high = _quantile(density, (1 - share) / 2), _quantile(density, (1 + share) / 2)
    return min(low, 0.0), max(high, 0.0)


def _quantile(density: Density, share: float) -> float:
    below = np.cumsum(density.counts)
    wanted = share * below[-1]
    index = min(int(np.searchsorted(below, wanted)), below.size - 1)
    count = density.counts[index]
    part = (wanted - (below[index] - count)) / count if count else 0.0
    return float(density.low + (index + min(max(part, 0.0), 1.0)) * density.width)


def _mse(density: Density, widest: Range, levels: int, *, symmetric: bool) -> Range:
    points = levels - 1 if symmetric else levels
    coarse = _coarse(density, widest, points, symmetric=symmetric)
    low, high = coarse
    spread = np.exp2(np.linspace(-1, 1, 7) / 12)
    for _ in range(3):
        lows, highs = _pairs(low * spread, high * spread, symmetric=symmetric)
        lows = np.maximum(np.concatenate([lows, [low, widest[0]]]), widest[0])
        highs = np.minimum(np.concatenate([highs, [high, widest[1]]]), widest[1])
        best = int(np.argmin(density.rounding_error(lows, highs, points)))
        low, high = float(lows[best]), float(highs[best])
        spread = np.sqrt(spread)
    return low, high


def _coarse(density: Density, widest: Range, points: int, *, symmetric: bool) -> Range:
    """Search all pairs of clipped ends, with step^2 / 12 for the noise between them.

    Banner et al. 2019 (arXiv:1810.05723, equation 5) with the histogram for the density. What
    lies in the bin of zero is exact and makes no noise.
    """
    lows, highs = _pairs(widest[0] * _FACTORS, widest[1] * _FACTORS, symmetric=symmetric)
    total, first, second = density.moments()
    below = density.below(lows)
    clipped_low = below[2] - 2 * lows * below[1] + lows * lows * below[0]
    above = [
        end - part for end, part in zip((total, first, second), density.below(highs), strict=True)
    ]
    clipped_high = above[2] - 2 * highs * above[1] + highs * highs * above[0]
    half_bin = np.asarray([density.width])
    at_zero = density.below(half_bin)[0] - density.below(-half_bin)[0]
    noise = (total - at_zero) * ((highs - lows) / (points - 1)) ** 2 / 12
    best = int(np.argmin(clipped_low + clipped_high + noise))
    return float(lows[best]), float(highs[best])


def _pairs(lows: Floats, highs: Floats, *, symmetric: bool) -> tuple[Floats, Floats]:
    if symmetric:
        return lows, highs
    one_low, one_high = np.unique(lows), np.unique(highs)
    return np.repeat(one_low, one_high.size), np.tile(one_high, one_low.size)
