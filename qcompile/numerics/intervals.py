"""95 % confidence intervals of what a comparison measures on a few samples.

Both models see the same samples, so differences are judged in pairs. Every random draw comes from
a generator with a fixed seed: the same measurements give the same interval.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000

_SEED = 20_260_101
_DRAWS = 1 << 21
"""Random draws at a time, so that memory does not grow with the number of samples."""
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf((1 + LEVEL) / 2)


class Interval(NamedTuple):
    """Low and high end, in the unit of what was measured."""

    low: float
    high: float


def mean_interval(values: Floats) -> Interval | None:
    """Return the interval of a mean, such as of paired differences.

    Args:
        values: One a sample, ``(n,)``, finite.

    Returns:
        None for fewer than two samples.
    """
    return _bca(values[:, None], lambda sums, count: sums[..., 0] / count)


def ratio_interval(numerators: Floats, denominators: Floats) -> Interval | None:
    """Return the interval of ``sum(numerators) / sum(denominators)`` over samples.

    Args:
        numerators: One a sample, ``(n,)``, finite.
        denominators: One a sample, ``(n,)``, finite and not negative.

    Returns:
        None for fewer than two samples, or where leaving out samples leaves no denominator.
    """
    if np.count_nonzero(denominators) < 2:
        return None
    columns = np.stack([numerators, denominators], axis=1)
    return _bca(columns, _ratio)


def median_interval(values: Floats) -> Interval | None:
    """Return the interval of a median by the percentile bootstrap; None below two values."""
    if len(values) < 2:
        return None
    medians = _concatenated(
        np.median(values[rows], axis=1) for rows in _resampled_rows(len(values))
    )
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def wilson_interval(hits: int, count: int) -> Interval:
    """Return the score interval of a proportion (Wilson 1927); 0 to 1 without any trial."""
    if count == 0:
        return Interval(0.0, 1.0)
    share, spread = hits / count, _Z * _Z / count
    centre = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return Interval(0.0 if hits == 0 else low, 1.0 if hits == count else high)


def paired_proportion_interval(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]
) -> Interval:
    """Return the interval of ``mean(second) - mean(first)`` on the same trials.

    The score interval for paired proportions with a continuity-corrected correlation (Newcombe
    1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10). It stays honest where the models disagree on few trials or none.

    Args:
        first: Whether the first model was right, ``(n,)``.
        second: Whether the second model was right, ``(n,)``.
    """
    count = len(first)
    if count == 0:
        return Interval(-1.0, 1.0)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    rights_1, rights_2 = int(first.sum()), int(second.sum())
    only_1, only_2 = rights_1 - both, rights_2 - both
    correlation = _newcombe_correlation(both, only_1, only_2, neither)
    share_1, share_2 = rights_1 / count, rights_2 / count
    low_1, high_1 = wilson_interval(rights_1, count)
    low_2, high_2 = wilson_interval(rights_2, count)
    below = _joint(share_2 - low_2, high_1 - share_1, correlation)
    above = _joint(high_2 - share_2, share_1 - low_1, correlation)
    difference = share_2 - share_1
    return Interval(max(-1.0, difference - below), min(1.0, difference + above))


def jackknife_interval(
    statistic: Callable[[npt.NDArray[np.intp]], float], count: int, groups: int = 20
) -> Interval | None:
    """Return the interval of a statistic of the whole set by leaving out groups of samples.

    The delete-a-group jackknife (Kott 2001): its ``groups`` evaluations are far fewer than a
    bootstrap's, for statistics that are slow to compute, such as mean average precision.

    Args:
        statistic: Maps the indices of the kept samples to a finite number.
        count: Number of samples.
        groups: Number of groups; at most ``count`` are used.

    Returns:
        None for fewer than two samples.
    """
    groups = min(groups, count)
    if groups < 2:
        return None
    everything = np.arange(count)
    centre = statistic(everything)
    left = np.array([statistic(everything[everything % groups != g]) for g in range(groups)])
    error = math.sqrt((groups - 1) / groups * float(((left - centre) ** 2).sum()))
    half = _student_quantile(groups - 1) * error
    return Interval(centre - half, centre + half)


def _bca(columns: Floats, statistic: Callable[[Floats, int], Floats]) -> Interval | None:
    """Bias-corrected and accelerated bootstrap (Efron 1987) of a function of the column sums."""
    count = len(columns)
    if count < 2:
        return None
    total = columns.sum(axis=0)
    value = float(statistic(total, count))
    resamples = _resampled_rows(count)
    draws = _concatenated(statistic(columns[rows].sum(axis=1), count) for rows in resamples)
    if draws.min() == draws.max():
        return Interval(value, value)
    left = statistic(total - columns, count - 1)
    centred = left.mean() - left
    spread = float((centred**2).sum()) ** 1.5
    acceleration = float((centred**3).sum()) / (6 * spread) if spread else 0.0
    # Half of the ties count as below: a statistic with few values is not a biased one.
    below = float((draws < value).mean() + (draws == value).mean() / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    ends = []
    for z in (-_Z, _Z):
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        # Without interpolation: a draw may be infinite.
        ends.append(float(np.quantile(draws, _NORMAL.cdf(shifted), method="inverted_cdf")))
    return Interval(*ends)


def _ratio(sums: Floats, _: int) -> Floats:
    numerator, denominator = sums[..., 0], sums[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.where(denominator > 0, numerator / denominator, np.inf)
    return ratio


def _resampled_rows(count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield indices of resamples, ``(some, count)``, RESAMPLES rows in all."""
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _DRAWS // count)
    for start in range(0, RESAMPLES, at_once):
        yield generator.integers(0, count, (min(at_once, RESAMPLES - start), count))


def _concatenated(parts: Iterable[Floats]) -> Floats:
    return np.concatenate(list(parts))


def _newcombe_correlation(both: int, only_1: int, only_2: int, neither: int) -> float:
    margins = (both + only_1) * (only_2 + neither) * (both + only_2) * (only_1 + neither)
    if margins == 0:
        return 0.0
    product = both * neither - only_1 * only_2
    half = (both + only_1 + only_2 + neither) / 2
    return (max(product - half, 0.0) if product > 0 else product) / math.sqrt(margins)


def _joint(a: float, b: float, correlation: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))


def _student_quantile(freedom: int) -> float:
    """Upper end of the central 95 % of Student's t (Cornish-Fisher, Abramowitz-Stegun 26.7.5)."""
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
