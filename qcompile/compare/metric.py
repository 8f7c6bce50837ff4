"""The user's own metric, for what accuracy cannot say: mAP, mIoU, word error rate ...

``module:callable`` names a function ``f(outputs, label, feeds)`` that is called once a sample and
model: ``outputs`` maps output names to arrays, ``label`` is the sample's label or None, ``feeds``
are its inputs. It returns a number; the mean over samples is the score. Higher is better, unless
the function has a true attribute ``lower_is_better``.

A function with an attribute ``aggregate`` may return anything, such as a confusion matrix or a
list of detections: ``f.aggregate(values)`` makes the one number out of the list of all of them.

Metrics that come with qcompile have a name of their own: ``perplexity``.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.compare.results import Score
from qcompile.errors import RecipeError
from qcompile.functions import function_named
from qcompile.numerics.intervals import Interval, jackknife_interval, mean_interval
from qcompile.samples import Array, Feeds, Samples

Outputs = Mapping[str, Array]

BUILT_IN = {"perplexity": "qcompile.compare.perplexity:perplexity"}
"""Short name to the ``module:callable`` that it stands for."""


@dataclass(frozen=True)
class Metric:
    """A metric with its name.

    Attributes:
        name: ``module:callable``, or any name for the report.
        measure: Maps outputs, label and feeds of a sample to a number, or to what ``aggregate``
            takes.
        aggregate: Maps the values of several samples to the score; None takes their mean.
        lower_is_better: For losses, such as perplexity.
    """

    name: str
    measure: Callable[[Outputs, Array | None, Feeds], Any]
    aggregate: Callable[[list[Any]], float] | None = None
    lower_is_better: bool = False

    def identity(self) -> tuple[str, str]:
        """Return the name, and a hash of the file that defines the metric."""
        try:
            file = inspect.getsourcefile(inspect.unwrap(self.measure))
            content = Path(file).read_bytes() if file else b""
        except (OSError, TypeError, ValueError):  # an object, or built in
            content = b""
        return self.name, hashlib.sha256(content).hexdigest()


def load_metric(spec: str) -> Metric:
    """Return a built-in metric, or the one that ``module:callable`` names.

    Raises:
        RecipeError: The module cannot be imported, or has no such callable.
    """
    name = BUILT_IN.get(spec, spec)
    if not all(name.partition(":")):
        known = ", ".join(BUILT_IN)
        raise RecipeError(f"metric {spec!r}: write it as module:callable, or name one of: {known}")
    measure = function_named(name, RecipeError)
    lower = bool(getattr(measure, "lower_is_better", False))
    return Metric(spec, measure, getattr(measure, "aggregate", None), lower)


class MetricTally:
    """Collects a metric of both models, sample by sample."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._float: list[Any] = []
        self._engine: list[Any] = []

    def add(
        self, reference: Outputs, test: Outputs, label: Array | None, feeds: Feeds, sample: str
    ) -> None:
        """Measure one sample of both models.

        Raises:
            RecipeError: The metric fails, or returns no number where it has no ``aggregate``.
        """
        for outputs, values in ((reference, self._float), (test, self._engine)):
            values.append(_measured(self._metric, outputs, label, feeds, sample))

    def score(self) -> Score:
        """Return the score of both models, with the paired interval of the difference.

        Raises:
            RecipeError: ``aggregate`` fails or returns no number.
        """
        count = len(self._float)
        everything = np.arange(count)
        values = (self._value(self._float, everything), self._value(self._engine, everything))
        defined = all(math.isfinite(value) for value in values)
        return Score(
            name=self._metric.name,
            float_value=values[0] if math.isfinite(values[0]) else None,
            engine_value=values[1] if math.isfinite(values[1]) else None,
            difference=values[1] - values[0] if defined else None,
            interval=self._interval(self._float, self._engine) if defined else None,
            float_interval=self._interval([], self._float) if defined else None,
            engine_interval=self._interval([], self._engine) if defined else None,
            lower_is_better=self._metric.lower_is_better,
            count=count,
            note="" if defined else f"the metric is {values[0]} for FP, {values[1]} for the engine",
        )

    def _interval(self, baseline: list[Any], values: list[Any]) -> Interval | None:
        """Return the interval of a score, less that of ``baseline`` on the same samples if any."""
        if self._metric.aggregate is None:
            return mean_interval(np.array(values) - (np.array(baseline) if baseline else 0.0))

        def above(kept: "np.typing.NDArray[np.intp]") -> float:
            return self._value(values, kept) - (self._value(baseline, kept) if baseline else 0.0)

        interval = jackknife_interval(above, len(values))
        return interval if interval and all(map(math.isfinite, interval)) else None

    def _value(self, values: list[Any], kept: "np.typing.NDArray[np.intp]") -> float:
        return _together(self._metric, [values[i] for i in kept])


def value_of(metric: Metric, outputs: Sequence[Outputs], samples: Samples) -> float:
    """Return a metric of one model, NaN or infinite where it is not defined.

    Args:
        metric: The user's.
        outputs: Of the model, for each sample.
        samples: Have the labels and feeds.

    Raises:
        RecipeError: The metric fails, or returns no number.
    """
    values = [
        _measured(metric, found, samples.label(i), samples[i], samples.name(i))
        for i, found in enumerate(outputs)
    ]
    return _together(metric, values)


def _measured(
    metric: Metric, outputs: Outputs, label: Array | None, feeds: Feeds, sample: str
) -> Any:  # noqa: ANN401 (whatever aggregate takes)
    """Return what the metric says of one sample."""
    try:
        value = metric.measure(outputs, label, feeds)
        return value if metric.aggregate else float(value)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"metric {metric.name!r} fails on {sample}: {type(error).__name__}: {error}"
        ) from error


def _together(metric: Metric, values: list[Any]) -> float:
    """Return the metric of several samples."""
    if metric.aggregate is None:
        return math.fsum(values) / len(values)
    try:
        return float(metric.aggregate(values))
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"metric {metric.name!r}: aggregate fails: {type(error).__name__}: {error}"
        ) from error
