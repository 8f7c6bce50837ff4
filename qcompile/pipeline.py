"""The flow, one way: source, graph, statistics, plan, rewritten graph, engine, comparison.

Only this file, with ``frontend`` and ``data``, joins the stages; none of them imports another.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompile import proof, sections
from qcompile.bundle import (
    ENGINE,
    MANIFEST,
    PLAN,
    REPORT,
    Bundle,
    Manifest,
    Status,
    default_output,
    open_bundle,
    versions,
)
from qcompile.calibrate.cache import StatisticsStore, default_cache
from qcompile.calibrate.collect import collect
from qcompile.compare.gates import GateResult, check_gates
from qcompile.compare.metric import Metric, load_metric
from qcompile.data import Source, Split, split_data
from qcompile.emit.ort_file import load_engine, write_engine, write_optimized
from qcompile.errors import GateError, ModelError, RecipeError
from qcompile.frontend import Loaded, check_equivalence, load
from qcompile.graph.protocol import GraphPass
from qcompile.graph.runner import PassRun, run_passes
from qcompile.numerics.grids import Codes
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.pad_channels import PadChannels
from qcompile.plan import Plan, read_plan
from qcompile.planning.pays import select_paying
from qcompile.planning.plan import (
    PROBED,
    Planner,
    activations_of,
    check_plan,
    codes_of,
    wishes_of,
)
from qcompile.planning.wishes import unmatched
from qcompile.progress import Progress, StageLog
from qcompile.recipe import Cpu, Recipe
from qcompile.report.json_text import json_text
from qcompile.report.schema import Canonicalization, Report
from qcompile.runtime.host import host_cpu
from qcompile.runtime.ort import kernel_nodes
from qcompile.samples import Subset, samples_digest
from qcompile.statistics import Statistics
from qcompile.targets import target_named
from qcompile.targets.target import Target

CHECKED = 2
"""Samples on which the clean-up is compared with the source."""

LITTLE = 0.25
"""Share of the arithmetic in int8 below which the user is told so."""

LAYERED = 4
"""Samples of the layer-by-layer comparison."""


def build(  # noqa: PLR0913 (the command's options)
    model: Path | str,
    *,
    calib: Source | None = None,
    evaluation: Source | None = None,
    output: Path | None = None,
    recipe: Recipe | None = None,
    plan: Path | None = None,
    force: bool = False,
    dump_passes: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Build an engine from an ONNX model, and prove what it still does.

    Args:
        model: An ONNX file.
        calib: Calibration samples: a folder, a file or ``module:callable``; see
            ``calibrate.readers``. Static int8 needs them.
        evaluation: Samples to compare on; without them a share of ``calib`` is held back.
        output: The bundle's folder; by default ``<model>-<scheme>-<target>`` in the current one.
        recipe: What to build; by default static int8 for ONNX Runtime on this CPU.
        plan: A plan file to follow instead of making one.
        force: Replace a former bundle.
        dump_passes: Write the graph's text after each pass into this folder.
        progress: Hears of steps and notices.

    Returns:
        What ``report.json`` holds, and what the command line prints.

    Raises:
        QcompileError: Bad input; nothing is written.
        GateError: A gate was missed: the report was written, the engine was not; ``.report`` is it.
    """
    path, recipe = Path(model), recipe or Recipe()
    target = target_named(recipe.target)
    cpu = recipe.cpu or host_cpu()
    if cpu not in target.types:
        raise RecipeError(f"--cpu {cpu}: {target.name} has no types for it")
    recipe = recipe.model_copy(update={"jobs": recipe.jobs or os.cpu_count() or 1})
    metric = load_metric(recipe.metric) if recipe.metric else None
    edited = read_plan(plan) if plan else None
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    folder = output or default_output(path, recipe.scheme, target.name)
    log = StageLog(progress)
    with open_bundle(folder, force=force) as bundle:
        job = _Job(path, recipe, target, cpu, metric, bundle, log)
        return job.run(calib, evaluation, edited, dump_passes)


@dataclass(frozen=True)
class _Job:
    path: Path
    recipe: Recipe
    target: Target
    cpu: Cpu
    metric: Metric | None
    bundle: Bundle
    log: StageLog

    def run(
        self,
        calib: Source | None,
        evaluation: Source | None,
        edited: Plan | None,
        dump_passes: Path | None,
    ) -> Report:
        log, jobs = self.log, self.recipe.jobs or 1
        with log.stage("source"):
            loaded = load(
                self.path, self.target.name, threads=jobs, dump_dir=dump_passes, progress=log
            )
        if self.cpu == "vnni":
            log.notice(
                "8-bit weights: on x86 CPUs without VNNI the kernels saturate and the engine loses "
                "accuracy; for those build with --cpu avx2"
            )
        for unused in unmatched(loaded.model, wishes_of(self.recipe)):
            log.notice(f"nothing is excluded by {unused!r}: no node matches it")
        with log.stage("data"):
            data = split_data(calib, evaluation, loaded.session, self.recipe, log)
        with log.stage("check clean-up"):
            canonical = self._check(loaded, data)
        with log.stage("calibrate"):
            statistics, reused = self._statistics(loaded, data.calibration)
        with log.stage("plan"):
            plan, codes = self._plan(loaded, statistics, data, edited)
        share = sections.int8_share(plan, loaded.model)
        if share is not None and share < LITTLE:
            log.notice(
                f"only {share:.1%} of the arithmetic runs in int8: see 'in float' for the reasons"
            )
        self.bundle.write(PLAN, plan.text())
        with log.stage("rewrite"):
            quantized, runs = self._rewrite(loaded, plan, codes, dump_passes)
        with log.stage("emit"):
            engine = self._emit(quantized)
        with log.stage("compare"):
            compared = proof.compare(loaded, engine, data, self.metric, jobs, log)
            weights = proof.rounded_weights(loaded.model, plan, codes)
            layers = proof.layers(loaded.model, quantized, plan, weights, data, jobs, log)
        with log.stage("time"):
            timing = proof.time_engine(
                loaded, engine, data, again=not self.recipe.gates.allow_slower, progress=log
            )
        results = check_gates(self.recipe.gates, compared.get("engine"), timing)
        summary = sections.calibration_summary(
            plan,
            self.recipe.calibration.method,
            len(statistics.tensors),
            reused,
            log.seconds["calibrate"],
        )
        report = Report(
            model=sections.model_facts(loaded),
            canonical=canonical,
            data=data.facts,
            calibration=summary if statistics.tensors else None,
            plan=sections.plan_summary(plan, host_cpu(), loaded.model),
            passes=sections.pass_records(runs),
            kernels=sections.kernels(plan, loaded.model, self.target, kernel_nodes(engine)),
            engine=sections.comparison_section(compared.get("engine")),
            simulated=sections.comparison_section(compared["simulated"])
            if "simulated" in compared
            else None,
            layers=sections.layer_rows(layers),
            speed=sections.speed(timing),
            gates=sections.gates(results),
        )
        return self._finish(report, loaded, data, results)

    def _check(self, loaded: Loaded, data: Split) -> Canonicalization:
        samples = data.calibration or data.evaluation
        runs = sections.pass_records(loaded.runs)
        if samples is None:
            self.log.notice("without samples, the clean-up was not compared with the source")
            return Canonicalization(passes=runs)
        indices = range(min(CHECKED, len(samples)))
        moved = check_equivalence(loaded, samples, indices)
        return Canonicalization(passes=runs, relative_l2=moved, samples=len(indices))

    def _statistics(self, loaded: Loaded, samples: Subset | None) -> tuple[Statistics, int]:
        if samples is None or self.recipe.scheme != "int8":
            return Statistics({}, 0), 0
        wishes = wishes_of(self.recipe)
        names = activations_of(select_paying(loaded.model, self.target, self.recipe.scheme, wishes))
        store = StatisticsStore(default_cache())
        statistics = collect(
            loaded.model,
            samples,
            names,
            jobs=self.recipe.jobs or 1,
            histograms=self.recipe.calibration.method != "minmax",
            store=store,
            progress=self.log,
        )
        return statistics, statistics.reused

    def _plan(
        self, loaded: Loaded, statistics: Statistics, data: Split, edited: Plan | None
    ) -> tuple[Plan, dict[str, Codes]]:
        calibration = data.calibration
        probed = Subset(calibration, range(min(PROBED, len(calibration)))) if calibration else None
        if edited is not None:
            check_plan(edited, loaded.model, self.target, self.cpu, self.recipe.scheme)
            jobs = self.recipe.jobs or 1
            return edited, codes_of(edited, loaded.model, probed, jobs, self.log)
        planner = Planner(
            loaded.model, statistics, probed, self.recipe, self.target, self.cpu, self.log
        )
        return planner.make(wishes_of(self.recipe))

    def _rewrite(
        self, loaded: Loaded, plan: Plan, codes: dict[str, Codes], dump_passes: Path | None
    ) -> tuple[ir.Model, list[PassRun]]:
        quantized = loaded.model.clone()
        passes: list[GraphPass] = [DynamicMatmul(plan=plan)]
        if self.recipe.scheme == "int8":
            passes = [InsertQdq(plan=plan, codes=codes), PadChannels(), FenceFloatNodes()]
        folder = dump_passes / "quantize" if dump_passes else None
        return quantized, run_passes(quantized, passes, holds=loaded.holds, dump_dir=folder)

    def _emit(self, quantized: ir.Model) -> Path:
        engine = self.bundle.folder / ENGINE
        write_engine(quantized, engine)
        session = load_engine(engine, self.recipe.jobs or 1)
        del session
        if self.recipe.optimized:
            write_optimized(engine)
        return engine

    def _finish(
        self, report: Report, loaded: Loaded, data: Split, results: list[GateResult]
    ) -> Report:
        missed = [result for result in results if not result.passed]
        status: Status = "gate failed" if missed else "built"
        if missed:
            self.bundle.remove_engine()
        files = self.bundle.artifacts()
        found = versions()
        report = report.model_copy(
            update={
                "status": status,
                "output": str(self.bundle.destination(status)),
                "notices": tuple(self.log.notices),
                "seconds": self.log.seconds,
                "artifacts": sections.artifacts(files),
                "recipe": self.recipe.model_dump(mode="json"),
                "versions": found,
            }
        )
        manifest = Manifest(
            status=status,
            source=loaded.files,
            calibration=samples_digest(data.calibration) if data.calibration else None,
            evaluation=samples_digest(data.evaluation) if data.evaluation else None,
            recipe=self.recipe.model_dump(mode="json"),
            plan=files[PLAN].sha256,
            versions=found,
            cpu={"engine": self.cpu, "host": host_cpu()},
            seconds=self.log.seconds,
            artifacts=files,
        )
        self.bundle.write(MANIFEST, manifest.text())
        self.bundle.write(REPORT, json_text(report))
        self.bundle.place(status)
        if missed:
            names = ", ".join(f"--{gate.name}" for gate in missed)
            raise GateError(f"gate missed: {names}; the engine was not put in place", report)
        return report
