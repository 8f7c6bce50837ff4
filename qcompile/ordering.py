"""The layers of a plan, the one that loses most by being rounded alone first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from qcompile.compare.metric import Metric, value_of
from qcompile.numerics.grids import Codes
from qcompile.plan import CALIBRATED, Plan
from qcompile.planning.effects_store import EffectsStore
from qcompile.planning.replan import Replan
from qcompile.planning.run_time_board import RunTimeBoard
from qcompile.planning.sensitivity import (
    Board,
    Effect,
    Effects,
    Run,
    affordable,
    ranges_of,
    selection_of,
)
from qcompile.planning.switchboard import Switchboard, judged_values
from qcompile.progress import Progress
from qcompile.samples import Array, Samples, first

WORK = 1e12
"""Multiply-adds that ordering the layers may cost."""

SAMPLES, SCORED = 8, 16
"""Samples that layers are ordered on; by the metric only where that many are affordable."""

SCORES = 2000
"""Samples that the metric may score while layers are ordered."""

STAGE = "plan: sensitivity"

Rewrite = Callable[[Plan, dict[str, Codes]], ir.Model]
"""Writes a plan into the float graph; the model is simulated: ONNX Runtime's rewrites are off."""


def loss_of(metric: Metric | None, exact: float | None, score: float | None) -> float:
    """Return by how much a score is worse than that of the float model; 0 without a metric."""
    if exact is None or score is None or metric is None:
        return 0.0
    loss = score - exact if metric.lower_is_better else exact - score
    return float(np.nan_to_num(loss, nan=np.inf, posinf=np.inf, neginf=-np.inf))


@dataclass(frozen=True)
class Ordering:
    """Measures what rounding each layer of the first plan does.

    Attributes:
        replan: Has the plan.
        rewrite: Makes the model of a plan.
        metric: Of the user; None orders by noise at the outputs.
        samples: To measure on; some of them are taken.
        store: Keeps what was measured, layer by layer.
        progress: Hears "plan: sensitivity".
    """

    replan: Replan
    rewrite: Rewrite
    metric: Metric | None
    samples: Samples
    store: EffectsStore
    progress: Progress

    def layers(self) -> list[str]:
        """Return the layers in order; none where nothing says what an error does."""
        losses = self._losses()
        return sorted(losses, key=lambda unit: tuple(-loss for loss in losses[unit]))

    def _losses(self) -> dict[str, tuple[float, float]]:
        """Return loss of the metric, where it is affordable, and noise of each layer alone."""
        model, plan = self.replan.planner.model, self.replan.first[0]
        units = sum(plan.is_quantized(name) for name in plan.nodes)
        count = affordable(model, units, len(self.samples), WORK)
        count = min(count, max(SCORES // max(units, 1), 1)) if self.metric else count
        scored = self.metric is not None and count >= min(SCORED, len(self.samples))
        if not judged_values(model.graph) and not scored:
            return {}
        chosen = first(self.samples, count if scored else min(count, SAMPLES))
        board, run = self._board(chosen, scored=scored)
        effects = Effects(board, run, self._score(chosen) if scored else None)
        exact = effects.unrounded
        found = {}
        for done, unit in enumerate(effects.units, 1):
            effect = self._effect(effects, unit)
            found[unit] = (loss_of(self.metric, exact, effect.score), effect.noise)
            self.progress.step(STAGE, done, len(effects.units))
        return found

    def _effect(self, effects: Effects, unit: str) -> Effect:
        known = self.store.effect(unit)
        if known is None:
            known = effects.of([unit])
            self.store.keep(unit, known)
        return known

    def _board(self, samples: Samples, *, scored: bool) -> tuple[Board, Run]:
        planner, (plan, codes) = self.replan.planner, self.replan.first
        model, jobs = planner.model, planner.recipe.jobs or 1
        if plan.scheme not in CALIBRATED:

            def written(plan: Plan) -> ir.Model:
                return self.rewrite(plan, codes)

            later = RunTimeBoard(model, plan, written, samples, jobs)
            return later, later.run
        selection = selection_of(plan, planner.target.placement)
        about = plan, planner.types, codes, samples, jobs
        board = Switchboard(model, selection, *about, scored=scored)
        return board, partial(board.run, ranges_of(plan))

    def _score(self, samples: Samples) -> Callable[[Sequence[dict[str, Array]]], float]:
        metric = self.metric
        assert metric is not None  # noqa: S101 - asked for with a metric alone
        return lambda found: value_of(metric, found, samples)
