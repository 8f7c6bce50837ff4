"""The float graph with its remedies: those that were named, or those that measurably help.

A remedy is judged by what it is for: the noise at the outputs with all on codes that may be. Where
that noise is low already, none is tried.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from qcompile.calibrate.collect import collect
from qcompile.data import Split
from qcompile.devices import WITHOUT_RANGES
from qcompile.errors import RecipeError
from qcompile.frontend import Loaded, check_equivalence
from qcompile.graph.protocol import GraphPass
from qcompile.graph.runner import PassRun, run_passes
from qcompile.graph.work import multiply_adds
from qcompile.passes import dynamic
from qcompile.passes.absorb_bias import AbsorbBias
from qcompile.passes.rescale_channels import RescaleChannels
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.plan import CALIBRATED, Plan
from qcompile.planning.absorb import absorbed
from qcompile.planning.equalize import equalized
from qcompile.planning.outliers import check_run_time, float_nodes, outlier_channels
from qcompile.planning.plan import (
    EVERYTHING,
    MOST_WORK,
    PROBED,
    Planner,
    activations_of,
    wishes_of,
)
from qcompile.planning.protect import QUIET
from qcompile.planning.run_time_board import RunTimeBoard
from qcompile.planning.select import Selection
from qcompile.planning.smooth import Activations, smoothed
from qcompile.planning.wishes import Wishes
from qcompile.progress import StageLog
from qcompile.recipe import Recipe
from qcompile.remedies import Remedies, Remedy
from qcompile.samples import Samples, first
from qcompile.statistics import Statistics
from qcompile.targets.target import Target, Types

ORDER: tuple[Remedy, ...] = ("equalize", "absorb-bias", "smoothquant", "llm-int8")
"""Remedies of the float graph, in the order in which they are applied and tried."""

HELPS: dict[Remedy, float] = {
    "equalize": 0.9,
    "absorb-bias": 0.9,
    "smoothquant": 0.9,
    "llm-int8": 0.6,
}
"""What share of the noise may be left for ``auto`` to keep a remedy; less where it costs time."""

COSTS_TIME: Remedy = "llm-int8"
"""Not tried by ``auto`` where the others have made the noise low already."""


NOTHING: dict[Remedy, str] = {
    "equalize": "no pair of layers on codes has channels to equalize",
    "absorb-bias": "no bias behind a Relu lies high enough, or can be moved",
    "smoothquant": "no layer on codes loses less by it",
    "llm-int8": "no layer on codes has outlier columns",
}
"""Why a remedy finds no place."""


@dataclass(frozen=True)
class Trial:
    """A remedy that was tried.

    Attributes:
        remedy: Its name; nothing for the graph as it is.
        noise: At the outputs, over the signal, with all on codes; infinite where it was NaN.
        kept: It is part of the graph that is built.
    """

    remedy: Remedy | None
    noise: float
    kept: bool


@dataclass(frozen=True)
class Remedied:
    """The graph that is quantized.

    Attributes:
        model: The lowered graph with its remedies.
        remedies: What was done to it.
        floats: Node to the reason why it stays in float.
        runs: What the passes did.
        trials: What ``auto`` measured.
        moved: How far the outputs moved, relative L2; None where nothing was done or compared.
        left: Places that equalize and absorb-bias looked at and left alone, by reason.
        multiplied: Value that smoothquant divides by a Mul to the reason why no constant takes it.
    """

    model: ir.Model
    remedies: Remedies = field(default_factory=Remedies)
    floats: dict[str, str] = field(default_factory=dict)
    runs: list[PassRun] = field(default_factory=list)
    trials: tuple[Trial, ...] = ()
    moved: float | None = None
    left: Counter[str] = field(default_factory=Counter)
    multiplied: dict[str, str] = field(default_factory=dict)


def untouched(loaded: Loaded, recipe: Recipe) -> Remedied:
    """Return a graph that takes no remedy: it has no 8-bit activations, or given grids.

    Raises:
        RecipeError: The recipe names one.
    """
    named = [name for name in get_args(Remedy) if recipe.accuracy.asks(name)]
    if loaded.given and named:
        raise RecipeError(
            f"--algorithm {'+'.join(named)}: {loaded.path} is quantized already and its grids are "
            "kept: take the float model, or `qcompile dequantize` it first"
        )
    return Remedied(loaded.model)


def applied(loaded: Loaded, remedies: Remedies, dumps: Path | None = None) -> Remedied:
    """Return a copy of the lowered graph with its remedies.

    Args:
        loaded: The float model; it is not changed.
        remedies: What is done.
        dumps: Folder for the graph's text after each pass.

    Raises:
        PlanError: A remedy names what the graph lacks, or does not fit it.
    """
    model = loaded.model.clone()
    passes: list[GraphPass] = []
    rescaling = RescaleChannels(remedies=remedies)
    if remedies.rescaled:
        passes.append(rescaling)
    if remedies.shifted:
        passes.append(AbsorbBias(remedies=remedies))
    if remedies.outliers:
        passes.append(SplitOutliers(remedies=remedies))
    runs = run_passes(model, passes, holds=loaded.holds, dump_dir=dumps)
    floats, multiplied = float_nodes(model, remedies), rescaling.multiplied
    return Remedied(model, remedies, floats, runs, multiplied=multiplied)


@dataclass(frozen=True)
class Remedying:
    """Finds the remedies of one build.

    Attributes:
        loaded: The float model.
        data: Its calibration samples.
        recipe: What was asked for.
        target: What the engine runs on.
        device: The kind of it.
        types: Of the codes.
        log: Hears of notices.
        dumps: Folder for the graph's text after each pass.
    """

    loaded: Loaded
    data: Split
    recipe: Recipe
    target: Target
    device: str
    types: Types
    log: StageLog
    dumps: Path | None = None
    left: Counter[str] = field(default_factory=Counter, init=False)

    def follow(self, remedies: Remedies) -> Remedied:
        """Apply the remedies of a plan that the user gave."""
        return self._checked(applied(self.loaded, remedies))

    def find(self) -> Remedied:
        """Apply the remedies that the recipe names, or those that measurably help.

        Raises:
            RecipeError: A named remedy needs samples, and there are none.
        """
        if self.recipe.accuracy.algorithms == "auto":
            found = self._auto()
        else:
            found = self._named([name for name in ORDER if self.recipe.accuracy.asks(name)])
        return self._checked(found)

    def _named(self, names: Sequence[Remedy]) -> Remedied:
        made = Remedied(self.loaded.model)
        for name in names:
            more = self._more(name, made)
            if more == made.remedies:
                self.log.notice(f"--algorithm {name} changes nothing: {NOTHING[name]}")
                continue
            if name == "llm-int8" and not more.outliers:
                self.log.notice(f"--algorithm {name} changes scales alone: {NOTHING[name]}")
            made = applied(self.loaded, more)
        return made

    def _auto(self) -> Remedied:
        """Try one after another where all on codes is loud; keep what lowers the noise."""
        made = Remedied(self.loaded.model)
        if self._samples is None or not self.recipe.keep_accuracy:
            return made
        best = self._noise(made)
        if best is None or best <= QUIET:
            return made
        trials = [Trial(None, best, kept=not best)]
        ranges = self.recipe.scheme in CALIBRATED
        for name in (name for name in ORDER if ranges or name in WITHOUT_RANGES):
            if name == COSTS_TIME and best <= QUIET:
                continue
            more = self._more(name, made)
            if more == made.remedies:
                continue
            tried = applied(self.loaded, more)
            noise = self._noise(tried)
            kept = noise is not None and noise < HELPS[name] * best
            trials.append(Trial(name, math.inf if noise is None else noise, kept))
            if kept and noise is not None:
                made, best = tried, noise
        return replace(made, trials=tuple(trials))

    @property
    def _samples(self) -> Samples | None:
        """A few calibration samples; None without any, or where there are no ranges to judge."""
        samples = self.data.calibration
        return None if samples is None else first(samples, PROBED)

    def _planner(self, model: ir.Model, statistics: Statistics, samples: Samples) -> Planner:
        about = self.recipe, self.target, self.device, self.types
        return Planner(model, statistics, samples, *about, self.log)

    def _noise(self, made: Remedied) -> float | None:
        """Return the noise at the outputs with all on codes."""
        samples = self._samples
        if samples is None:
            return None
        if self.recipe.scheme not in CALIBRATED:
            return self._noise_at_run_time(made, samples)
        selection = self._selection(made)
        statistics = collect(
            made.model,
            samples,
            activations_of(selection),
            jobs=self.recipe.jobs or 1,
            histograms=self.recipe.calibration.method != "minmax",
            progress=self.log,
        )
        return self._planner(made.model, statistics, samples).everything(self._wishes(made))

    def _noise_at_run_time(self, made: Remedied, samples: Samples) -> float | None:
        """Return the same where activations are rounded while running: a model is written."""
        plan, _ = self._planner(made.model, Statistics({}, 0), samples).make(self._wishes(made))
        plan = plan.model_copy(update={"remedies": made.remedies})
        work = sum(multiply_adds(node) for node in made.model.graph)
        if not any(map(plan.is_quantized, plan.nodes)) or work * EVERYTHING > MOST_WORK:
            return None

        def written(plan: Plan) -> ir.Model:
            model = made.model.clone()
            run_passes(model, dynamic(plan), holds=self.loaded.holds)
            return model

        board = RunTimeBoard(made.model, plan, written, samples, self.recipe.jobs or 1)
        return board.noise_of(board.run(board.units)) if board.floats else None

    def _wishes(self, made: Remedied) -> Wishes:
        return replace(wishes_of(self.recipe), nodes=made.floats)

    def _selection(self, made: Remedied) -> Selection:
        nothing = Statistics({}, 0)
        planner = Planner(
            made.model,
            nothing,
            None,
            self.recipe,
            self.target,
            self.device,
            self.types,
            self.log,
        )
        return planner.selected(self._wishes(made))

    def _more(self, name: Remedy, made: Remedied) -> Remedies:
        """Return the remedies with those of one more name; the same ones if it finds no place."""
        model, remedies, options = made.model, made.remedies, self.recipe.accuracy
        selection, scheme = self._selection(made), self.recipe.scheme
        nodes = [name for name, entry in selection.nodes.items() if entry.precision == scheme]
        if name == "equalize":
            scaled, left = equalized(model, nodes)
            self._leave(name, left)
            return remedies.model_copy(update={"rescaled": {**scaled, **remedies.rescaled}})
        samples, jobs = self.data.calibration, self.recipe.jobs or 1
        if samples is None:
            raise RecipeError(f"--algorithm {name} looks at activations: give --calib")
        seen = samples, jobs, self.log
        if name == "absorb-bias":
            shifted, left = absorbed(model, nodes, *seen)
            self._leave(name, left)
            return remedies.model_copy(update={"shifted": shifted})
        if name == "smoothquant":
            smooth = smoothed(
                model,
                nodes,
                samples,
                self.types,
                jobs,
                self.log,
                strength=options.strength,
                activations=self._activations,
            )
            return remedies.model_copy(update={"rescaled": {**smooth, **remedies.rescaled}})
        if options.run_time_outliers:
            check_run_time(self.target.name)
        outliers = outlier_channels(
            model,
            nodes,
            *seen,
            threshold=options.threshold,
            share=options.outlier_share,
            run_time=options.run_time_outliers,
        )
        by_row = scheme not in CALIBRATED and (bool(outliers) or options.asks(name))
        return remedies.model_copy(update={"outliers": outliers, "by_row": by_row})

    @property
    def _activations(self) -> Activations:
        """What shares a scale."""
        if self.recipe.scheme in CALIBRATED:
            return "static"
        return "row" if self.recipe.accuracy.asks("llm-int8") else "run"

    def _leave(self, name: Remedy, left: Counter[str]) -> None:
        self.left.update({f"{name}: {reason}": count for reason, count in left.items()})

    def _checked(self, made: Remedied) -> Remedied:
        """Compare the graph with the source, but for shifts, which move outputs a little."""
        made = replace(made, left=self.left)
        if self.dumps is not None and made.remedies:
            applied(self.loaded, made.remedies, self.dumps / "remedies")
        exact = made.remedies.model_copy(update={"shifted": {}})
        samples = self.data.calibration
        if not exact or samples is None:
            return made
        model = applied(self.loaded, exact).model if made.remedies.shifted else made.model
        jobs = self.recipe.jobs or 1
        moved = check_equivalence(self.loaded.with_graph(model), samples, range(1), jobs, self.log)
        return replace(made, moved=moved)
