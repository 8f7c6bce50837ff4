"""How far an array is from its reference: sums that add up over samples, and what they mean.

All sums are float64. SQNR is ``10 log10(sum r^2 / sum (r - t)^2)`` dB over all elements seen.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

_BLOCK = 1 << 20
"""Elements converted to float64 at a time, so that a large array is never copied as a whole."""


@dataclass(frozen=True)
class ErrorSums:
    """Sums over pairs of elements, reference r and test t; ``+`` joins two sets of pairs.

    Elements that are not finite in the reference and the same in the test are left out of the
    sums (``skipped``); all others that are not finite on either side are ``broken``.

    Attributes:
        elements: Pairs in the sums.
        signal: Sum of ``r^2``.
        energy: Sum of ``t^2``.
        product: Sum of ``r t``.
        noise: Sum of ``(r - t)^2``.
        max_abs: Largest ``|r - t|``.
        skipped: Pairs of equal NaN or infinity.
        broken: Pairs that differ in being finite, or in which infinity.
    """

    elements: int = 0
    signal: float = 0.0
    energy: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    skipped: int = 0
    broken: int = 0

    def __add__(self, other: "ErrorSums") -> "ErrorSums":
        return ErrorSums(
            elements=self.elements + other.elements,
            signal=self.signal + other.signal,
            energy=self.energy + other.energy,
            product=self.product + other.product,
            noise=self.noise + other.noise,
            max_abs=max(self.max_abs, other.max_abs),
            skipped=self.skipped + other.skipped,
            broken=self.broken + other.broken,
        )

    @property
    def identical(self) -> bool:
        """Whether no element differs."""
        return self.max_abs == 0 and self.broken == 0

    @property
    def sqnr_db(self) -> float:
        """SQNR in dB: inf when nothing differs, -inf when broken or when the reference is 0."""
        return -math.inf if self.broken else decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """Cosine of the angle, -1 to 1; NaN when broken or when one side only is 0."""
        if self.broken:
            return math.nan
        if self.noise == 0:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self.energy)
        return max(-1.0, min(1.0, self.product / norms)) if norms else math.nan

    @property
    def relative_l2(self) -> float:
        """Root of noise over signal; 0 when nothing differs, inf when broken."""
        if self.broken:
            return math.inf
        if self.noise == 0:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf


def decibels(signal: float, noise: float) -> float:
    """Return ``10 log10(signal / noise)``: inf without noise, -inf with noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def error_sums(reference: Numbers, test: Numbers) -> ErrorSums:
    """Return the sums over two arrays of real numbers.

    Args:
        reference: Any shape, any real dtype.
        test: The same shape; the dtype may differ.

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != test.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {test.shape}")
    total = ErrorSums()
    flat_r, flat_t = reference.reshape(-1), test.reshape(-1)
    for start in range(0, flat_r.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        total += _block_sums(flat_r[block].astype(np.float64), flat_t[block].astype(np.float64))
    return total


def _block_sums(r: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> ErrorSums:
    finite = np.isfinite(r) & np.isfinite(t)
    skipped = broken = 0
    if not finite.all():
        same = ~finite & ((r == t) | (np.isnan(r) & np.isnan(t)))
        skipped, broken = int(same.sum()), int((~finite & ~same).sum())
        r, t = r[finite], t[finite]
    error = r - t
    return ErrorSums(
        elements=r.size,
        signal=float(r @ r),
        energy=float(t @ t),
        product=float(r @ t),
        noise=float(error @ error),
        max_abs=float(np.abs(error).max(initial=0.0)),
        skipped=skipped,
        broken=broken,
    )


def sqnr_db(reference: Numbers, test: Numbers) -> float:
    """Return the signal to quantization noise ratio in dB (see ``ErrorSums.sqnr_db``)."""
    return error_sums(reference, test).sqnr_db


def cosine(reference: Numbers, test: Numbers) -> float:
    """Return the cosine of the angle between two arrays (see ``ErrorSums.cosine``)."""
    return error_sums(reference, test).cosine


def relative_l2(reference: Numbers, test: Numbers) -> float:
    """Return ``||r - t|| / ||r||`` (see ``ErrorSums.relative_l2``)."""
    return error_sums(reference, test).relative_l2


def max_abs_error(reference: Numbers, test: Numbers) -> float:
    """Return the largest ``|r - t|``; inf where only one of both is finite."""
    sums = error_sums(reference, test)
    return math.inf if sums.broken else sums.max_abs


def class_ranks(scores: Numbers, classes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return how many classes come before a given one: 0 is the best, below 5 is top-5.

    Equal scores rank by their class number, as ``argmax`` does. A row with a NaN has no best
    class: all ranks in it are C.

    Args:
        scores: ``(R, C)``, real.
        classes: ``(R,)``, each 0 to C - 1.

    Returns:
        ``(R,)``, each 0 to C.
    """
    own = np.take_along_axis(scores, classes[:, None].astype(np.int64), axis=1)
    earlier = np.arange(scores.shape[1]) < classes[:, None]
    ranks: npt.NDArray[np.int64] = ((scores > own) | ((scores == own) & earlier)).sum(
        axis=1, dtype=np.int64
    )
    ranks[np.isnan(scores).any(axis=1)] = scores.shape[1]
    return ranks
