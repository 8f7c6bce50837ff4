"""The accuracy budget: the fewest layers in float with which the whole model loses no more.

Layers are tried in the order of what rounding each alone does; what counts is the drop of whole
models that are planned, written and run. More layers in float are taken to lose less, which
rounding does not promise: the set that is found meets the budget, and none of it can be left out,
but another one might be smaller.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qcompile.calibrate.cache import default_cache
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
from qcompile.ordering import Ordering, Rewrite, loss_of
from qcompile.plan import FLOATS, Plan
from qcompile.planning.effects_store import EffectsStore, effects_key
from qcompile.planning.replan import Replan
from qcompile.planning.sensitivity import Effect, affordable, held
from qcompile.progress import Progress, Silent
from qcompile.recipe import LEARNED
from qcompile.report.schema_budget import BudgetLayer, BudgetSection, DropRow
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Feeds, Samples, samples_digest

WORK = 4e12
"""Multiply-adds that all plans together may cost to measure: some two minutes on two cores."""

PLANS = 40
"""Most plans that are measured."""

LONG = 10.0
"""Seconds that all of them may take before the user is told of it first."""

NEAREST = "measured with the nearest codes: those of the weights are learned afterwards"

NO_SCORE = "no score of the float model: give --metric, or labels"

LAX = 0.2
"""Share of an accuracy from which a limit is likely to be meant in percent: the user is told."""

STAGE, TRIED = "plan: budget", "tried in float"


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
    if limit >= LAX and search.metric is None:
        progress.notice(
            f"--max-drop {limit:g} is a share: {limit:.0%} of the decisions may be lost; "
            f"{limit:g} % is --max-drop {limit / 100:g}"
        )
    if before.size <= limit:
        return Budget(*replan.first, section=search.section(before, None, {}, replan.first[0]))
    return _steered(replan, search, before)


def _steered(replan: Replan, search: "_Search", before: Drop) -> Budget:
    """Return a plan that meets the limit, which the first one does not, if there is one."""
    limit = search.limit
    search.tell_time()
    order = search.order()
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
        self.store = EffectsStore(self._file(loaded, samples), progress)
        self.seconds = 0.0

    @property
    def remainder(self) -> str:
        """What float is in the engine."""
        planner = self.replan.planner
        return remainder_of(self.recipe, planner.target, planner.device)

    def _metric(self, loaded: Loaded, feeds: Feeds) -> Metric | None:
        if self.recipe.metric:
            return load_metric(self.recipe.metric)
        return perplexity_metric(loaded.inputs, loaded.outputs, feeds)

    def _file(self, loaded: Loaded, samples: Samples) -> Path:
        """Return where measurements are kept: one that was stopped goes on from there."""
        about = {
            "model": loaded.digest,
            "plan": self.plan.text(),
            "recipe": self.recipe.model_dump(mode="json", exclude={"gates", "metric"}),
            "samples": samples_digest(samples),
            "metric": self.metric.identity() if self.metric else None,
        }
        return default_cache() / f"budget-{effects_key(about)}.json"

    def order(self) -> list[str]:
        """Return the layers, the one that loses most by being rounded alone first."""
        about = self.replan, self.rewrite, self.metric, self.samples, self.store, self.progress
        return Ordering(*about).layers()

    def tell_time(self) -> None:
        """Say how long the search takes at most, by the plan that was measured."""
        if self.seconds * PLANS >= LONG:
            self.progress.announce(
                f"--max-drop {self.limit:g}: at most {PLANS} plans are tried, about "
                f"{self.seconds:.1f} s each"
            )

    def drop(self, kept: Collection[str]) -> Drop | None:
        """Return the drop of the whole model with some layers in float, with its interval."""
        started = time.perf_counter()
        drop = measured_drop(self._compared(self._runner(kept), self.samples))
        self.known[frozenset(kept)] = drop.size if drop else np.inf
        self.seconds = time.perf_counter() - started
        return drop

    def _meets(self, kept: Collection[str]) -> bool:
        """Say whether the whole model with some layers in float keeps to the limit."""
        key = frozenset(kept)
        if key not in self.known:
            self.progress.step(STAGE, len(self.known), PLANS)
            self.known[key] = self._kept_size(sorted(kept))
        return self.known[key] <= self.limit

    def _kept_size(self, kept: Sequence[str]) -> float:
        """Return a drop from the cache, or measure and keep it."""
        label = "\n".join(["in float", *kept])
        known = self.store.effect(label)
        if known is None:
            known = Effect(self._size(self._runner(kept)))
            self.store.keep(label, known)
        return known.noise

    def _size(self, run: Runner) -> float:
        """Return a drop alone: intervals of a slow metric would take many times as long."""
        if self.metric is None:
            drop = measured_drop(self._compared(run, self.samples))
            return drop.size if drop else np.inf
        found = [run(feeds) for feeds in self.samples.feeds]
        return loss_of(self.metric, self.exact, value_of(self.metric, found, self.samples))

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
        notes = [
            note,
            bound if before.score == DISAGREEMENT else "",
            NEAREST if self.recipe.accuracy.rounding in LEARNED else "",
        ]
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
