"""The schemes with 8-bit activations: statistics, plan, and the passes that write the plan in."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from qcompile import sections
from qcompile.budget import Budget, within
from qcompile.calibrate.cache import StatisticsStore, default_cache
from qcompile.calibrate.collect import collect
from qcompile.compare.layers import compare_weights
from qcompile.data import Split
from qcompile.frontend import Loaded, scratch
from qcompile.graph.protocol import GraphPass
from qcompile.graph.runner import PassRun, run_passes
from qcompile.graph.walk import consumers
from qcompile.numerics.grids import Codes, dequantize, quantize
from qcompile.numerics.regrid import Given
from qcompile.passes import dynamic
from qcompile.passes.average_codes import AverageCodes
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.fold_stride import FoldStride
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.pad_channels import PadChannels
from qcompile.plan import CALIBRATED, Plan, TensorPlan
from qcompile.planning.adaround import adarounded
from qcompile.planning.bias import BiasCorrection, with_corrected_biases
from qcompile.planning.codes import Solve, codes_of, learned_as, marked, nodes_of, weights_of
from qcompile.planning.edited import with_bias_scales
from qcompile.planning.followed import check_plan
from qcompile.planning.given import NO_GRID, Kept, select_given, spread, uncalibrated, with_given
from qcompile.planning.learning import Learning
from qcompile.planning.plan import Planner, wishes_of
from qcompile.planning.reconstruct import reconstructed
from qcompile.planning.replan import Replan
from qcompile.planning.rounding import Rounded, solve_codes
from qcompile.planning.select import Selection
from qcompile.planning.wishes import Wishes
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import LEARNED, Recipe
from qcompile.remedied import Remedied
from qcompile.samples import Array, first
from qcompile.statistics import Statistics
from qcompile.targets.target import Placement, Target, Types

LEARNED_ON = 256
"""Calibration samples that codes of weights are learned on, at most."""

LITTLE = 0.25
"""Share of the arithmetic in int8 below which the user is told so."""


@dataclass(frozen=True)
class W8A8:
    """One build in int8 or fp8.

    Attributes:
        loaded: The float model, with its remedies.
        remedied: What they are.
        data: Calibration samples; scheme int8-dynamic needs none.
        recipe: What was asked for.
        target: What the engine runs on.
        device: The kind of it.
        types: Of the codes.
        edited: A plan to follow instead of making one.
        folder: Where codes that take long to learn are kept; a build that was stopped goes on.
        log: Hears of stages and notices.
    """

    loaded: Loaded
    remedied: Remedied
    data: Split
    recipe: Recipe
    target: Target
    device: str
    types: Types
    edited: Plan | None
    folder: Path | None
    log: StageLog

    def quantize(self, dump_passes: Path | None) -> Quantized:
        """Calibrate, plan, rewrite.

        Args:
            dump_passes: Folder for the graph's text after each pass.

        Raises:
            QcompileError: The samples or the edited plan do not fit the model.
        """
        log = self.log
        with log.stage("calibrate"):
            statistics = self._statistics()
        with log.stage("plan"):
            budget, kept = self._plan(statistics)
            plan, codes = self._corrected(budget.plan, budget.codes), budget.codes
        self._warn(plan)
        with log.stage("rewrite"):
            model, runs = self._rewrite(plan, codes, dump_passes)
        summary = sections.calibration_summary(
            plan,
            self.recipe.calibration.method,
            len(statistics.tensors),
            statistics.reused,
            log.seconds["calibrate"],
        )
        return Quantized(
            model=model,
            plan=plan,
            runs=runs,
            weights=compare_weights(_rounded_weights(self.loaded.model, plan, codes)),
            calibration=summary if statistics.tensors else None,
            budget=budget.section,
            kept=kept,
        )

    def _warn(self, plan: Plan) -> None:
        whole = any(t.kind == "weight" and not t.reduce_range for t in plan.tensors.values())
        if self.device == "vnni" and whole:
            self.log.notice(
                "8-bit weights: on x86 CPUs without VNNI the kernels saturate and the engine loses "
                "accuracy; for those build with --cpu avx2"
            )
        ungiven = sum(1 for node in plan.nodes.values() if node.reason == NO_GRID)
        if ungiven:
            self.log.notice(
                f"{ungiven} nodes stay in float, for the source has no grid for what they read or "
                "make: give --calib to find one"
            )
        share = sections.int8_share(plan, self.loaded.model)
        if share is not None and share < LITTLE:
            self.log.notice(
                f"only {share:.1%} of the arithmetic runs in {self.types.weight}: see 'in float' "
                "for the reasons"
            )

    def _statistics(self) -> Statistics:
        samples = self.data.calibration
        if samples is None or self.recipe.scheme not in CALIBRATED:
            return Statistics({}, 0)
        names = uncalibrated(self._selection(self._wishes()), self._given)
        return collect(
            self.loaded.model,
            samples,
            names,
            jobs=self.recipe.jobs or 1,
            histograms=self.recipe.calibration.method != "minmax",
            store=StatisticsStore(default_cache()),
            progress=self.log,
        )

    @cached_property
    def _given(self) -> Given:
        """The grids of a source that is quantized already."""
        return spread(self.loaded.given, self.loaded.model.graph)

    def _selection(self, wishes: Wishes) -> Selection:
        about = self.target, self.recipe.scheme, wishes
        calibrated = self.data.calibration is not None
        return select_given(self.loaded.model, self._given, *about, calibrated=calibrated)

    def _wishes(self) -> Wishes:
        """Return what stays in float, whatever is measured."""
        return replace(wishes_of(self.recipe), nodes=self.remedied.floats)

    def _plan(self, statistics: Statistics) -> tuple[Budget, Kept | None]:
        model, scheme = self.loaded.model, self.recipe.scheme
        if self.edited is not None:
            plan = self._followed(self.edited)
            return Budget(plan, codes_of(plan, self._solver)), None
        about = self.recipe, self.target, self.device, self.types, self.log
        planner = Planner(model, statistics, self.data.calibration, *about)
        wishes, select, kept = self._wishes(), planner.selected, None
        if self._given and scheme in CALIBRATED:

            def select(wishes: Wishes) -> Selection:
                return self._selection(planner.bounded(wishes))

            selection = select(wishes)
            plan = planner.plan(selection, planner.kept(selection, self._given))
            plan, kept = with_given(plan, selection, self._given, model, self.types)
            codes: dict[str, Codes] = {}
        else:
            plan, codes = planner.make(wishes)
        plan = plan.model_copy(update={"remedies": self.remedied.remedies})
        replan = Replan(planner, wishes, (plan, codes), select)
        budget = within(replan, self._written, self.loaded, self.data, self.log)
        plan = budget.plan.model_copy(update={"model": self.loaded.digest})
        return self._with_learned(replace(budget, plan=plan)), kept

    def _with_learned(self, made: Budget) -> Budget:
        """Return the plan with codes that are learned, where they are asked for."""
        method = self.recipe.accuracy.rounding
        learn = self._solver(method) if method in LEARNED and not self._given else None
        if learn is None:
            return made
        plan, grids = made.plan, weights_of(made.plan)
        nearest = {"method": "minmax", "errors": {}}
        plain = {name: tensor.model_copy(update=nearest) for name, tensor in grids.items()}
        remedies = plan.remedies.model_copy(
            update={"learned": learned_as(self.recipe, self.edited)}
        )
        tensors = {**plan.tensors, **plain}
        plan = plan.model_copy(update={"remedies": remedies, "tensors": tensors})
        plan, codes = marked(plan, grids, learn(grids, nodes_of(plan)), method)
        return replace(made, plan=plan, codes=codes)

    def _followed(self, plan: Plan) -> Plan:
        """Check the plan that the user gave."""
        model = self.loaded.model.clone()
        run_passes(model, [CorrectBias(remedies=plan.remedies)], holds=self.loaded.holds)
        digest, scheme = self.loaded.digest, self.recipe.scheme
        check_plan(plan, model, digest, self.target, self.device, scheme)
        return with_bias_scales(plan, model, self.target, self.log)

    def _solver(self, method: str) -> Solve | None:
        """Return the way to find codes of weights that has a name; None without samples."""
        samples, jobs = self.data.calibration, self.recipe.jobs or 1
        if samples is None or method == "rtn":
            return None
        model, folder = self.loaded.model, self.folder
        if method == "gptq":

            def solve(
                tensors: Mapping[str, TensorPlan], nodes: Sequence[str]
            ) -> dict[str, Rounded]:
                return solve_codes(model, tensors, nodes, samples, jobs, self.log)

            return solve
        assert folder is not None  # noqa: S101 - the pipeline gives one where codes are learned
        learned_on = first(samples, LEARNED_ON)
        how = learned_as(self.recipe, self.edited)

        def learn(tensors: Mapping[str, TensorPlan], nodes: Sequence[str]) -> dict[str, Rounded]:
            what = model, tensors, nodes, learned_on, jobs, self.log, folder
            work = Learning(*what, how.steps, how.seed)
            return adarounded(work) if method == "adaround" else reconstructed(work)

        return learn

    def _corrected(self, plan: Plan, codes: dict[str, Codes]) -> Plan:
        """Return the plan with corrections of biases, where they are asked for.

        ``auto`` does not ask: GPTQ's codes keep mean outputs already, and with them corrections
        gained nothing on any model that was measured (docs/bias-correction.md).
        """
        samples, accuracy = self.data.calibration, self.recipe.accuracy
        wanted = accuracy.asks("bias-correction")
        possible = self.recipe.scheme in CALIBRATED and not self._given
        if self.edited is not None or samples is None or not wanted or not possible:
            return plan
        model, jobs = self.loaded.model, self.recipe.jobs or 1
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            about = plan, samples, jobs, self.log, Path(folder), accuracy.correction
            found = BiasCorrection(model, self._written(plan, codes), *about).corrections()
        remedies = plan.remedies.model_copy(update={"corrected": found})
        plan = plan.model_copy(update={"remedies": remedies})
        return with_corrected_biases(plan, model, self.target)

    def _written(self, plan: Plan, codes: dict[str, Codes]) -> ir.Model:
        """Return the float graph with a plan written in, in the form that targets share."""
        model = self.loaded.model.clone()
        run_passes(model, self._shared(plan, codes), holds=self.loaded.holds)
        return model

    def _rewrite(
        self, plan: Plan, codes: dict[str, Codes], dump_passes: Path | None
    ) -> tuple[ir.Model, list[PassRun]]:
        model = self.loaded.model.clone()
        passes = self._shared(plan, codes)
        islands = self.target.placement is not Placement.INPUTS
        if self.recipe.scheme in CALIBRATED and islands:
            if self.target.device_option == "--cpu":  # forms that x86 kernels are fast on
                passes += [FoldStride(), PadChannels(), AverageCodes()]
            passes.append(FenceFloatNodes())
        folder = dump_passes / "quantize" if dump_passes else None
        return model, run_passes(model, passes, holds=self.loaded.holds, dump_dir=folder)

    def _shared(self, plan: Plan, codes: dict[str, Codes]) -> list[GraphPass]:
        """Return the passes that write a plan."""
        if self.recipe.scheme not in CALIBRATED:
            return dynamic(plan)
        hand_on = self.target.placement is not Placement.INPUTS
        correct = [CorrectBias(remedies=plan.remedies)] if plan.remedies.corrected else []
        return [*correct, InsertQdq(plan=plan, codes=codes, hand_on=hand_on)]


def _rounded_weights(
    model: ir.Model, plan: Plan, solved: dict[str, Codes]
) -> Iterator[tuple[str, str, Array, Array]]:
    """Yield name, operator, values and dequantized codes of each planned weight."""
    for name, tensor in plan.tensors.items():
        value = model.graph.initializers.get(name)
        if tensor.kind != "weight" or value is None or value.const_value is None:
            continue
        values = value.const_value.numpy()
        grid = tensor.scales(), tensor.zero_points(), tensor.axis
        codes = solved.get(name)
        if codes is None:
            codes = quantize(values, *grid, tensor.type)
        operator = next((node.op_type for node, _ in consumers(value)), "")
        yield name, operator, values, dequantize(codes, *grid)
