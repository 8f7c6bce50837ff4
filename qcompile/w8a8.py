"""The schemes with 8-bit activations: statistics, plan, and the passes that write the plan in."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from qcompile import sections
from qcompile.calibrate.cache import StatisticsStore, default_cache
from qcompile.calibrate.collect import collect
from qcompile.compare.layers import compare_weights
from qcompile.data import Split
from qcompile.frontend import Loaded
from qcompile.graph.protocol import GraphPass
from qcompile.graph.runner import PassRun, run_passes
from qcompile.graph.walk import consumers
from qcompile.numerics.grids import Codes, dequantize, quantize
from qcompile.numerics.regrid import Given
from qcompile.passes.average_codes import AverageCodes
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.fold_stride import FoldStride
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.pad_channels import PadChannels
from qcompile.plan import CALIBRATED, Plan
from qcompile.planning.edited import with_bias_scales
from qcompile.planning.given import NO_GRID, Kept, select_given, spread, uncalibrated, with_given
from qcompile.planning.plan import (
    PROBED,
    Planner,
    check_plan,
    codes_of,
    wishes_of,
)
from qcompile.planning.select import Selection
from qcompile.planning.wishes import Wishes
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Recipe
from qcompile.samples import Array, Subset
from qcompile.statistics import Statistics
from qcompile.targets.target import Placement, Target, Types

LITTLE = 0.25
"""Share of the arithmetic in int8 below which the user is told so."""


@dataclass(frozen=True)
class W8A8:
    """One build in int8 or fp8.

    Attributes:
        loaded: The float model.
        data: Calibration samples; scheme int8-dynamic needs none.
        recipe: What was asked for.
        target: What the engine runs on.
        device: The kind of it.
        types: Of the codes.
        edited: A plan to follow instead of making one.
        log: Hears of stages and notices.
    """

    loaded: Loaded
    data: Split
    recipe: Recipe
    target: Target
    device: str
    types: Types
    edited: Plan | None
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
            plan, codes, kept = self._plan(statistics)
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
        model, wishes = self.loaded.model, wishes_of(self.recipe)
        names = uncalibrated(self._selection(wishes), self._given)
        return collect(
            model,
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

    def _plan(self, statistics: Statistics) -> tuple[Plan, dict[str, Codes], Kept | None]:
        model, samples = self.loaded.model, self.data.calibration
        probed = Subset(samples, range(min(PROBED, len(samples)))) if samples else None
        if self.edited is not None:
            digest, scheme = self.loaded.digest, self.recipe.scheme
            check_plan(self.edited, model, digest, self.target, self.device, scheme)
            edited = with_bias_scales(self.edited, model, self.target, self.log)
            return edited, codes_of(edited, model, probed, self.recipe.jobs or 1, self.log), None
        what = self.recipe, self.target, self.device, self.types
        planner = Planner(model, statistics, probed, *what, self.log)
        wishes = wishes_of(self.recipe)
        if self._given and self.recipe.scheme in CALIBRATED:
            selection = self._selection(planner.bounded(wishes))
            choices = planner.kept(selection, self._given)
            plan = planner.plan(selection, choices)
            plan, kept = with_given(plan, selection, self._given, model, self.types)
            return plan, {}, kept
        return *planner.make(wishes), None

    def _rewrite(
        self, plan: Plan, codes: dict[str, Codes], dump_passes: Path | None
    ) -> tuple[ir.Model, list[PassRun]]:
        model = self.loaded.model.clone()
        passes: list[GraphPass] = [DynamicMatmul(plan=plan)]
        inputs = self.target.placement is Placement.INPUTS
        if self.recipe.scheme in CALIBRATED and inputs:
            passes = [InsertQdq(plan=plan, codes=codes, hand_on=False)]
        elif self.recipe.scheme in CALIBRATED:
            passes = [InsertQdq(plan=plan, codes=codes)]
            if self.target.device_option == "--cpu":  # forms that x86 kernels are fast on
                passes += [FoldStride(), PadChannels(), AverageCodes()]
            passes.append(FenceFloatNodes())
        folder = dump_passes / "quantize" if dump_passes else None
        return model, run_passes(model, passes, holds=self.loaded.holds, dump_dir=folder)


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
