"""A range for every activation: by one method for all, or by the best measured one for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qcompile.numerics.ranges import RangeMethod, range_of
from qcompile.planning.probe import Probe, Range
from qcompile.progress import Progress
from qcompile.recipe import Calibration
from qcompile.statistics import Statistics

METHODS: tuple[RangeMethod, ...] = ("minmax", "percentile", "mse", "entropy")

SHRINKS = ((0.5, 1.0), (0.25, 1.0), (0.125, 1.0), (1.0, 0.7), (1.0, 0.5))
"""Factors on low and high of the best method so far: what a SiLU maps to zero needs no codes."""

SYMMETRIC_SHRINKS = ((0.85, 0.85), (0.7, 0.7), (0.5, 0.5))
"""The same on grids that are even about zero."""

BETTER = 0.98
"""A later candidate must lower the squared error by this factor: ties keep the simpler method."""


@dataclass(frozen=True)
class Choice:
    """The range of one activation.

    Attributes:
        low: Lowest real value of the grid.
        high: Highest.
        method: Which method gave it; ``search`` for a shrunk range.
        errors: Relative L2 error at the readers' outputs for each method tried, worst reader.
    """

    low: float
    high: float
    method: str
    errors: Mapping[str, float]

    @property
    def error(self) -> float:
        """Relative L2 error with this range, or 0 where nothing was measured."""
        return self.errors.get(self.method, 0.0)


def by_method(
    method: RangeMethod,
    names: Sequence[str],
    statistics: Statistics,
    options: Calibration,
    *,
    symmetric: bool = False,
) -> dict[str, Range]:
    """Return the range of each tensor by one method."""
    return {
        name: range_of(
            method, statistics.tensors[name], symmetric=symmetric, percentile=options.percentile
        )
        for name in names
    }


def choose_ranges(
    names: Sequence[str],
    statistics: Statistics,
    options: Calibration,
    probe: Callable[[], Probe],
    progress: Progress,
    *,
    symmetric: bool = False,
) -> dict[str, Choice]:
    """Choose the range of each activation.

    Args:
        names: Activations with a grid of their own.
        statistics: With histograms, unless the method is minmax.
        options: The method; auto measures all of them.
        probe: Makes the probe; called for auto alone.
        progress: Hears "plan: ranges".
        symmetric: Grids are even about zero.
    """
    if options.method != "auto":
        found = by_method(options.method, names, statistics, options, symmetric=symmetric)
        return {name: Choice(*found[name], options.method, {}) for name in names}
    return _measured(names, statistics, options, probe(), progress, symmetric=symmetric)


def _measured(
    names: Sequence[str],
    statistics: Statistics,
    options: Calibration,
    probe: Probe,
    progress: Progress,
    *,
    symmetric: bool,
) -> dict[str, Choice]:
    shrinks = SYMMETRIC_SHRINKS if symmetric else SHRINKS
    total = len(METHODS) + len(shrinks)
    best: dict[str, Choice] = {}
    scores: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {name: {} for name in names}

    def consider(label: str, ranges: Mapping[str, Range]) -> None:
        readings = probe.measure(ranges)
        squared = dict.fromkeys(names, 0.0)
        worst = dict.fromkeys(names, 0.0)
        for (name, _), reading in readings.items():
            squared[name] += reading.relative**2
            worst[name] = max(worst[name], reading.relative)
        for name in names:
            if name not in scores or squared[name] < BETTER * scores[name]:
                scores[name] = squared[name]
                errors[name][label] = worst[name]
                best[name] = Choice(*ranges[name], label, errors[name])
            errors[name].setdefault(label, worst[name])

    for done, method in enumerate(METHODS):
        progress.step("plan: ranges", done, total)
        consider(method, by_method(method, names, statistics, options, symmetric=symmetric))
    for done, (low, high) in enumerate(shrinks, len(METHODS)):
        progress.step("plan: ranges", done, total)
        consider("search", {n: (best[n].low * low, best[n].high * high) for n in names})
    progress.step("plan: ranges", total, total)
    return best
