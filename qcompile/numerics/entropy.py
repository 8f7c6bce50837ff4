"""The KL search for a clipping range: S. Migacz, "8-bit inference with TensorRT", GTC 2017.

For each candidate range the clipped histogram P (what lies outside is added to the end bins) is
compared with Q, the same bins without the outliers, merged into as many levels as there are codes
and spread again over the bins of each level that are not empty. The range with the least
``KL(P || Q)`` wins. Prefix sums of the mass, of ``p log p`` and of the number of bins that are not
empty give one divergence in O(levels) instead of O(bins), so that 8192 bins cost no more than the
2048 of the talk.

Departures: the bin of zero takes the mean of its neighbours (0 is exact on every grid, and behind
a Relu its bin would outweigh all others); a level whose bins are all empty but that receives
outliers counts one element, where the talk's KL is infinite; asymmetric ranges clip both ends,
searched together, on all levels. A range spans at least as many bins as levels, as in the talk,
and holds 99 % of the elements: where nearly all is outside, P and Q agree on next to nothing.
"""

import numba
import numpy as np
import numpy.typing as npt

from qcompile.numerics.density import Density, Floats

_PER_OCTAVE = 6
_KEPT = 0.99


def entropy_magnitude(density: Density, levels: int) -> float:
    """Return the clipping magnitude for a symmetric grid.

    Args:
        density: Of ``|x|``; its low is 0.
        levels: Codes on one side of zero.
    """
    candidates = np.arange(levels, density.counts.size + 1, max(1, levels // 16), dtype=np.int64)
    starts = np.zeros(1, np.int64)
    search = _Search(density, 0, levels)
    best = search.best(starts, np.append(candidates, density.counts.size))[1]
    return best * density.width


def entropy_range(density: Density, levels: int) -> tuple[float, float]:
    """Return the clipping range for an asymmetric grid; it contains 0.

    Args:
        density: Of x.
        levels: Codes of the whole grid.
    """
    bins = density.counts.size
    zero = min(max(-density.low / density.width, 0.0), float(bins))
    search = _Search(density, int(min(zero, bins - 1)), levels)
    factors = np.exp2(-np.arange(0, np.log2(bins / levels) + 3, 1 / _PER_OCTAVE))
    around = np.exp2(np.linspace(-1, 1, 9) / _PER_OCTAVE)
    start, end = search.best(_starts(zero, factors), _ends(zero, bins, factors))
    for _ in range(2):
        near_low, near_high = (zero - start) / max(zero, 1.0), (end - zero) / max(bins - zero, 1.0)
        starts = np.append(_starts(zero, near_low * around), start)
        ends = np.append(_ends(zero, bins, near_high * around), end)
        start, end = search.best(starts, ends)
        around = np.sqrt(np.sqrt(around))
    low = density.low + start * density.width
    high = density.low + end * density.width
    return min(low, 0.0), max(high, 0.0)


def _starts(zero: float, factors: Floats) -> npt.NDArray[np.int64]:
    return np.unique(np.floor(zero * (1 - np.minimum(factors, 1.0))).astype(np.int64))


def _ends(zero: float, bins: int, factors: Floats) -> npt.NDArray[np.int64]:
    return np.unique(np.ceil(zero + (bins - zero) * np.minimum(factors, 1.0)).astype(np.int64))


class _Search:
    def __init__(self, density: Density, zero_bin: int, levels: int) -> None:
        counts = density.counts.copy()
        beside = counts[max(zero_bin - 1, 0) : zero_bin + 2].sum() - counts[zero_bin]
        neighbours = min(zero_bin + 1, counts.size - 1) - max(zero_bin - 1, 0)
        counts[zero_bin] = beside / neighbours
        filled = counts > 0
        weighted = counts * np.log(np.where(filled, counts, 1.0))
        self.counts = counts
        self.levels = levels
        self.mass = np.concatenate([[0.0], np.cumsum(counts)])
        self.weighted = np.concatenate([[0.0], np.cumsum(weighted)])
        self.filled = np.concatenate([[0.0], np.cumsum(filled)])

    def best(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Return the pair of first bin and end bin (exclusive) with the least divergence."""
        if self.mass[-1] <= 0.0:
            return 0, self.counts.size
        start, end = _least_divergence(
            self.counts, self.mass, self.weighted, self.filled, starts, ends, self.levels
        )
        return int(start), int(end)


@numba.njit(nogil=True, cache=True)
def _least_divergence(
    counts: Floats,
    mass: Floats,
    weighted: Floats,
    filled: Floats,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    levels: int,
) -> tuple[int, int]:
    least, best_start, best_end = np.inf, 0, counts.size
    for start in starts:
        for end in ends:
            if end - start < levels:
                continue
            value = _divergence(counts, mass, weighted, filled, start, end, levels)
            # a tie keeps the wider range: nothing is clipped without gain
            if value < least or (value == least and end - start > best_end - best_start):
                least, best_start, best_end = value, start, end
    return best_start, best_end


@numba.njit(nogil=True, cache=True)
def _divergence(
    counts: Floats,
    mass: Floats,
    weighted: Floats,
    filled: Floats,
    start: int,
    end: int,
    levels: int,
) -> float:
    inside = mass[end] - mass[start]
    if inside < _KEPT * mass[-1]:
        return np.inf
    below, above = mass[start], mass[-1] - mass[end]
    entropy = weighted[end] - weighted[start]
    for index, outside in ((start, below), (end - 1, above)):
        own = counts[index]
        if outside > 0.0:
            entropy += (own + outside) * np.log(own + outside)
            entropy -= own * np.log(own) if own > 0.0 else 0.0
    cross = 0.0
    left = start
    for level in range(levels):
        right = start + (level + 1) * (end - start) // levels
        own = mass[right] - mass[left]
        bins = filled[right] - filled[left]
        outside = 0.0
        if level == 0 and below > 0.0:
            outside += below
            bins += counts[start] <= 0.0
        if level == levels - 1 and above > 0.0:
            outside += above
            bins += counts[end - 1] <= 0.0
        if own + outside > 0.0:
            cross += (own + outside) * np.log(max(own, 1.0) / bins if own <= 0.0 else own / bins)
        left = right
    divergence: float = (entropy - cross) / mass[-1] + np.log(inside / mass[-1])
    return divergence
