"""One output of two models over many samples: sums only, so memory does not grow with elements."""

import math

import numpy as np

from qcompile.compare.results import OutputError, finite, finite_interval
from qcompile.numerics.intervals import Interval, ratio_interval
from qcompile.numerics.metrics import ErrorSums, decibels, error_sums
from qcompile.samples import Array


class OutputTally:
    """Collects the errors of one output, sample by sample."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._dtype = ""
        self._sums: list[ErrorSums] = []
        self._equal = 0
        self._elements = 0
        self._mismatched: list[str] = []

    def add(self, reference: Array, test: Array, sample: str) -> None:
        """Add one sample's pair of arrays; ``sample`` is its name, for the note."""
        self._dtype = str(reference.dtype)
        if reference.shape != test.shape:
            self._mismatched.append(f"{sample}: {reference.shape} and {test.shape}")
        elif is_real(reference) and is_real(test):
            self._sums.append(error_sums(reference, test))
        else:
            self._equal += int(np.count_nonzero(reference == test))
            self._elements += reference.size

    def result(self) -> OutputError:
        """Return what was found so far."""
        total = ErrorSums(
            elements=sum(s.elements for s in self._sums),
            # fsum is exact: the order of the samples changes no bit.
            signal=math.fsum(s.signal for s in self._sums),
            energy=math.fsum(s.energy for s in self._sums),
            product=math.fsum(s.product for s in self._sums),
            noise=math.fsum(s.noise for s in self._sums),
            max_abs=max((s.max_abs for s in self._sums), default=0.0),
            skipped=sum(s.skipped for s in self._sums),
            broken=sum(s.broken for s in self._sums),
        )
        identical = total.identical and self._equal == self._elements and not self._mismatched
        measured = bool(self._sums) and not self._mismatched
        return OutputError(
            name=self.name,
            dtype=self._dtype,
            sqnr_db=finite(total.sqnr_db) if measured else None,
            sqnr_interval=self._interval() if measured and not total.broken else None,
            cosine=finite(total.cosine) if measured else None,
            max_abs_error=finite(total.max_abs) if measured and not total.broken else None,
            relative_l2=finite(total.relative_l2) if measured else None,
            equal=self._equal / self._elements if self._elements else None,
            identical=identical,
            broken=total.broken,
            mismatched=len(self._mismatched),
            note=self._note(total, identical=identical),
        )

    def _interval(self) -> Interval | None:
        signal = np.array([s.signal for s in self._sums])
        noise = np.array([s.noise for s in self._sums])
        ratio = ratio_interval(signal, noise)
        return finite_interval(*(decibels(end, 1.0) for end in ratio)) if ratio else None

    def _note(self, total: ErrorSums, *, identical: bool) -> str:
        if self._mismatched:
            count = len(self._mismatched)
            return f"shapes differ in {count} sample(s), first in {self._mismatched[0]}"
        if total.broken:
            return f"{total.broken} elements are NaN or infinite in one model only"
        if identical:
            return "identical"
        if self._sums and total.signal == 0:
            return "the FP model gives only zeros"
        if total.skipped:
            return f"{total.skipped} elements are NaN or infinite in both models, left out"
        return ""


def is_real(array: Array) -> bool:
    """Return whether the array holds floating-point numbers, so that errors have a size."""
    return np.issubdtype(array.dtype, np.floating)
