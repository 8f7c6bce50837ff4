"""Times runs on a device, alone or two models in turn.

Travels in a bundle beside the script that uses it; needs nothing but Python.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

WARM_UP_RUNS, LEAST_RUNS = 10, 20
_Z = 1.959964
"""Quantile of the normal distribution behind a 95 % interval."""


def timed(run: Callable[[], object], seconds: float = 1.0) -> dict[str, Any]:
    """Return the median time of a run in milliseconds, and of how many."""
    _warm(run)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        times.append(_milliseconds(run))
    return {"median_ms": statistics.median(times), "runs": len(times)}


def timed_pair(
    reference: Callable[[], object], run: Callable[[], object], seconds: float = 2.0
) -> dict[str, Any]:
    """Time two models in turn; every other pair starts with the second.

    Returns:
        Median times in milliseconds (``float_ms``, ``engine_ms``); ``ratio``, the median over pairs
        of reference time / time, with its 95 % ``interval`` (``median_interval``); ``pairs``.
    """
    _warm(reference)
    _warm(run)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < LEAST_RUNS or time.perf_counter() < end:
        if len(pairs) % 2 == 0:
            first = _milliseconds(reference)
            second = _milliseconds(run)
        else:
            second = _milliseconds(run)
            first = _milliseconds(reference)
        pairs.append((first, second))
    ratios = [first / second for first, second in pairs]
    return {
        "float_ms": statistics.median(first for first, _ in pairs),
        "engine_ms": statistics.median(second for _, second in pairs),
        "ratio": statistics.median(ratios),
        "interval": median_interval(ratios),
        "pairs": len(pairs),
    }


def median_interval(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval of a median: two of the values, by their ranks.

    Ranks are those between which the binomial distribution with p = 1/2 has 95 % (its normal
    approximation); at least a dozen values are wanted.
    """
    ordered, half = sorted(values), _Z / 2 * math.sqrt(len(values))
    low, high = math.floor(len(values) / 2 - half), math.ceil(len(values) / 2 + half)
    return [ordered[max(low, 0)], ordered[min(high, len(values) - 1)]]


def _warm(run: Callable[[], object]) -> None:
    for _ in range(WARM_UP_RUNS):
        run()


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)
