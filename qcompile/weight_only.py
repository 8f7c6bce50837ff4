"""The scheme weight-only: weights are solved one layer after another, then written in few bits."""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompile.data import Split
from qcompile.errors import DataError
from qcompile.frontend import Loaded
from qcompile.graph.protocol import GraphPass
from qcompile.graph.runner import PassRun, run_passes
from qcompile.numerics.adaround import torch_library
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.passes.hold_codes import HoldCodes
from qcompile.passes.insert_block_dequantize import InsertBlockDequantize
from qcompile.passes.insert_matmul_nbits import InsertMatmulNbits
from qcompile.plan import Plan
from qcompile.planning.codes import learned_as
from qcompile.planning.costs import estimate
from qcompile.planning.followed import check_plan
from qcompile.planning.plan import wishes_of
from qcompile.planning.sequence import Job, round_weights, solve_weights
from qcompile.planning.weights import WeightSelection, select_weights
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Recipe
from qcompile.remedies import Remedies
from qcompile.report.schema_results import WeightRow
from qcompile.solved import SolvedStore
from qcompile.targets.target import Target


@dataclass(frozen=True)
class WeightOnly:
    """One build with weights in few bits.

    Attributes:
        loaded: The float model.
        data: Calibration samples; plain rounding needs none.
        recipe: What was asked for.
        target: What the engine runs on.
        device: What the engine runs on.
        scale_type: Type of the scales where the graph is cast to it; None: what the graph has.
        edited: A plan to follow instead of making one.
        log: Hears of stages and notices.
        folder: For solved weights and activations; see ``working.working_folder``.
    """

    loaded: Loaded
    data: Split
    recipe: Recipe
    target: Target
    device: str
    scale_type: str | None
    edited: Plan | None
    log: StageLog
    folder: Path

    def quantize(self, dump_passes: Path | None) -> Quantized:
        """Solve, plan, rewrite.

        Args:
            dump_passes: Folder for the graph's text after each pass.

        Raises:
            QcompileError: The samples or the edited plan do not fit the model, or a disk is full.
        """
        with self.log.stage("solve"):
            job = self._job()
            self._solve(job)
        weights = job.plans()
        learned = any(weight.algorithm == "adaround" for weight in weights.values())
        plan = Plan(
            model=self.loaded.digest,
            target=self.target.name,
            device=self.device,
            scheme=self.recipe.scheme,
            tensors={},
            weights=weights,
            remedies=Remedies(learned=job.learned if learned else None),
            nodes=job.selection.nodes,
        )
        with self.log.stage("rewrite"):
            model, runs = self._rewrite(plan, job.store, dump_passes)
        return Quantized(model=model, plan=plan, runs=runs, solved=rows(plan, job.selection))

    def _job(self) -> Job:
        model, wishes = self.loaded.model, wishes_of(self.recipe)
        if self.edited:
            digest, scheme = self.loaded.digest, self.recipe.scheme
            check_plan(self.edited, model, digest, self.target, self.device, scheme)
        selection = select_weights(
            model, self.target, self.recipe.weights, wishes, self.edited, self.scale_type
        )
        return Job(
            model=model,
            selection=selection,
            target=self.target,
            folder=self.folder,
            jobs=self.recipe.jobs or 1,
            progress=self.log,
            learned=learned_as(self.recipe, self.edited),
        )

    def _solve(self, job: Job) -> None:
        samples = self.data.calibration
        if samples is None:
            self._check_needs_no_data()
        elif any(layer.options.algorithm == "adaround" for layer in job.selection.layers):
            torch_library()  # before any work
        if not job.selection.layers:
            self.log.notice(
                "no weight is in few bits, the engine is the float model: see 'in float' for the "
                "reasons"
            )
            return
        self.log.announce(estimate(job, samples))
        if samples is None:
            self.log.notice("without samples all weights are rounded to the nearest codes")
            round_weights(job)
        else:
            solve_weights(job, samples)

    def _check_needs_no_data(self) -> None:
        algorithm, what = self.recipe.weights.algorithm, "--algorithm"
        planned = self.edited.weights.values() if self.edited else ()
        solved = next((w.algorithm for w in planned if w.algorithm != "rtn"), None)
        if solved:
            algorithm, what = solved, "--plan: algorithm"
        if algorithm not in ("auto", "rtn"):
            raise DataError(
                f"{what} {algorithm} needs calibration data: give --calib (text, or a folder "
                "of .npz), or take algorithm rtn, which needs none"
            )
        if self.recipe.weights.compensate or any(weight.compensate for weight in planned):
            raise DataError(
                "what earlier layers cost is measured on calibration data: give --calib, or take "
                "compensate = false"
            )

    def _rewrite(
        self, plan: Plan, store: SolvedStore, dump_passes: Path | None
    ) -> tuple[ir.Model, list[PassRun]]:
        model = self.loaded.model.clone()
        scales = FoldInputScale(plan=plan, solved=store.load)
        passes: list[GraphPass] = [
            scales,
            InsertMatmulNbits(plan=plan, solved=scales.folded),
            InsertBlockDequantize(plan=plan, solved=scales.folded),
        ]
        if self.target.few_bits().held:
            passes.append(HoldCodes())
        folder = dump_passes / "quantize" if dump_passes else None
        return model, run_passes(model, passes, holds=self.loaded.holds, dump_dir=folder)


def rows(plan: Plan, selection: WeightSelection) -> tuple[WeightRow, ...]:
    """Return what is reported of each weight, in graph order."""
    return tuple(
        WeightRow(
            name=layer.name,
            op=layer.node.op_type,
            node=layer.node.name or "",
            shape=(layer.rows, layer.columns),
            **plan.weights[layer.name].model_dump(
                include={
                    "bits",
                    "group_size",
                    "symmetric",
                    "algorithm",
                    "errors",
                    "accuracy_level",
                    "level_error",
                    "inherited",
                    "left",
                }
            ),
        )
        for layer in selection.layers
    )
