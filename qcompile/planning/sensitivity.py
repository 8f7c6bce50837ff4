"""Sensitivity: what rounding each node alone, by the grids of a plan, does to the outputs.

Rounding errors of different nodes are nearly independent, so that the noise of the whole is close
to the sum of what each node makes alone; how close is measured too.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from qcompile.graph.work import multiply_adds
from qcompile.plan import Plan
from qcompile.planning.probe import Range
from qcompile.planning.select import Selection
from qcompile.samples import Array
from qcompile.targets.target import Placement

OUTPUT_BYTES = 1 << 28
"""Of the outputs of all samples together, which are held at once."""

Score = Callable[[Sequence[dict[str, Array]]], float]
"""Scores what a model gives for each sample."""

Run = Callable[[Collection[str]], list[dict[str, Array]]]
"""Gives the outputs of each sample with some nodes rounded."""


@dataclass(frozen=True)
class Effect:
    """What rounding some nodes does to the outputs.

    Attributes:
        noise: Power of the error over power of the float signal, mean over outputs; infinite where
            an element becomes NaN or infinite.
        score: Of the rounded model, by the user's metric; None without one. May be NaN.
    """

    noise: float
    score: float | None = None

    @property
    def sqnr_db(self) -> float:
        """The noise as SQNR, in dB; infinite where nothing differs."""
        return -10 * math.log10(self.noise) if self.noise > 0 else math.inf


class Board(Protocol):
    """Rounds any set of nodes, on fixed samples.

    Attributes:
        units: Names of the nodes, in graph order.
        reference: What the float model gives.
    """

    units: list[str]
    reference: list[dict[str, Array]]

    def noise_of(self, found: Sequence[Mapping[str, Array]]) -> float:
        """Return the noise of what the rounded model gives."""

    def scored(self, found: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Return what a metric is to score of what a model gives."""


class Effects:
    """Answers what rounding does, by one plan.

    Attributes:
        units: Names of the nodes that can be asked for, in graph order.
    """

    def __init__(self, board: Board, run: Run, score: Score | None) -> None:
        """Keep what questions need.

        Args:
            board: Of the plan; gives the model's own outputs if there is a score.
            run: Rounds some of its units.
            score: The metric.
        """
        self._board, self._run, self._score = board, run, score
        self.units = board.units

    @property
    def unrounded(self) -> float | None:
        """The score of the float model; None without a metric."""
        return self._scored(self._board.reference)

    def of(self, units: Collection[str]) -> Effect:
        """Measure the effect of rounding some units, and nothing else."""
        found = self._run(units)
        return Effect(self._board.noise_of(found), self._scored(found))

    def alone(self, units: Collection[str]) -> Iterator[tuple[str, Effect]]:
        """Yield the effect of each unit alone, in the graph's order."""
        for unit in self.units:
            if unit in units:
                yield unit, self.of([unit])

    def _scored(self, found: Sequence[dict[str, Array]]) -> float | None:
        return self._score(self._board.scored(found)) if self._score else None


def selection_of(plan: Plan, placement: Placement) -> Selection:
    """Return the selection that a plan says, as far as a switchboard asks.

    Tied values go by grids of their own, which are equal.
    """
    names = [name for name, tensor in plan.tensors.items() if tensor.kind == "activation"]
    return Selection(dict(plan.nodes), names, {}, {}, {}, frozenset(), placement)


def ranges_of(plan: Plan) -> dict[str, Range]:
    """Return the range of each activation's grid."""
    return {n: t.bounds() for n, t in plan.tensors.items() if t.kind == "activation"}


def affordable(model: ir.Model, questions: int, samples: int, most: float) -> int:
    """Return on how many samples that many questions can be asked; at least one.

    Args:
        model: What a question runs once for each sample.
        questions: Their number.
        samples: That there are.
        most: Multiply-adds that all may cost. A number of them, not a time, so that the answers do
            not depend on how fast the machine is.
    """
    once = sum(multiply_adds(node) for node in model.graph)
    return min(samples, max(1, int(most / max(once * questions, 1.0))))


def held(outputs: Mapping[str, Array]) -> int:
    """Return of how many samples such outputs may be held at once; at least one."""
    return max(1, OUTPUT_BYTES // max(sum(array.nbytes for array in outputs.values()), 1))
