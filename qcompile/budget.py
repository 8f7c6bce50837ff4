"""The accuracy budget: the fewest layers in float with which the whole model loses no more.

Layers are tried in the order of what rounding each alone does; what counts is the drop of whole
models that are planned, written and run. More layers in float are taken to lose less, which
rounding does not promise: the set that is found meets the budget, and none of it can be left out,
but another one might be smaller.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from qcompile.compare.drop import DISAGREEMENT, Drop, measured_drop
from qcompile.compare.end_to_end import Runner, compare
from qcompile.compare.metric import Metric, load_metric, value_of
from qcompile.compare.perplexity import perplexity_metric
from qcompile.compare.results import Comparison
from qcompile.data import Split
from qcompile.devices import remainder_of
from qcompile.frontend import Loaded
from qcompile.graph.work import multiply_adds
from qcompile.numerics.grids import Codes
from qcompile.plan import CALIBRATED, FLOATS, Plan
from qcompile.planning.replan import Replan
from qcompile.planning.run_time_board import RunTimeBoard
from qcompile.planning.sensitivity import (
    Board,
    Effects,
    Run,
    affordable,
    held,
    ranges_of,
    selection_of,
)
from qcompile.planning.switchboard import Switchboard, judged_values
from qcompile.progress import Progress, Silent
from qcompile.report.schema_budget import BudgetLayer, BudgetSection, DropRow
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Feeds, Samples, Subset

WORK = 4e12
"""Multiply-adds that all plans together may cost to measure: some two minutes on two cores."""

PLANS = 40
"""Most plans that are measured."""

NO_SCORE = "no score of the float model: give --metric, or labels"

ORDER_WORK = 1e12
"""Multiply-adds that ordering the layers may cost."""

ORDERED, SCORED = 8, 16
"""Samples that layers are ordered on; by the metric only where that many are affordable."""

SCORES = 2000
"""Samples that the metric may score while layers are ordered."""

STAGE, TRIED = "plan: budget", "tried in float"

Rewrite = Callable[[Plan, dict[str, Codes]], ir.Model]
"""Writes a plan into the float graph; the model is simulated: ONNX Runtime's rewrites are off."""


@dataclass(frozen=True)
class Budget:
    """A plan that keeps to a budget, as far as there is one.

    Attributes:
        plan: To be built.
        codes: Of its solved weights.
        nodes: Node that is kept in float for it to the reason.
        section: For the report; None where no budget was set.
    """

    plan: Plan
    codes: dict[str, Codes]
    nodes: dict[str, str] = field(default_factory=dict)
    section: BudgetSection | None = None


def within(
    replan: Replan, rewrite: Rewrite, loaded: Loaded, data: Split, progress: Progress
) -> Budget:
    """Keep layers in float until the whole model drops by no more than ``--max-drop``.

    The drop is that of the gate (see ``compare.drop``), on calibration samples; what is built is
    judged by the gate on samples that were not seen. What "float" becomes afterwards, fp16 or
    bf16, is not in it.

    Args:
        replan: Has the first plan, and makes others; its planner's recipe has the limit.
        rewrite: Makes the model of a plan.
        loaded: The float model.
        data: Its calibration samples.
        progress: Hears "plan: budget", and what could not be done.
    """
    limit, samples = replan.planner.recipe.gates.max_drop, data.calibration
    if limit is None:
        return Budget(*replan.first)
    if samples is None or loaded.session is None:
        why = "no calibration samples" if samples is None else "a model that is too large to be run"
        return _unsteered(replan, limit, why, progress)
    search = _Search(replan, rewrite, loaded, samples, limit, progress)
    before = search.drop(())
    if before is None:
        return _unsteered(replan, limit, NO_SCORE, progress)
    if before.size <= limit:
        return Budget(*replan.first, section=search.section(before, None, {}, replan.first[0]))
    return _steered(replan, search, before)


def _steered(replan: Replan, search: "_Search", before: Drop) -> Budget:
    """Return a plan that meets the limit, which the first one does not, if there is one."""
    limit, order = search.limit, search.order()
    if not order:
        lacking = "no layer whose effect can be measured"
        return _unsteered(replan, limit, lacking, search.progress)
    least = search.drop(order)
    if least is None or least.size > limit:
        drop = f" ({least.score}: drop {least.size:.3g} on calibration samples)" if least else ""
        search.progress.notice(
            f"--max-drop {limit:g}: not even all {len(order)} layers in float meet it{drop}: the "
            "plan stays as it is, and the gate decides"
        )
        note = "not met with all layers in float: the plan stays as it is"
        section = search.section(before, None, {}, replan.first[0], note)
        return Budget(*replan.first, section=section)
    kept = search.fewest(order)
    after = search.drop(kept) or least
    reasons = dict.fromkeys(kept, _reason(limit, before, after, len(kept), search.remainder))
    plan, codes = replan.keeping(reasons)
    search.warn(after)
    return Budget(plan, codes, reasons, search.section(before, after, reasons, plan))


def _reason(limit: float, before: Drop, after: Drop, count: int, remainder: str) -> str:
    drop = "undefined" if before.value is None else f"{before.value:.3g}"
    layers = "this layer" if count == 1 else f"these {count} layers"
    return (
        f"kept in {remainder} for --max-drop {limit:g}: {before.score} drop {drop} -> "
        f"{after.size:.3g} with {layers}"
    )


def _unsteered(replan: Replan, limit: float, lacking: str, progress: Progress) -> Budget:
    """Return the first plan, and say why no budget steers it."""
    note = f"there are {lacking}" if lacking.endswith("samples") else f"there is {lacking}"
    progress.notice(f"--max-drop {limit:g} steers no layer, it is a gate only: {note}")
    return Budget(*replan.first, section=BudgetSection(limit=limit, note=note))


@dataclass(frozen=True)
class _Held:
    """Samples whose arrays are held, so that they are the same objects each time."""

    parent: Samples
    feeds: Sequence[Feeds]

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index: int) -> Feeds:
        return self.feeds[index]

    def name(self, index: int) -> str:
        return self.parent.name(index)

    def digest(self, index: int) -> str:
        return self.parent.digest(index)

    def label(self, index: int) -> Array | None:
        return self.parent.label(index)


class _Search:
    """Measures plans; each is asked for once."""

    def __init__(
        self,
        replan: Replan,
        rewrite: Rewrite,
        loaded: Loaded,
        samples: Samples,
        limit: float,
        progress: Progress,
    ) -> None:
        assert loaded.session is not None  # noqa: S101 - within() has looked
        self.replan, self.rewrite, self.limit, self.progress = replan, rewrite, limit, progress
        self.recipe, self.jobs = replan.planner.recipe, replan.planner.recipe.jobs or 1
        self.model, self.plan = replan.planner.model, replan.first[0]
        self.metric = self._metric(loaded, samples[0])
        most = min(len(samples), held(loaded.session.run(samples[0])))
        count = affordable(self.model, PLANS, most, WORK)
        self.samples = _Held(samples, [samples[i] for i in range(count)])
        self.floats = {id(feeds): loaded.session.run(feeds) for feeds in self.samples.feeds}
        exact = [self.floats[id(feeds)] for feeds in self.samples.feeds]
        self.exact = value_of(self.metric, exact, self.samples) if self.metric else 0.0
        self.known: dict[frozenset[str], float] = {}

    @property
    def remainder(self) -> str:
        """What float is in the engine."""
        planner = self.replan.planner
        return remainder_of(self.recipe, planner.target, planner.device)

    def _metric(self, loaded: Loaded, feeds: Feeds) -> Metric | None:
        if self.recipe.metric:
            return load_metric(self.recipe.metric)
        return perplexity_metric(loaded.inputs, loaded.outputs, feeds)

    def drop(self, kept: Collection[str]) -> Drop | None:
        """Return the drop of the whole model with some layers in float, with its interval."""
        drop = measured_drop(self._compared(self._runner(kept), self.samples))
        self.known[frozenset(kept)] = drop.size if drop else np.inf
        return drop

    def _meets(self, kept: Collection[str]) -> bool:
        """Say whether the whole model with some layers in float keeps to the limit."""
        key = frozenset(kept)
        if key not in self.known:
            self.progress.step(STAGE, len(self.known), PLANS)
            self.known[key] = self._size(self._runner(kept))
        return self.known[key] <= self.limit

    def _size(self, run: Runner) -> float:
        """Return a drop alone: intervals of a slow metric would take many times as long."""
        if self.metric is None:
            drop = measured_drop(self._compared(run, self.samples))
            return drop.size if drop else np.inf
        found = [run(feeds) for feeds in self.samples.feeds]
        return self._loss(self.exact, value_of(self.metric, found, self.samples))

    def _runner(self, kept: Collection[str]) -> Runner:
        planned = self.replan.keeping(dict.fromkeys(kept, TRIED)) if kept else self.replan.first
        return Session(self.rewrite(*planned), threads=self.jobs, optimize=False).run

    def _compared(self, run: Runner, samples: Samples) -> Comparison:
        def exact(feeds: Feeds) -> dict[str, Array]:
            return self.floats[id(feeds)]

        return compare(exact, run, samples, metric=self.metric, progress=Silent())

    # -- the fewest -------------------------------------------------------------------------

    def fewest(self, order: Sequence[str]) -> list[str]:
        """Return layers that meet the budget, none of which can be left out.

        Args:
            order: The layers, the most sensitive first; all together they meet it.
        """
        low, high = 0, 1
        while high < len(order) and not self._meets(order[:high]):
            low, high = high, 2 * high
        high = min(high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._meets(order[:middle]) else (middle, high)
        kept = self._pruned(list(order[:high]))
        self.progress.step(STAGE, len(self.known), len(self.known))
        return kept

    def _pruned(self, kept: list[str]) -> list[str]:
        """Leave out, the quietest first, what is not needed: large parts, then single layers."""
        size = len(kept) // 2
        while size:
            for end in range(len(kept), 0, -size):
                fewer = kept[: max(end - size, 0)] + kept[end:]
                if len(self.known) >= PLANS:
                    self.progress.notice(
                        f"--max-drop: {PLANS} plans were measured: not each of the {len(kept)} "
                        "layers in float was tried again without"
                    )
                    return kept
                kept = fewer if fewer and self._meets(fewer) else kept
            size //= 2
        return kept

    # -- the order --------------------------------------------------------------------------

    def order(self) -> list[str]:
        """Return the layers, the one that loses most by being rounded alone first."""
        losses = self._losses()
        return sorted(losses, key=lambda unit: tuple(-loss for loss in losses[unit]))

    def _losses(self) -> dict[str, tuple[float, float]]:
        """Return loss of the metric, where it is affordable, and noise of each layer alone."""
        judged = bool(judged_values(self.model.graph))
        units = sum(self.plan.is_quantized(name) for name in self.plan.nodes)
        count = affordable(self.model, units, len(self.samples), ORDER_WORK)
        count = min(count, max(SCORES // max(units, 1), 1)) if self.metric else count
        scored = self.metric is not None and count >= min(SCORED, len(self.samples))
        if not judged and not scored:
            return {}
        chosen = Subset(self.samples, range(count if scored else min(count, ORDERED)))
        board, run = self._board(chosen, scored=scored)
        effects = Effects(board, run, self._score(chosen) if scored else None)
        exact = effects.unrounded
        found = {}
        for done, (unit, effect) in enumerate(effects.alone(effects.units), 1):
            found[unit] = (self._loss(exact, effect.score), effect.noise)
            self.progress.step("plan: sensitivity", done, len(effects.units))
        return found

    def _board(self, samples: Samples, *, scored: bool) -> tuple[Board, Run]:
        planner, (plan, codes) = self.replan.planner, self.replan.first
        if plan.scheme not in CALIBRATED:

            def written(plan: Plan) -> ir.Model:
                return self.rewrite(plan, codes)

            later = RunTimeBoard(self.model, plan, written, samples, self.jobs)
            return later, later.run
        selection = selection_of(plan, planner.target.placement)
        about = plan, planner.types, codes, samples, self.jobs
        board = Switchboard(self.model, selection, *about, scored=scored)
        return board, partial(board.run, ranges_of(plan))

    def _score(self, samples: Samples) -> Callable[[Sequence[dict[str, Array]]], float]:
        metric = self.metric
        assert metric is not None  # noqa: S101 - asked for with a metric alone
        return lambda found: value_of(metric, found, samples)

    def _loss(self, exact: float | None, score: float | None) -> float:
        if exact is None or score is None or self.metric is None:
            return 0.0
        loss = score - exact if self.metric.lower_is_better else exact - score
        return float(np.nan_to_num(loss, nan=np.inf, posinf=np.inf, neginf=-np.inf))

    # -- the report -------------------------------------------------------------------------

    def warn(self, after: Drop) -> None:
        """Say how sure the drop is, where the samples leave doubt."""
        high = after.interval.high if after.interval else np.inf
        if high > self.limit:
            sure = f"at most {high:.3g}" if np.isfinite(high) else "not bounded"
            self.progress.notice(
                f"--max-drop {self.limit:g}: {after.score}: drop {after.size:.3g} on "
                f"{after.samples} calibration samples, with 95 % confidence {sure}: more samples "
                "say more"
            )

    def section(
        self,
        before: Drop,
        after: Drop | None,
        nodes: Mapping[str, str],
        plan: Plan,
        note: str = "",
    ) -> BudgetSection:
        """Return the part of the report; ``plan`` is the one that is built."""
        work = {node.name or "": multiply_adds(node) for node in self.model.graph}
        everything = sum(work.values()) or 1.0
        fallen = sum(
            work.get(name, 0.0)
            for name, entry in plan.nodes.items()
            if entry.precision in FLOATS and self.plan.is_quantized(name)
        )
        bound = f"there are no labels: {DISAGREEMENT} bound what an accuracy can drop by"
        notes = [note, bound if before.score == DISAGREEMENT else ""]
        return BudgetSection(
            limit=self.limit,
            score=before.score,
            note="; ".join(text for text in notes if text),
            samples=before.samples,
            before=_row(before),
            after=_row(after) if after else None,
            layers=tuple(
                BudgetLayer(
                    name=name, op=plan.nodes[name].op, share=work.get(name, 0.0) / everything
                )
                for name in nodes
            ),
            share=fallen / everything if nodes else None,
            plans=len(self.known),
        )


def _row(drop: Drop) -> DropRow:
    return DropRow(value=drop.value, interval=drop.interval)
