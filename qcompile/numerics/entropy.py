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

import numpy as np
import numpy.typing as npt

from qcompile.numerics.density import Density, Floats

Bins = npt.NDArray[np.int64]

_PER_OCTAVE = 6
_KEPT = 0.99
_AT_ONCE = 64
"""Candidate ranges whose levels are worked on together: they stay in the processor's cache."""
_DECIMALS = 12
"""Of a divergence: what lies behind them is rounding of the sums."""


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


def _starts(zero: float, factors: Floats) -> Bins:
    return np.unique(np.floor(zero * (1 - np.minimum(factors, 1.0))).astype(np.int64))


def _ends(zero: float, bins: int, factors: Floats) -> Bins:
    return np.unique(np.ceil(zero + (bins - zero) * np.minimum(factors, 1.0)).astype(np.int64))


class _Search:
    def __init__(self, density: Density, zero_bin: int, levels: int) -> None:
        counts = density.counts.copy()
        beside = counts[max(zero_bin - 1, 0) : zero_bin + 2].sum() - counts[zero_bin]
        neighbours = min(zero_bin + 1, counts.size - 1) - max(zero_bin - 1, 0)
        counts[zero_bin] = beside / neighbours
        self.counts = counts
        self.levels = levels
        self.mass = _running(counts)
        self.weighted = _running(_times_log(counts))
        self.filled = _running(counts > 0)

    def best(self, starts: Bins, ends: Bins) -> tuple[int, int]:
        """Return the pair of first bin and end bin (exclusive) with the least divergence."""
        start, end = (grid.reshape(-1) for grid in np.meshgrid(starts, ends, indexing="ij"))
        kept = self.mass[end] - self.mass[start]
        fits = (end - start >= self.levels) & (kept > 0) & (kept >= _KEPT * self.mass[-1])
        start, end = start[fits], end[fits]
        if not start.size:
            return 0, self.counts.size
        blocks = [slice(i, i + _AT_ONCE) for i in range(0, start.size, _AT_ONCE)]
        found = np.concatenate([self._divergence(start[block], end[block]) for block in blocks])
        # a tie keeps the wider range: nothing is clipped without gain
        least = np.lexsort((start - end, found.round(_DECIMALS)))[0]
        return int(start[least]), int(end[least])

    def _divergence(self, start: Bins, end: Bins) -> Floats:
        """Return ``KL(P || Q)`` for each pair, ``(K,)``."""
        below, above = self.mass[start], self.mass[-1] - self.mass[end]
        entropy = self.weighted[end] - self.weighted[start]
        for index, outside in ((start, below), (end - 1, above)):
            own = self.counts[index]
            entropy += _times_log(own + outside) - _times_log(own)
        edges = start[:, None] + np.arange(self.levels + 1) * (end - start)[:, None] // self.levels
        own = np.diff(self.mass[edges])
        bins = np.diff(self.filled[edges])
        bins[:, 0] += (below > 0) & (self.counts[start] <= 0)
        bins[:, -1] += (above > 0) & (self.counts[end - 1] <= 0)
        spread = np.log(np.where(own > 0, own, 1.0) / np.maximum(bins, 1.0))
        own[:, 0] += below
        own[:, -1] += above
        cross = np.sum(own * spread, axis=1)
        total = self.mass[-1]
        inside = self.mass[end] - self.mass[start]
        divergence: Floats = (entropy - cross) / total + np.log(inside / total)
        return divergence


def _running(values: npt.NDArray[np.generic]) -> Floats:
    """Return the sums of all values before each one, and of all."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _times_log(values: Floats) -> Floats:
    """Return ``p log p``, 0 where p is 0."""
    product: Floats = values * np.log(np.where(values > 0, values, 1.0))
    return product
