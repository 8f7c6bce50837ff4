"""The flow, one way: source, graph, statistics, plan, rewritten graph, engine, comparison.

The stages meet here, and in the modules beside this one; none of them imports another.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from qcompile.compare.gates import GateResult, check_gates
from qcompile.compare.metric import Metric, load_metric
from qcompile.data import Source, Split, split_data
from qcompile.delivery import check_request, deliver, shapes_for
from qcompile.devices import FLOAT_TYPES, check_algorithms, device_of, remainder_of, types_of
from qcompile.emit.ort_file import write_engine, write_optimized
from qcompile.errors import GateError, RecipeError
from qcompile.fitting import Fitting
from qcompile.frontend import Loaded, check_equivalence, jobs_of, load
from qcompile.halves import Halves, check_halves, nothing_quantized, stand_in
from qcompile.plan import CALIBRATED, Plan
from qcompile.planning.followed import plan_to_follow
from qcompile.planning.plan import wishes_of
from qcompile.planning.wishes import unmatched
from qcompile.progress import Progress, StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import LEARNED, HighPrecision, Recipe
from qcompile.remedied import Remedied, Remedying, untouched
from qcompile.report.json_text import json_text
from qcompile.report.schema import Kernels, Report
from qcompile.report.schema_source import Canonicalization, ModelFacts, TrainingFacts
from qcompile.runtime.host import host_cpu
from qcompile.runtime.ort import kernel_nodes, replays
from qcompile.runtime.provider import CPU, Engine
from qcompile.samples import samples_digest
from qcompile.source.onnx_file import check_file
from qcompile.targets import target_named
from qcompile.targets.profiles import Profile
from qcompile.targets.target import Target
from qcompile.torch_models import Options, file_name, is_torch
from qcompile.tracing import TracedFile, traced_file
from qcompile.training import check_trainable, trained
from qcompile.w8a8 import W8A8
from qcompile.weight_only import WeightOnly
from qcompile.working import working_folder
from qcompile.written import Delivered, Written

CHECKED = 2
"""Samples on which the clean-up is compared with the source."""


def build(  # noqa: PLR0913 (the command's options)
    model: object,
    *,
    example_inputs: Any = None,  # noqa: ANN401 (tensors, where torch is installed)
    dynamic_axes: Sequence[str] = (),
    calib: Source | None = None,
    evaluation: Source | None = None,
    output: Path | str | None = None,
    recipe: Recipe | None = None,
    plan: Path | str | None = None,
    force: bool = False,
    dump_passes: Path | str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Build an engine from a model, and prove what it still does.

    Args:
        model: An ONNX file, or a torch model: an ``nn.Module``, ``module:callable``,
            ``file.py:callable``, a ``.pt2`` file or ``hf:DIR``; see ``tracing.export``.
        example_inputs: What a torch model is traced on; else what its callable gives,
            ``--shapes``, or the first sample of ``calib``.
        dynamic_axes: Of a torch model: ``batch``, or ``input:0=batch,2=height``.
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
    recipe = recipe or Recipe()
    target, log = target_named(recipe.target), StageLog(progress)
    device = device_of(recipe, target, log)  # refused before any file is read
    check_algorithms(recipe, log)
    remainder, target = remainder_of(recipe, target, device), target.on(device)
    check_request(target, _without_shapes(recipe) if is_torch(model) else recipe, log)
    recipe = recipe.model_copy(update={"jobs": jobs_of(recipe, log)})
    metric = load_metric(recipe.metric) if recipe.metric else None
    if recipe.qat:
        check_trainable(model, recipe)
    edited = plan_to_follow(Path(plan), recipe) if plan else None
    path = Path(file_name(model)) if is_torch(model) else Path(str(model))
    if not is_torch(model):
        check_file(path)
        if dynamic_axes or example_inputs is not None:
            raise RecipeError(f"{path}: --dynamic-axes and example inputs are for torch models")
    folder = Path(output or default_output(path, recipe.scheme, target.name))
    dumps = Path(dump_passes) if dump_passes else None
    with open_bundle(folder, force=force) as bundle, ExitStack() as stack:
        traced = None
        if is_torch(model):
            options = Options(example_inputs, dynamic_axes, recipe.tensorrt.shapes, calib)
            traced = stack.enter_context(traced_file(model, options, recipe, log))
            path = traced.path
        job = _Job(path, recipe, target, device, remainder, metric, bundle, log, traced)
        return job.run(calib, evaluation, edited, dumps)


def _without_shapes(recipe: Recipe) -> Recipe:
    """Return the recipe without ``--shapes``: a torch model is traced by them, for any target."""
    options = recipe.tensorrt.model_copy(update={"shapes": None})
    return recipe.model_copy(update={"tensorrt": options})


@dataclass(frozen=True)
class _Job:
    path: Path
    recipe: Recipe
    target: Target
    device: str
    remainder: HighPrecision
    metric: Metric | None
    bundle: Bundle
    log: StageLog
    traced: TracedFile | None = None

    def run(
        self,
        calib: Source | None,
        evaluation: Source | None,
        edited: Plan | None,
        dump_passes: Path | None,
    ) -> Report:
        log = self.log
        with log.stage("source"):
            loaded = load(
                self.path,
                self.target.name,
                self.recipe.scheme,
                threads=self.recipe.jobs or 1,
                dump_dir=dump_passes,
                progress=log,
            )
        for unused in unmatched(loaded.model, wishes_of(self.recipe)):
            log.notice(f"nothing is excluded by {unused!r}: no node matches it")
        with log.stage("data"):
            data = split_data(calib, evaluation, loaded, self.recipe, log)
        with self._trained(loaded, data) as (source, training):
            return self._built(source, data, training, edited, dump_passes)

    @contextmanager
    def _trained(
        self, loaded: Loaded, data: Split
    ) -> Iterator[tuple[Loaded, TrainingFacts | None]]:
        """Give what is built: the source, or what training makes of a torch model."""
        if self.recipe.qat is None or self.traced is None or self.traced.model is None:
            yield loaded, None
            return
        with trained(loaded, data, self.traced.model, self.recipe, self.log) as made:
            yield made

    def _built(
        self,
        loaded: Loaded,
        data: Split,
        training: TrainingFacts | None,
        edited: Plan | None,
        dump_passes: Path | None,
    ) -> Report:
        log, jobs = self.log, self.recipe.jobs or 1
        shapes = shapes_for(self.target, self.recipe, self.device, loaded, data, log)
        with log.stage("check clean-up"):
            canonical = self._check(loaded, data)
        remedied = self._remedied(loaded, data, edited, dump_passes)
        floats = loaded.with_graph(remedied.model) if remedied.remedies else loaded
        with self._quantized(floats, remedied, data, edited, dump_passes) as made:
            self.bundle.write(PLAN, made.plan.text())
            with log.stage("emit"):
                delivered = self._emit(loaded, data, made, shapes)
        if self.remainder != "fp32":  # the file, for weights in few bits are gone from memory
            ports = (*loaded.inputs, *loaded.outputs)
            simulated = stand_in(self.bundle.folder / ENGINE, self.remainder, loaded.holds, ports)
            made = replace(made, stand_in=simulated)
        model = made.stand_in or self.bundle.folder / ENGINE
        engine = delivered.engine
        with log.stage("compare"):
            metric = self.metric or proof.own_metric(loaded, data)
            compared = proof.compare(loaded, model, engine, data, metric, jobs, log)
            layers = proof.layers(floats.model, made, data, jobs, log)
        timing = None
        if engine is not None and not delivered.untimed:
            with log.stage("time"):
                timing = proof.time_engine(
                    loaded,
                    engine,
                    data,
                    weights_alone=self.recipe.scheme == "weight-only",
                    gates=self.recipe.gates,
                    progress=log,
                )
        elif delivered.untimed:
            log.notice(delivered.untimed)
        judged = timing.judged if timing else delivered.timing
        accuracy = compared.get("engine") or compared.get("simulated")
        known = {gate.name for gate in delivered.judged} | delivered.left
        here = check_gates(self.recipe.gates, accuracy, judged)
        results = [*delivered.judged, *(gate for gate in here if gate.name not in known)]
        report = Report(
            model=self._model_facts(loaded),
            training=training,
            canonical=canonical,
            data=data.facts,
            source=None if training else sections.source_grids(loaded.given, made.kept),
            calibration=made.calibration,
            budget=made.budget,
            plan=sections.plan_summary(made.plan, host_cpu(), floats.model),
            remedies=sections.remedy_section(remedied, made.plan, floats.model, self._asked()),
            passes=sections.pass_records([*remedied.runs, *made.runs]),
            kernels=self._kernels(floats, made.plan, engine),
            delivery=delivered.facts,
            engine=sections.comparison_section(delivered.compared or compared.get("engine")),
            simulated=sections.comparison_section(compared["simulated"])
            if "simulated" in compared
            else None,
            layers=sections.layer_rows(layers),
            weights=made.solved,
            speed=sections.speed(judged),
            prefill=sections.speed(timing.prefill if timing else None),
            gates=sections.gates(results),
        )
        return self._finish(report, loaded, data, results)

    def _model_facts(self, loaded: Loaded) -> ModelFacts:
        facts = sections.model_facts(loaded)
        if self.traced is None:
            return facts
        traced = self.traced.facts
        return facts.model_copy(update={"path": traced.source, "traced": traced})

    def _check(self, loaded: Loaded, data: Split) -> Canonicalization:
        samples = data.calibration or data.evaluation
        runs = sections.pass_records(loaded.runs)
        if samples is None:
            self.log.notice("without samples, the clean-up was not compared with the source")
            return Canonicalization(passes=runs)
        indices = range(min(CHECKED if loaded.session else 1, len(samples)))
        moved = check_equivalence(loaded, samples, indices, self.recipe.jobs or 1, self.log)
        return Canonicalization(passes=runs, relative_l2=moved, samples=len(indices))

    def _remedied(
        self, loaded: Loaded, data: Split, edited: Plan | None, dumps: Path | None
    ) -> Remedied:
        """Return the graph that is quantized: 8-bit activations may ask for remedies."""
        types = types_of(self.recipe, self.target, self.device, self.remainder)
        if types is None or (loaded.given and self.recipe.scheme in CALIBRATED):
            return untouched(loaded, self.recipe)
        with self.log.stage("remedies"):
            about = self.recipe, self.target, self.device, types, self.log, dumps
            remedying = Remedying(loaded, data, *about)
            return remedying.find() if edited is None else remedying.follow(edited.remedies)

    @contextmanager
    def _quantized(
        self,
        loaded: Loaded,
        remedied: Remedied,
        data: Split,
        edited: Plan | None,
        dumps: Path | None,
    ) -> Iterator[Quantized]:
        """Give the rewritten graph; what it reads from disk stays until the engine is written."""
        about = loaded, data, self.recipe, self.target, self.device
        half = self.remainder
        types = types_of(self.recipe, self.target, self.device, half)
        with ExitStack() as stack:
            if edited is not None:
                check_halves(edited, half)
            halves = Halves(*about, edited, half, self.log) if half != "fp32" else None
            if types is not None:
                folder = self._learning(stack, loaded, data, edited)
                job = W8A8(loaded, remedied, *about[1:], types, edited, folder, self.log)
                made = job.quantize(dumps)
            elif self.recipe.scheme == "weight-only":
                folder = stack.enter_context(
                    working_folder(loaded, data, self.recipe, edited, self.log)
                )
                scales = FLOAT_TYPES[half] if halves else None
                made = WeightOnly(*about, scales, edited, self.log, folder).quantize(dumps)
            else:
                scheme = self.recipe.scheme
                made = nothing_quantized(loaded, scheme, self.target, self.device, edited)
            made = halves.cast(made, dumps) if halves else made
            yield Fitting(*about, self.log).fit(made, dumps)

    def _asked(self) -> str:
        named = self.recipe.accuracy.algorithms
        return named if named == "auto" else "+".join(named)

    def _learning(
        self, stack: ExitStack, loaded: Loaded, data: Split, edited: Plan | None
    ) -> Path | None:
        """Give the folder for codes that are learned, where any are."""
        methods = {t.method for t in edited.tensors.values()} if edited else set()
        methods.add(self.recipe.accuracy.rounding)
        if not methods.intersection(LEARNED):
            return None
        about = loaded, data, self.recipe, edited, self.log
        return stack.enter_context(working_folder(*about))

    def _kernels(self, loaded: Loaded, plan: Plan, engine: Engine | None) -> Kernels:
        if loaded.session is None or engine is None or engine.provider.name != CPU.name:
            return Kernels()
        if engine.path.suffix == ".ort" and not replays(engine.path):
            return Kernels()
        nodes = kernel_nodes(engine.path, provider=engine.provider)
        return sections.kernels(plan, loaded.model, self.target, nodes)

    def _emit(
        self, loaded: Loaded, data: Split, made: Quantized, shapes: dict[str, Profile]
    ) -> Delivered:
        model = self.bundle.folder / ENGINE
        write_engine(made.model, model)
        if self.recipe.optimized:
            write_optimized(model)
        if self.traced is not None and self.traced.tokenizer is not None:
            shutil.copy(self.traced.tokenizer, self.bundle.folder)
        written = Written(model, self.device, self.recipe, loaded, data, made, shapes, self.log)
        return deliver(self.target, written)

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
            traced=self.traced.facts.source if self.traced else None,
            calibration=samples_digest(data.calibration) if data.calibration else None,
            evaluation=samples_digest(data.evaluation) if data.evaluation else None,
            recipe=self.recipe.model_dump(mode="json"),
            plan=files[PLAN].sha256,
            versions=found,
            cpu={"engine": self.device, "host": host_cpu()},
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
