"""What calibration saw: plain data that merges exactly, so that order never matters.

The low and the high of a tensor are exact; its histogram counts, over a range that was fixed
before the first count (two passes over the data), whole numbers. Minimum, maximum and integer
sums are associative and commutative: the same bits come out for any order of the samples, any
number of workers and any interruption.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from qcompile.errors import StatisticsError

BINS = 8192
"""Bins of a histogram: 32 for each step of an 8-bit grid over the same range."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TensorStatistics:
    """What one activation tensor looked like over all samples.

    Attributes:
        low: Smallest finite element seen, exact.
        high: Largest finite element seen, exact.
        elements: Number of elements seen.
        unbounded: An infinite element was seen (attention masks); low and high are then 0 and the
            tensor has no histogram.
        counts: Histogram over ``[low, high]``, int64 ``(BINS,)``, or ``(0,)`` where only the
            range was collected. Bin i holds ``low + [i, i + 1) * (high - low) / BINS``.
    """

    low: float
    high: float
    elements: int
    unbounded: bool
    counts: Counts

    def merged(self, other: "TensorStatistics") -> "TensorStatistics":
        """Return the statistics of both sets of samples.

        Raises:
            StatisticsError: Both hold histograms, over different ranges.
        """
        if not self.counts.size and not other.counts.size:
            return TensorStatistics(
                low=min(self.low, other.low),
                high=max(self.high, other.high),
                elements=self.elements + other.elements,
                unbounded=self.unbounded or other.unbounded,
                counts=self.counts,
            )
        if (self.low, self.high) != (other.low, other.high):
            raise StatisticsError("histograms over different ranges cannot be merged")
        return replace(self, counts=self.counts + other.counts)


@dataclass(frozen=True)
class Statistics:
    """The statistics of a model over a set of samples.

    Attributes:
        tensors: Tensor name to what was seen.
        samples: Number of samples.
        reused: Tensors that nothing had to be run for; equal statistics may differ in it.
    """

    tensors: Mapping[str, TensorStatistics]
    samples: int
    reused: int = field(default=0, compare=False)
