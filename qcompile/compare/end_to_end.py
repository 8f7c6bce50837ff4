"""Whole models side by side: the FP model against the engine, on the same samples."""

from collections.abc import Callable, Mapping

from qcompile.compare.classes import ClassTally, class_axis, label_rows, score_rows
from qcompile.compare.metric import Metric, MetricTally, Outputs
from qcompile.compare.outputs import OutputTally
from qcompile.compare.results import Comparison, OutputError
from qcompile.errors import DataError, EngineError
from qcompile.progress import Progress
from qcompile.samples import Array, Feeds, Samples

Runner = Callable[[Feeds], dict[str, Array]]
"""Runs a model once: feeds to output name to array."""


def compare(
    reference: Runner,
    engine: Runner,
    samples: Samples,
    *,
    metric: Metric | None = None,
    progress: Progress,
) -> Comparison:
    """Compare one model with the FP model; see ``compare_all``."""
    return compare_all(reference, {"engine": engine}, samples, metric=metric, progress=progress)[
        "engine"
    ]


def compare_all(
    reference: Runner,
    engines: Mapping[str, Runner],
    samples: Samples,
    *,
    metric: Metric | None = None,
    progress: Progress,
) -> dict[str, Comparison]:
    """Compare several models with the FP model, which runs once for each sample.

    Memory holds one sample's outputs at a time, whatever the number of samples.

    Args:
        reference: The FP model.
        engines: Name to model, such as the engine and its simulation.
        samples: What to feed; labels, where there are any, give accuracies.
        metric: The user's own metric.
        progress: Told of each sample, and of whatever is wrong with the outputs.

    Returns:
        For each engine: SQNR, cosine and largest error of each output; agreement and accuracy of
        outputs with class scores (see ``compare.classes``); the metric.

    Raises:
        DataError: There are no samples, or one cannot be read.
        EngineError: A model fails, or an engine lacks an output.
        RecipeError: The metric fails.
    """
    if not len(samples):
        raise DataError("there are no samples to compare with")
    tallies = {name: _Tally(metric) for name in engines}
    progress.step("compare", 0, len(samples))
    for index in range(len(samples)):
        feeds, label, sample = samples[index], samples.label(index), samples.name(index)
        expected = reference(feeds)
        for name, engine in engines.items():
            tallies[name].add(expected, engine(feeds), label, feeds, sample)
        progress.step("compare", index + 1, len(samples))
    results = {name: tally.result(len(samples)) for name, tally in tallies.items()}
    for name, result in results.items():
        for note in result.notes:
            progress.notice(f"{name}: {note}")
    return results


class _Tally:
    """All that is collected of one engine."""

    def __init__(self, metric: Metric | None) -> None:
        self._outputs: dict[str, OutputTally] = {}
        self._classes: dict[str, ClassTally] = {}
        self._metric = MetricTally(metric) if metric else None
        self._extra: set[str] = set()
        self._labels = self._labels_used = 0

    def add(
        self, expected: Outputs, found: Outputs, label: Array | None, feeds: Feeds, sample: str
    ) -> None:
        self._extra |= found.keys() - expected.keys()
        self._labels += label is not None
        used = False
        for name, reference in expected.items():
            if name not in found:
                raise EngineError(f"the engine has no output {name!r}, which the FP model has")
            tally = self._outputs.setdefault(name, OutputTally(name))
            tally.add(reference, found[name], sample)
            used |= self._add_classes(name, reference, found[name], label, feeds)
        if self._metric:
            self._metric.add(expected, found, label, feeds, sample)
        self._labels_used += used

    def _add_classes(
        self, name: str, reference: Array, test: Array, label: Array | None, feeds: Feeds
    ) -> bool:
        """Add an output's decisions, if it holds any; return whether the label was used."""
        axis = class_axis(reference, feeds, label)
        if axis is None or reference.shape != test.shape:
            return False
        rows = score_rows(reference, axis)
        labels = label_rows(label, len(rows))
        tally = self._classes.setdefault(
            name, ClassTally(name, independent=reference.ndim == 2, classes=rows.shape[1])
        )
        tally.add(rows, score_rows(test, axis), labels)
        return labels is not None

    def result(self, samples: int) -> Comparison:
        outputs = tuple(tally.result() for tally in self._outputs.values())
        scores = [score for tally in self._classes.values() for score in tally.scores()]
        if self._metric:
            scores.insert(0, self._metric.score())
        return Comparison(
            samples=samples,
            outputs=outputs,
            agreements=tuple(a for tally in self._classes.values() for a in tally.agreements()),
            scores=tuple(scores),
            notes=tuple(self._notes(outputs)),
        )

    def _notes(self, outputs: tuple[OutputError, ...]) -> list[str]:
        notes = [
            f"output {error.name!r}: {error.note}"
            for error in outputs
            if error.broken or error.mismatched
        ]
        notes += [f"output {name!r} is not in the FP model" for name in sorted(self._extra)]
        if self._labels > self._labels_used and not self._metric:
            notes.append(
                f"labels of {self._labels - self._labels_used} sample(s) fit no output with class "
                "scores; no accuracy from them"
            )
        notes += [
            f"output {name!r}: {tally.ignored} label(s) are no class of it; not judged"
            for name, tally in self._classes.items()
            if tally.ignored
        ]
        return notes
