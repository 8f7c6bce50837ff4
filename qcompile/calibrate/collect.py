"""Runs the samples through the float graph and gathers the statistics of its activations.

Two passes: the first takes each tensor's exact range, the second counts into a histogram over that
range. Nothing of a sample is kept, so memory does not depend on their number, and all that is kept
(minima, maxima, whole numbers) comes out the same for any order of the samples and any number of
workers. The graph runs unoptimized: a tensor's values then do not depend on which others are asked
for, so that tensors which are added to the cache later fit those that are there.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompile.calibrate.cache import StatisticsStore
from qcompile.calibrate.seen import RangesSeen
from qcompile.calibrate.stage import Stage
from qcompile.calibrate.taps import ranged, tapped
from qcompile.errors import DataError
from qcompile.graph.digest import model_digest
from qcompile.numerics.histogram import add_to_histogram
from qcompile.progress import Progress, Silent
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Samples, content_order, samples_digest
from qcompile.statistics import BINS, Statistics, TensorStatistics

FETCH_BYTES = 1 << 28
"""Activations that the second pass holds at once, over all workers; for more, it runs again."""


def collect(
    model: ir.Model,
    samples: Samples,
    names: Sequence[str],
    *,
    jobs: int = 1,
    histograms: bool = True,
    store: StatisticsStore | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Return the statistics of the named tensors over all samples.

    Args:
        model: The canonical graph; it is not changed.
        samples: Read once a pass, from ``jobs`` threads.
        names: Float activations and inputs of the main graph.
        jobs: Samples in flight at once, each on one thread. The result does not depend on it.
        histograms: Also take histograms; False takes the ranges alone, in one pass.
        store: Where finished and half-finished statistics are kept; None keeps nothing.
        progress: Hears "calibrate: ranges" and "calibrate: histograms".

    Raises:
        DataError: There is no sample, one cannot be read, or a tensor is NaN for one; named.
        StatisticsError: A name is no float tensor of the main graph.
        EngineError: ONNX Runtime cannot run the model.
    """
    if not len(samples):
        raise DataError("there are no samples to calibrate with")
    job = _Collection(model, samples, jobs, store, progress or Silent())
    wanted = list(dict.fromkeys(names))
    reused = sum(job.has(name, histograms=histograms) for name in wanted)
    job.take_ranges([name for name in wanted if name not in job.tensors])
    if histograms:
        bounded = [name for name in wanted if not job.tensors[name].unbounded]
        job.take_histograms([name for name in bounded if not job.tensors[name].counts.size])
    return Statistics({name: job.tensors[name] for name in wanted}, len(samples), reused)


class _Collection:
    """What is fixed for one collection, and the tensors that are finished so far."""

    def __init__(
        self,
        model: ir.Model,
        samples: Samples,
        jobs: int,
        store: StatisticsStore | None,
        progress: Progress,
    ) -> None:
        self.model, self.samples, self.jobs = model, samples, jobs
        self.store, self.progress = store, progress
        self.tensors: dict[str, TensorStatistics] = {}
        self.ranks: Sequence[int] = range(len(samples))
        self.key = ""
        if store is not None:
            self.key = store.key(model_digest(model), samples_digest(samples))
            self.ranks = [int(rank) for rank in np.argsort(content_order(samples))]
            self.tensors = store.load(self.key, progress)

    def has(self, name: str, *, histograms: bool) -> bool:
        """Return whether a tensor is finished."""
        found = self.tensors.get(name)
        return found is not None and (not histograms or found.unbounded or found.counts.size > 0)

    def take_ranges(self, names: Sequence[str]) -> None:
        """First pass: low, high and number of elements of each tensor."""
        if not names:
            return
        session = Session(ranged(self.model, names), optimize=False)
        seen = RangesSeen.nothing(names)

        def work(index: int) -> None:
            seen.add(session.run(self.samples[index]), self.samples.name(index))

        self._run("calibrate: ranges", names, seen.arrays(), work, seen.statistics)

    def take_histograms(self, names: Sequence[str]) -> None:
        """Second pass: counts over the ranges of the first, for bounded groups of tensors."""
        groups = self._groups(names)
        for number, group in enumerate(groups, 1):
            part = f" ({number} of {len(groups)})" if len(groups) > 1 else ""
            self._count(f"calibrate: histograms{part}", group)

    def _groups(self, names: Sequence[str]) -> list[list[str]]:
        groups: list[list[str]] = []
        room = 0.0
        for name in names:
            size = 4 * self.tensors[name].elements / len(self.samples)
            if not groups or size > room:
                groups.append([])
                room = FETCH_BYTES / self.jobs
            groups[-1].append(name)
            room -= size
        return groups

    def _count(self, stage: str, names: Sequence[str]) -> None:
        fed = {value.name for value in self.model.graph.inputs}
        computed = [name for name in names if name not in fed]
        session = Session(tapped(self.model, computed), optimize=False) if computed else None
        counts = np.zeros((len(names), BINS), np.int64)
        locks = [threading.Lock() for _ in names]

        def work(index: int) -> None:
            feeds = self.samples[index]
            arrays = session.run(feeds) if session else {}
            for row, name in enumerate(names):
                values = feeds[name] if name in fed else arrays.pop(name)
                ends = self.tensors[name].low, self.tensors[name].high
                with locks[row]:
                    add_to_histogram(counts[row], values, *ends)

        def found() -> dict[str, TensorStatistics]:
            rows = zip(names, counts, strict=True)
            return {name: replace(self.tensors[name], counts=row) for name, row in rows}

        self._run(stage, names, {"counts": counts}, work, found)

    def _run(
        self,
        name: str,
        tensors: Sequence[str],
        arrays: Mapping[str, Array],
        work: Callable[[int], None],
        found: Callable[[], dict[str, TensorStatistics]],
    ) -> None:
        """Run one stage and keep what it found; the checkpoint goes only when that is saved."""
        place = self.store.checkpoint(self.key, name, tensors) if self.store else None
        Stage(name, work, arrays, self.ranks, place).run(self.jobs, self.progress)
        finished = found()
        self.tensors.update(finished)
        if self.store is not None and place is not None:
            self.store.save(self.key, finished, self.progress)
            place.remove()
