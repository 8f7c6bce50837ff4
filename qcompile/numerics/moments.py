"""Mean and deviation by channel, put together from parts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """What parts of a tensor looked like, by channel, float64 ``(C,)``.

    Attributes:
        count: Elements of each channel seen so far.
        mean: Of them.
        squares: Sum of the squared distances from the mean.
    """

    count: float
    mean: Wide
    squares: Wide

    @classmethod
    def nothing(cls, channels: int) -> "Moments":
        """Return the moments of no element."""
        return cls(0.0, np.zeros(channels), np.zeros(channels))

    def merged(self, count: float, mean: Wide, variance: Wide) -> "Moments":
        """Return the moments with another part (Chan et al. 1983): nothing cancels.

        Args:
            count: Elements of each channel in the part.
            mean: Of the part.
            variance: Mean squared distance from it.
        """
        total = self.count + count
        if not total:
            return self
        away = mean - self.mean
        share = count / total
        squares = self.squares + variance * count + away**2 * self.count * share
        return Moments(total, self.mean + away * share, squares)

    @property
    def deviation(self) -> Wide:
        """The standard deviation, ``(C,)``."""
        found: Wide = np.sqrt(self.squares / max(self.count, 1.0))
        return found


def absorbed_bias(mean: Wide, deviation: Wide) -> Wide:
    """Return what a Relu's input can lose in each channel: ``max(0, mean - 3 deviation)``.

    arXiv:1906.04721, section 4.1.3, with beta and gamma of the batch norm as measured: in a normal
    distribution 99.87 % of the values lie above.

    Args:
        mean: Of what the Relu reads, ``(C,)``.
        deviation: The same.
    """
    return np.maximum(0.0, mean - 3 * deviation)
