"""Class scores: which outputs hold them, how often both models decide alike, how often rightly.

An output holds class scores where its shape leaves little doubt:

- ``(N, C)``: one decision a row; rows are independent;
- ``(N, T, C)`` next to an integer input ``(N, T)``: token logits, a decision a position;
- ``(N, C, ...)`` where the sample has integer labels ``(N, ...)`` (or ``(...)`` for N = 1):
  segmentation, a decision a pixel. Without labels such an output could be anything.

C is at least 2. Labels outside 0 to C - 1 mark positions that are not judged.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcompile.compare.outputs import is_real
from qcompile.compare.results import Agreement, Score
from qcompile.numerics.intervals import (
    Interval,
    paired_proportion_interval,
    ratio_interval,
    wilson_interval,
)
from qcompile.numerics.metrics import class_ranks
from qcompile.samples import Array, Feeds

Hits = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]


@dataclass
class _Share:
    """Hits and decisions of each sample; single decisions only where they are independent."""

    independent: bool
    hits: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    single: list[Hits] = field(default_factory=list)

    def add(self, hits: Hits) -> None:
        self.hits.append(int(hits.sum()))
        self.counts.append(hits.size)
        if self.independent:
            self.single.append(hits)

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def value(self) -> float:
        return sum(self.hits) / self.count

    def interval(self) -> Interval | None:
        if self.independent:
            return wilson_interval(sum(self.hits), self.count)
        return ratio_interval(np.array(self.hits, float), np.array(self.counts, float))

    def difference_interval(self, other: "_Share") -> Interval | None:
        """Return the paired interval of ``other - self``."""
        if self.independent:
            return paired_proportion_interval(
                np.concatenate(self.single), np.concatenate(other.single)
            )
        gains = np.array(other.hits, float) - np.array(self.hits, float)
        return ratio_interval(gains, np.array(self.counts, float))


class ClassTally:
    """Collects the decisions of one output, sample by sample."""

    def __init__(self, output: str, *, independent: bool, classes: int) -> None:
        self.output = output
        self.ignored = 0
        self._tops = (1, 5) if classes > 5 else (1,)
        self._agreed = {k: _Share(independent) for k in self._tops}
        self._float = {k: _Share(independent) for k in self._tops}
        self._engine = {k: _Share(independent) for k in self._tops}

    def add(self, reference: Array, test: Array, labels: Labels | None) -> None:
        """Add one sample.

        Args:
            reference: Scores of the FP model, ``(R, C)``.
            test: Scores of the engine, ``(R, C)``.
            labels: Expected classes, ``(R,)``, or None.
        """
        ranks = class_ranks(test, reference.argmax(axis=1))
        for k in self._tops:
            self._agreed[k].add(ranks < k)
        if labels is None:
            return
        judged = (labels >= 0) & (labels < reference.shape[1])
        self.ignored += int((~judged).sum())
        expected = labels[judged]
        ranks_float = class_ranks(reference[judged], expected)
        ranks_engine = class_ranks(test[judged], expected)
        for k in self._tops:
            self._float[k].add(ranks_float < k)
            self._engine[k].add(ranks_engine < k)

    def agreements(self) -> list[Agreement]:
        """Return the agreement of both models: top-1, and top-5 beyond five classes."""
        return [
            Agreement(
                name=f"top-{k}",
                output=self.output,
                share=share.value,
                interval=share.interval(),
                count=share.count,
            )
            for k, share in self._agreed.items()
            if share.count
        ]

    def scores(self) -> list[Score]:
        """Return the accuracy of both models, where there were labels."""
        return [
            Score(
                name=f"top-{k} accuracy",
                output=self.output,
                float_value=self._float[k].value,
                engine_value=self._engine[k].value,
                difference=self._engine[k].value - self._float[k].value,
                interval=self._float[k].difference_interval(self._engine[k]),
                count=self._float[k].count,
            )
            for k in self._tops
            if self._float[k].count
        ]


def class_axis(scores: Array, feeds: Feeds, label: Array | None) -> int | None:
    """Return the axis of the classes of an output, or None if it holds no class scores."""
    shape = scores.shape
    if not is_real(scores) or scores.size == 0:
        return None
    if len(shape) == 2 and shape[1] >= 2:
        return 1
    tokens = any(f.shape == shape[:2] and f.dtype.kind in "iu" for f in feeds.values())
    if len(shape) == 3 and shape[2] >= 2 and tokens:
        return 2
    if len(shape) >= 3 and shape[1] >= 2 and label is not None and label.dtype.kind in "iu":
        full = (shape[0], *shape[2:])
        if label.shape == full or (shape[0] == 1 and label.shape == shape[2:]):
            return 1
    return None


def score_rows(scores: Array, axis: int) -> Array:
    """Return the scores as rows, ``(R, C)``; R runs over all positions in order."""
    return np.moveaxis(scores, axis, -1).reshape(-1, scores.shape[axis])


def label_rows(label: Array | None, rows: int) -> Labels | None:
    """Return integer labels as ``(R,)``, or None where they do not fit the rows."""
    if label is None or label.dtype.kind not in "iu" or label.size != rows:
        return None
    return label.reshape(-1).astype(np.int64)
