"""Rank the layers of a model by what rounding each alone does to its outputs, or to a metric."""

import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from qcompile.calibrate.cache import default_cache
from qcompile.compare.metric import Metric, load_metric, value_of
from qcompile.compare.perplexity import perplexity_metric
from qcompile.data import Source, split_data
from qcompile.devices import device_of, remainder_of, types_of
from qcompile.emit.ort_file import write_engine
from qcompile.errors import ModelError, RecipeError
from qcompile.frontend import Loaded, jobs_of, load
from qcompile.graph.fused import owners
from qcompile.graph.runner import run_passes
from qcompile.graph.work import multiply_adds
from qcompile.numerics.grids import Codes
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.plan import CALIBRATED, FLOATS, Plan
from qcompile.planning.effects_store import EffectsStore, KeptTime, effects_key
from qcompile.planning.run_time_board import RunTimeBoard
from qcompile.planning.sensitivity import (
    Board,
    Effect,
    Effects,
    Run,
    affordable,
    held,
    ranges_of,
    selection_of,
)
from qcompile.planning.switchboard import Switchboard, judged_values
from qcompile.progress import Progress, StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Accuracy, Gates, Recipe
from qcompile.remedied import untouched
from qcompile.report.sensitivity import EffectRow, SensitivityReport
from qcompile.runtime.host import host_cpu
from qcompile.runtime.profiled import kernel_times
from qcompile.samples import Array, Feeds, Samples, first, samples_digest
from qcompile.targets import target_named
from qcompile.targets.target import Target, Types
from qcompile.w8a8 import W8A8

WORK = 2e12
"""Multiply-adds that a ranking may cost by default: about a minute on two cores."""

SAMPLES = 16
"""Most samples that noise is measured on; a metric takes all that ``WORK`` allows."""

STAGE = "sensitivity"
TOGETHER = "\n"
"""What the store calls all layers together: no node has this name."""

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def sensitivity(
    model: Path | str,
    calib: Source,
    *,
    evaluation: Source | None = None,
    recipe: Recipe | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
) -> SensitivityReport:
    """Rank the layers of a model.

    Args:
        model: An ONNX file.
        calib: Samples that grids are found on.
        evaluation: Samples that layers are measured on; without them a share of ``calib``.
        recipe: Its scheme (int8, int8-dynamic or fp8), target, calibration, exclusions and metric
            count. Weights are rounded to the nearest code, and nothing is mended.
        samples: Measure on so many; None takes what ``WORK`` allows.
        progress: Hears of steps and notices, and how long it will take.

    Raises:
        QcompileError: Bad input.
    """
    recipe, heard = recipe or Recipe(), StageLog(progress)
    if recipe.scheme not in (*CALIBRATED, "int8-dynamic"):
        raise RecipeError(
            f"scheme {recipe.scheme}: layers are ranked by what activations of 8 bits cost: "
            "--int8, --dynamic or --fp8"
        )
    target = target_named(recipe.target)
    device = device_of(recipe, target, heard)
    types = types_of(recipe, target, device, remainder_of(recipe, target, device))
    assert types is not None  # noqa: S101 - calibrated schemes have codes
    if recipe.accuracy != Accuracy():
        heard.notice("[accuracy] is left out: layers are ranked as they are before any remedy")
    target, jobs = target.on(device), jobs_of(recipe, heard)
    metric = load_metric(recipe.metric) if recipe.metric else None
    plain = {"keep_accuracy": False, "accuracy": Accuracy(algorithms=("rtn",)), "gates": Gates()}
    recipe = recipe.model_copy(update={**plain, "jobs": jobs})
    path = Path(model)
    loaded = load(path, target.name, recipe.scheme, threads=jobs, dump_dir=None, progress=heard)
    data = split_data(calib, evaluation, loaded, recipe, heard)
    about = data, recipe, target, device, types
    made = W8A8(loaded, untouched(loaded, recipe), *about, None, None, heard).quantize(None)
    measured = data.evaluation or data.calibration
    assert measured is not None  # noqa: S101 - split_data has refused that
    metric = metric or perplexity_metric(loaded.inputs, loaded.outputs, measured[0])
    ranking = _Ranking(loaded, made, recipe, target, types, metric, heard)
    chosen = first(measured, ranking.count(measured, samples))
    source = str(calib if evaluation is None or data.evaluation is None else evaluation)
    return ranking.run(chosen, source)


@dataclass(frozen=True)
class _Ranking:
    loaded: Loaded
    made: Quantized
    recipe: Recipe
    target: Target
    types: Types
    metric: Metric | None
    log: StageLog

    @property
    def plan(self) -> Plan:
        return self.made.plan

    def count(self, samples: Samples, asked: int | None) -> int:
        """Return on how many samples each layer is measured."""
        most = len(samples) if self.metric else min(len(samples), SAMPLES)
        if asked is not None:
            if asked > len(samples):
                self.log.notice(f"--samples {asked}: there are only {len(samples)} to measure on")
            return min(asked, len(samples))
        assert self.loaded.session is not None  # noqa: S101 - of weight-only schemes alone
        most = min(most, held(self.loaded.session.run(samples[0])))
        nodes = sum(self.plan.is_quantized(name) for name in self.plan.nodes)
        return affordable(self.loaded.model, nodes + 1, most, WORK)

    def run(self, samples: Samples, source: str) -> SensitivityReport:
        """Measure what is not in the cache, and put the answer together."""
        self._check()
        board, run = self._board(samples)
        metric = self.metric

        def score(found: Sequence[dict[str, Array]]) -> float:
            assert metric is not None  # noqa: S101 - asked for with a metric alone
            return value_of(metric, found, samples)

        effects = Effects(board, run, score if metric else None)
        path = default_cache() / f"{STAGE}-{self._key(samples)}.json"
        store = EffectsStore(path, self.log)
        unrounded = effects.unrounded
        together, alone = self._measured(effects, store, len(samples))
        times = self._times(store, samples[0])
        return self._report(samples, source, unrounded, together, alone, times)

    def _board(self, samples: Samples) -> tuple[Board, Run]:
        model, plan, jobs = self.loaded.model, self.plan, self.recipe.jobs or 1
        if plan.scheme not in CALIBRATED:
            later = RunTimeBoard(model, plan, self._written, samples, jobs)
            return later, later.run
        selection = selection_of(plan, self.target.placement)
        about = self.types, dict[str, Codes](), samples, jobs
        board = Switchboard(model, selection, plan, *about, scored=self.metric is not None)
        return board, partial(board.run, ranges_of(plan))

    def _written(self, plan: Plan) -> ir.Model:
        """Return the model of a plan whose activations are rounded at run time."""
        model = self.loaded.model.clone()
        run_passes(model, [DynamicMatmul(plan=plan)], holds=self.loaded.holds)
        return model

    def _check(self) -> None:
        """Refuse what cannot be ranked.

        Raises:
            ModelError: Nothing computes on codes.
            RecipeError: Nothing says what an error does.
        """
        path, scheme = self.loaded.path, self.recipe.scheme
        if not any(self.plan.is_quantized(name) for name in self.plan.nodes):
            raise ModelError(
                f"{path}: no layer to rank: nothing of it computes in {scheme} on "
                f"{self.target.name}; qcompile inspect says why"
            )
        if self.metric is None and not judged_values(self.loaded.model.graph):
            raise RecipeError(
                f"{path}: no output is a float or decided from one, so that errors have no size: "
                "give --metric"
            )

    def _key(self, samples: Samples) -> str:
        """Return the hash of all that an effect depends on."""
        about: dict[str, object] = {
            "plan": self.plan.text(),
            "samples": samples_digest(samples),
            "metric": self.metric.identity() if self.metric else None,
        }
        return effects_key(about)

    def _measured(
        self, effects: Effects, store: EffectsStore, samples: int
    ) -> tuple[Effect, dict[str, Effect]]:
        """Return the effect of all layers together, and of each alone."""
        units, log = effects.units, self.log
        known = {unit: effect for unit in units if (effect := store.effect(unit)) is not None}
        left = [unit for unit in units if unit not in known]
        together = store.effect(TOGETHER)
        started = time.perf_counter()
        if together is None or left:
            together = effects.of(units)
            store.keep(TOGETHER, together)
        if not left:
            log.listener.announce(f"{STAGE}: all {len(units)} layers from the cache")
        if left:
            seconds = (time.perf_counter() - started) * len(left)
            after = f", after {len(known)} that are in the cache" if known else ""
            log.listener.announce(
                f"{STAGE}: {len(left)} layers on {samples} samples{after}: about "
                f"{max(seconds, 1):.0f} s (--samples N changes that)"
            )
            log.step(STAGE, len(known), len(units))
        for unit, effect in effects.alone(left):
            known[unit] = effect
            store.keep(unit, effect)
            log.step(STAGE, len(known), len(units))
        return together, {unit: known[unit] for unit in units}

    def _times(self, store: EffectsStore, feeds: Feeds) -> dict[str, KeptTime]:
        """Return the time of each node's kernels; empty where the engine does not run here."""
        if self._untimed():
            return {}
        if store.times is None:
            graph = self.loaded.model.graph
            with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
                plain = _by_node(graph, self.loaded.model, Path(folder) / "float.onnx", feeds)
                rounded = _by_node(graph, self.made.model, Path(folder) / "rounded.onnx", feeds)
            names = sorted(plain.keys() | rounded.keys())
            store.keep_times(
                {n: KeptTime(floating=plain.get(n), rounded=rounded.get(n)) for n in names}
            )
        return store.times or {}

    def _untimed(self) -> str:
        """Return why kernels cannot be timed here, or nothing."""
        if self.target.name == "ort-cpu" and self.plan.device == host_cpu():
            return ""
        return (
            f"no times: the engine is for {self.target.name} ({self.plan.device}), not for this "
            "CPU; work is each layer's share of the multiply-adds"
        )

    def _report(
        self,
        samples: Samples,
        source: str,
        unrounded: float | None,
        together: Effect,
        alone: Mapping[str, Effect],
        times: Mapping[str, KeptTime],
    ) -> SensitivityReport:
        work = {node.name or "": multiply_adds(node) for node in self.loaded.model.graph}
        everything, noise = sum(work.values()), sum(effect.noise for effect in alone.values())
        lower = self.metric is not None and self.metric.lower_is_better
        losses = {unit: _loss(unrounded, effect.score, lower) for unit, effect in alone.items()}
        order = sorted(alone, key=lambda unit: (_worst(losses[unit]), -alone[unit].noise))
        rows = [
            _row(alone[unit], losses[unit]).model_copy(
                update={
                    "name": unit,
                    "op": self.plan.nodes[unit].op,
                    "share": alone[unit].noise / noise if 0 < noise < math.inf else None,
                    "float_ms": times[unit].floating if unit in times else None,
                    "rounded_ms": times[unit].rounded if unit in times else None,
                    "work": work.get(unit, 0.0) / everything if everything else None,
                }
            )
            for unit in order
        ]
        known = [loss for loss in losses.values() if loss is not None]
        of_all = _row(together, _loss(unrounded, together.score, lower))
        sums = {key: _sum(rows, key) for key in ("float_ms", "rounded_ms", "work")}
        conversions = times.get("")
        quantized = sum(self.plan.is_quantized(name) for name in self.plan.nodes)
        return SensitivityReport(
            model=str(self.loaded.path),
            data=source,
            target=self.target.name,
            device=self.plan.device,
            scheme=self.recipe.scheme,
            samples=len(samples),
            metric=self.metric.name if self.metric else "",
            float_score=unrounded,
            layers=tuple(rows),
            together=of_all.model_copy(update=sums),
            summed=_row(Effect(noise), math.fsum(known) if known else None),
            moved=quantized - len(alone),
            in_float=Counter(e.reason for e in self.plan.nodes.values() if e.precision in FLOATS),
            timing=self._untimed() or "times: ONNX Runtime's profiler, 1 thread, fastest runs",
            conversion_ms=conversions.rounded if conversions else None,
            notices=tuple(self.log.notices),
        )


def _by_node(graph: ir.Graph, model: ir.Model, path: Path, feeds: Feeds) -> dict[str, float]:
    """Return the milliseconds of each node's kernels; of conversions together under no name.

    Args:
        graph: The lowered graph, whose nodes are meant.
        model: To be timed.
        path: Where to write it.
        feeds: A run's inputs.
    """
    write_engine(model, path)
    found = kernel_times(path, feeds)
    times: dict[str, float] = defaultdict(float)
    for kernel, owner in zip(found, owners(graph, [(k.name, k.op) for k in found]), strict=True):
        if owner or kernel.op in CONVERSIONS:
            times[owner] += kernel.ms
    return times


def _row(effect: Effect, loss: float | None) -> EffectRow:
    return EffectRow(
        sqnr_db=effect.sqnr_db if effect.noise > 0 else None,
        broken=math.isinf(effect.noise),
        score=effect.score,
        loss=loss,
    )


def _loss(unrounded: float | None, score: float | None, lower_is_better: bool) -> float | None:  # noqa: FBT001
    """Return by how much a score is worse; infinite where rounding makes it undefined."""
    if unrounded is None or score is None or not math.isfinite(unrounded):
        return None
    if math.isnan(score):
        return math.inf
    return score - unrounded if lower_is_better else unrounded - score


def _worst(loss: float | None) -> float:
    return 0.0 if loss is None else -loss


def _sum(rows: Sequence[EffectRow], key: str) -> float | None:
    found = [value for row in rows if (value := getattr(row, key)) is not None]
    return math.fsum(found) if found else None
