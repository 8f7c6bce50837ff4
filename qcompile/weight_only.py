"""The scheme weight-only: weights are solved one layer after another, then written in few bits."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompile.bundle import versions
from qcompile.calibrate.cache import default_cache
from qcompile.calibrate.leftovers import PREFIX, clear
from qcompile.data import Split
from qcompile.errors import DataError, OutputError, QcompileError
from qcompile.frontend import Loaded
from qcompile.graph.runner import PassRun, run_passes
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.passes.insert_block_dequantize import InsertBlockDequantize
from qcompile.passes.insert_matmul_nbits import InsertMatmulNbits
from qcompile.plan import Plan
from qcompile.planning.costs import estimate
from qcompile.planning.plan import check_plan, wishes_of
from qcompile.planning.sequence import Job, round_weights, solve_weights
from qcompile.planning.weights import WeightSelection, select_weights
from qcompile.progress import Progress, StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Recipe
from qcompile.report.schema import WeightRow
from qcompile.samples import samples_digest
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
        folder: For solved weights and activations; see ``working_folder``.
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
        plan = Plan(
            model=self.loaded.digest,
            target=self.target.name,
            device=self.device,
            scheme=self.recipe.scheme,
            tensors={},
            weights=job.plans(),
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
        )

    def _solve(self, job: Job) -> None:
        samples = self.data.calibration
        if samples is None:
            self._check_needs_no_data()
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

    def _rewrite(
        self, plan: Plan, store: SolvedStore, dump_passes: Path | None
    ) -> tuple[ir.Model, list[PassRun]]:
        model = self.loaded.model.clone()
        scales = FoldInputScale(plan=plan, solved=store.load)
        passes = [
            scales,
            InsertMatmulNbits(plan=plan, solved=scales.folded),
            InsertBlockDequantize(plan=plan, solved=scales.folded),
        ]
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
                }
            ),
        )
        for layer in selection.layers
    )


@contextmanager
def working_folder(
    loaded: Loaded, data: Split, recipe: Recipe, plan: Plan | None, progress: Progress
) -> Iterator[Path]:
    """Give the folder in which such a build works; it is there again after a kill.

    Model, samples, options and versions make its name. It is removed when the build ends well;
    those of other builds are told of, and removed when they are old.

    Raises:
        OutputError: The cache cannot be written, or another build works there.
    """
    text = json.dumps(
        {
            "model": loaded.digest,
            "samples": samples_digest(data.calibration) if data.calibration else None,
            "recipe": recipe.model_dump(mode="json", exclude={"gates", "metric"}),
            "plan": plan.text() if plan else None,
            "versions": versions(),
        },
        sort_keys=True,
    )
    folder = default_cache() / f"{PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{folder}: another build solves the same weights; wait") from error
        clear(folder, progress)
        try:
            yield folder
        except QcompileError:
            if not any(folder.glob("weights/*.npz")):  # nothing to go on with
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
