"""The ranges that the first pass has seen so far, added up sample by sample."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcompile.calibrate.taps import output_name
from qcompile.errors import DataError
from qcompile.samples import Array
from qcompile.statistics import TensorStatistics


@dataclass(frozen=True)
class RangesSeen:
    """Low, high, number of elements and boundedness of each tensor; arrays ``(T,)``."""

    names: Sequence[str]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    elements: npt.NDArray[np.int64]
    unbounded: npt.NDArray[np.bool_]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def nothing(names: Sequence[str]) -> "RangesSeen":
        """Return the neutral element: no sample seen."""
        count = len(names)
        return RangesSeen(
            names,
            np.full(count, np.inf),
            np.full(count, -np.inf),
            np.zeros(count, np.int64),
            np.zeros(count, np.bool_),
        )

    def arrays(self) -> dict[str, Array]:
        """Return what a checkpoint keeps."""
        return {
            "low": self.low,
            "high": self.high,
            "elements": self.elements,
            "unbounded": self.unbounded,
        }

    def add(self, scalars: Mapping[str, Array], sample: str) -> None:
        """Add one sample.

        Args:
            scalars: The outputs of ``taps.ranged``.
            sample: Where it comes from, for the message.

        Raises:
            DataError: A tensor holds a NaN.
        """
        low, high, total, size = (self._column(scalars, w) for w in ("low", "high", "sum", "size"))
        # an empty tensor's extremes are the neutral elements: high -inf, low inf
        infinite = (size > 0) & ((low == -np.inf) | (high == np.inf))
        # infinities of both signs also sum to NaN
        for index in np.flatnonzero(np.isnan(total) & ~infinite):
            raise DataError(f"{sample}: {self.names[int(index)]!r} becomes NaN; drop the sample")
        with self.lock:
            np.minimum(self.low, low, out=self.low)
            np.maximum(self.high, high, out=self.high)
            np.add(self.elements, size.astype(np.int64), out=self.elements)
            np.logical_or(self.unbounded, infinite, out=self.unbounded)

    def statistics(self) -> dict[str, TensorStatistics]:
        """Return each tensor's statistics, without histograms."""
        return {name: self._tensor(index) for index, name in enumerate(self.names)}

    def _column(self, scalars: Mapping[str, Array], what: str) -> npt.NDArray[np.float64]:
        values = [scalars[output_name(i, what)] for i in range(len(self.names))]
        return np.asarray(values, np.float64).reshape(-1)

    def _tensor(self, index: int) -> TensorStatistics:
        known = not self.unbounded[index] and self.elements[index] > 0
        return TensorStatistics(
            low=float(self.low[index]) if known else 0.0,
            high=float(self.high[index]) if known else 0.0,
            elements=int(self.elements[index]),
            unbounded=bool(self.unbounded[index]),
            counts=np.zeros(0, np.int64),
        )
