"""A histogram read as a density, uniform within each bin: masses, moments, rounding errors."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qcompile.errors import StatisticsError

Floats = npt.NDArray[np.float64]


class Histogram(Protocol):
    """What ``qcompile.statistics.TensorStatistics`` offers here, which numerics must not import."""

    @property
    def low(self) -> float:
        """Smallest element."""

    @property
    def high(self) -> float:
        """Largest element."""

    @property
    def elements(self) -> int:
        """Number of elements."""

    @property
    def unbounded(self) -> bool:
        """Whether an infinite element was seen."""

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Elements in each bin over ``[low, high]``, ``(B,)``."""


@dataclass(frozen=True)
class Density:
    """Counts over equal bins, with integrals of 1, x and x^2 in constant time.

    Attributes:
        low: Lower edge of the first bin.
        width: Width of a bin; 0 where all elements are equal.
        counts: Elements in each bin, float64 ``(B,)``.
    """

    low: float
    width: float
    counts: Floats

    @property
    def high(self) -> float:
        """Upper edge of the last bin."""
        return self.low + self.width * self.counts.size

    @cached_property
    def total(self) -> float:
        """Number of elements."""
        return float(self.counts.sum())

    @cached_property
    def _integrals(self) -> tuple[Floats, Floats, Floats]:
        left = self.low + self.width * np.arange(self.counts.size)
        first = left + self.width / 2
        second = left * left + left * self.width + self.width * self.width / 3
        sums = (self.counts, self.counts * first, self.counts * second)
        zero, one, two = (np.concatenate([[0.0], np.cumsum(s)]) for s in sums)
        return zero, one, two

    def below(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the integrals of 1, x and x^2 over all elements below ``x`` (any shape)."""
        if self.width == 0.0:
            inside = (x > self.low).astype(np.float64) * self.total
            return inside, inside * self.low, inside * self.low * self.low
        at = np.clip((x - self.low) / self.width, 0, self.counts.size)
        index = np.minimum(at.astype(np.intp), self.counts.size - 1)
        part = at - index
        left = self.low + index * self.width
        length = part * self.width
        count = self.counts[index] * part
        zero, one, two = self._integrals
        return (
            zero[index] + count,
            one[index] + count * (left + length / 2),
            two[index] + count * (left * left + left * length + length * length / 3),
        )

    def moments(self) -> tuple[float, float, float]:
        """Return the integrals of 1, x and x^2 over all elements."""
        if self.width == 0.0:
            return self.total, self.total * self.low, self.total * self.low * self.low
        zero, one, two = self._integrals
        return float(zero[-1]), float(one[-1]), float(two[-1])

    def magnitude(self) -> "Density":
        """Return the density of ``|x|`` over ``[0, max |x|]``, with as many bins."""
        top = max(abs(self.low), abs(self.high))
        bins = self.counts.size
        edges = np.linspace(0.0, top, bins + 1)
        mass = self.below(edges)[0] - self.below(-edges)[0]
        mass[-1] = self.total
        counts = np.diff(mass, prepend=0.0)[1:]
        # differences of large sums: what is less than a millionth of an element is no element
        return Density(0.0, top / bins, np.where(counts < 1e-6, 0.0, counts))

    def rounding_error(self, low: Floats, high: Floats, levels: int) -> Floats:
        """Return the summed squared error of rounding to a grid, clipping included.

        The grid is the stored one: step ``(high - low) / (levels - 1)``, moved so that 0 is on it.

        Args:
            low: Lower ends, ``(K,)``, at most 0.
            high: Upper ends, ``(K,)``, at least 0, above ``low``.
            levels: Number of grid points.

        Returns:
            The error of each range, ``(K,)``.
        """
        step = ((high - low) / (levels - 1))[:, None]
        zero_point = np.rint(-low[:, None] / step)
        grid = (np.arange(levels) - zero_point) * step
        halfway = (grid[:, 1:] + grid[:, :-1]) / 2
        ends = self.moments()
        cells = []
        for integral, end in zip(self.below(halfway), ends, strict=True):
            upper = np.concatenate([integral, np.full((len(low), 1), end)], axis=1)
            cells.append(np.diff(upper, prepend=0.0, axis=1))
        zero, one, two = cells
        error: Floats = (two - 2 * grid * one + grid * grid * zero).sum(axis=1)
        return np.maximum(error, 0.0)


def density_of(statistics: Histogram) -> Density:
    """Return a tensor's density.

    Raises:
        StatisticsError: Only the range was collected, or the tensor holds infinities.
    """
    if statistics.unbounded:
        raise StatisticsError("a tensor with infinite elements has no histogram")
    if not statistics.counts.size:
        raise StatisticsError("no histogram was collected for this tensor, only its range")
    width = (statistics.high - statistics.low) / statistics.counts.size
    return Density(statistics.low, width, statistics.counts.astype(np.float64))
