"""The other commands, on the parts of a build: calibrate, compare, inspect, bench."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile import sections
from qcompile.calibrate.cache import StatisticsStore, default_cache
from qcompile.calibrate.checks import check_samples
from qcompile.calibrate.collect import collect
from qcompile.calibrate.readers import open_samples
from qcompile.calibrate.text import Reading
from qcompile.compare import end_to_end, perplexity
from qcompile.compare.metric import load_metric
from qcompile.data import Source, split_data
from qcompile.devices import device_of
from qcompile.emit.ort_file import write_engine
from qcompile.emit.single_file import single_file
from qcompile.errors import DataError, ModelError, RecipeError
from qcompile.frontend import floats_of, is_large, jobs_of, load
from qcompile.graph.digest import model_digest
from qcompile.graph.walk import all_graphs
from qcompile.numerics.ranges import range_of
from qcompile.numerics.regrid import Given
from qcompile.opened import Opened, is_ort, refuse_tensorrt
from qcompile.passes.expand_qlinear import holds_codes
from qcompile.plan import CALIBRATED, Plan
from qcompile.planning.given import select_given, spread, uncalibrated
from qcompile.planning.plan import wishes_of
from qcompile.planning.select import Selection
from qcompile.planning.wishes import Wishes
from qcompile.progress import Progress, StageLog
from qcompile.recipe import Calibration, Recipe
from qcompile.report.results import (
    BenchReport,
    BenchRow,
    CalibrationReport,
    ComparisonReport,
    DequantizedReport,
    Inspection,
    TensorRow,
)
from qcompile.report.schema import PlanSummary
from qcompile.runtime.host import host_cpu
from qcompile.runtime.made_up import made_up_feeds
from qcompile.runtime.ort import Session
from qcompile.runtime.timing import time_one, time_pair
from qcompile.samples import Feeds, Samples
from qcompile.source.files import model_files
from qcompile.source.onnx_file import load_model
from qcompile.statistics import TensorStatistics
from qcompile.targets import target_named


def calibrate(
    model: Path | str,
    calib: Source,
    *,
    evaluation: Source | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Collect the statistics that a build with the same arguments needs, and keep them for it.

    Args:
        model: An ONNX file.
        calib: Samples.
        evaluation: What the build will compare on; without it, a build holds back a share of
            ``calib``, which is left out here too.
        recipe: Its calibration and exclusions count.
        progress: Hears of steps and notices.

    Raises:
        QcompileError: Bad input.
    """
    started = time.perf_counter()
    path, recipe, heard = Path(model), recipe or Recipe(), StageLog(progress)
    if recipe.scheme not in CALIBRATED:
        raise RecipeError(f"scheme {recipe.scheme} needs no calibration: nothing to do")
    target, options, jobs = target_named(recipe.target), recipe.calibration, jobs_of(recipe, heard)
    loaded = load(path, target.name, recipe.scheme, threads=jobs, dump_dir=None, progress=heard)
    data = split_data(calib, evaluation, loaded, recipe, heard)
    if data.calibration is None:
        raise DataError(f"{calib}: no samples to calibrate with")
    given, about = spread(loaded.given, loaded.model.graph), (target, recipe.scheme)
    selection = select_given(loaded.model, given, *about, wishes_of(recipe), calibrated=True)
    names = uncalibrated(selection, given)
    store, histograms = StatisticsStore(default_cache()), options.method != "minmax"
    statistics = collect(
        loaded.model,
        data.calibration,
        names,
        jobs=jobs,
        histograms=histograms,
        store=store,
        progress=heard,
    )
    return CalibrationReport(
        model=str(path),
        data=str(calib),
        found=data.facts.found,
        samples=statistics.samples,
        method=options.method,
        tensors=tuple(_row(name, found, options) for name, found in statistics.tensors.items()),
        reused=statistics.reused,
        cache=str(store.root),
        seconds=round(time.perf_counter() - started, 3),
        notices=tuple(heard.notices),
    )


def dequantize(
    model: Path | str,
    output: Path | str,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> DequantizedReport:
    """Write the float model that a quantized one stands for.

    Args:
        model: An ONNX file.
        output: The ``.onnx`` file to write.
        force: Replace a file that is there.
        progress: Hears of what was left as it is.

    Raises:
        ModelError: It is not quantized, or cannot be read.
        OutputError: The file exists, or cannot be written.
        EngineError: ONNX Runtime does not run what was made.
    """
    path, out, heard, given = Path(model), Path(output), StageLog(progress), Given()
    with single_file(out, force=force) as file:
        graph = load_model(path, heard)
        if not holds_codes(graph):
            raise ModelError(f"{path}: holds no codes: it is a float model already")
        few_bits = _count(graph, "MatMulNBits")
        floats_of(graph, given, heard)
        few_bits -= _count(graph, "MatMulNBits")
        write_engine(graph, file)
        if not is_large(graph):
            Session(file)
    return DequantizedReport(
        source=str(path),
        output=str(out),
        activations=len(given.activations),
        weights=len(given.weights) + few_bits,
        bytes=sum(part.stat().st_size for part in model_files(out)),
        notices=tuple(heard.notices),
    )


def _count(model: ir.Model, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.all_nodes())


def compare(
    reference: Path | str,
    model: Path | str,
    data: Source,
    *,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> ComparisonReport:
    """Run two models on the same samples and tell how far the second is from the first.

    Args:
        reference: An ONNX file.
        model: Another with the same inputs and outputs, or an ORT-format file. What was built for
            another machine is simulated.
        data: Samples; with labels, accuracies are compared too.
        recipe: Its metric, what it does with pictures and text, and its jobs count.
        progress: Hears of steps and notices.

    Raises:
        QcompileError: Bad input.
    """
    recipe, heard = recipe or Recipe(), StageLog(progress)
    metric = load_metric(recipe.metric) if recipe.metric else None
    jobs = jobs_of(recipe, heard)
    first = Opened.of(Path(reference), jobs, heard)
    second = Opened.of(Path(model), jobs, heard)
    _check_same_inputs(first, second)
    samples = _samples(data, first, recipe, heard)
    if recipe.metric == perplexity.NAME and not _predicts_tokens(first.session, samples):
        raise RecipeError(f"{first.path}: predicts no tokens, so that it has no perplexity")
    found = end_to_end.compare(
        first.session.run, second.session.run, samples, metric=metric, progress=heard
    )
    return ComparisonReport(
        reference=str(reference),
        model=str(model),
        data=str(data),
        comparison=sections.comparison_section(found),
        notices=tuple(heard.notices),
    )


def inspect(
    model: Path | str,
    *,
    target: str = "ort-cpu",
    device: str | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Tell what a model is and what a build in static int8 would do with it, without any data.

    Args:
        model: An ONNX file.
        target: Name of a target.
        device: Of the target; None takes its first, or what this host is.
        progress: Hears of steps and notices.

    Raises:
        QcompileError: Bad input.
    """
    path, heard, chosen = Path(model), StageLog(progress), target_named(target)
    refuse_tensorrt(path)
    if is_ort(path):
        raise ModelError(
            f"{path}: in ORT format, which holds no graph to plan with: name the ONNX file that it "
            "was made of"
        )
    device = device or device_of(Recipe(target=target), chosen, heard)
    chosen.check("int8", device)
    loaded = load(path, chosen.name, "int8", threads=1, dump_dir=None, progress=heard)
    given = spread(loaded.given, loaded.model.graph)
    selection = select_given(loaded.model, given, chosen, "int8", Wishes(), calibrated=True)
    weight_bytes, int8_bytes = _weight_bytes(loaded.model, selection)
    return Inspection(
        model=sections.model_facts(loaded),
        plan=_outlook(loaded.model, selection, chosen.name, device),
        weight_bytes=weight_bytes,
        int8_weight_bytes=int8_bytes,
        notices=tuple(heard.notices),
    )


def bench(
    models: Sequence[Path | str],
    *,
    data: Source | None = None,
    recipe: Recipe | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> BenchReport:
    """Time models in turn; each is compared with the first.

    Args:
        models: ONNX files with the same inputs.
        data: Samples; the models run on the first. Without data, values are made up.
        recipe: What it does with pictures and text counts.
        threads: Threads of each session.
        progress: Hears of steps and notices.

    Raises:
        QcompileError: Bad input.
    """
    heard = StageLog(progress)
    if not models:
        raise RecipeError("nothing to time: name at least one model")
    first, *others = [Opened.of(Path(model), 1, heard) for model in models]
    for model in (first, *others):
        _check_timed(model)
    for other in others:
        _check_same_inputs(first, other)
    if data is None:
        feeds: Feeds = made_up_feeds(first.inputs)
    else:
        feeds = _samples(data, first, recipe or Recipe(), heard)[0]
    return BenchReport(
        rows=tuple(_timed([first, *others], feeds, threads, heard)),
        inputs="made up" if data is None else "data",
        threads=threads,
        cpu=host_cpu(),
        notices=tuple(heard.notices),
    )


def _predicts_tokens(session: Session, samples: Samples) -> bool:
    return perplexity.perplexity_metric(session.inputs, session.outputs, samples[0]) is not None


def _samples(source: Source, model: Opened, recipe: Recipe, progress: Progress) -> Samples:
    session = model.session
    reading = Reading.of(recipe.text, model.path, session.outputs)
    samples = open_samples(source, model.inputs, recipe.preprocess, progress, session, reading)
    check_samples(samples, model.inputs, progress)
    return samples


def _check_same_inputs(first: Opened, other: Opened) -> None:
    wanted = {port.name: port.dtype for port in first.session.inputs}
    found = {port.name: port.dtype for port in other.session.inputs}
    if wanted != found:
        raise ModelError(
            f"{other.path}: its inputs ({_listed(found)}) are not those of {first.path} "
            f"({_listed(wanted)})"
        )


def _check_timed(model: Opened) -> None:
    if model.foreign:
        raise ModelError(
            f"{model.path}: built for {model.foreign}: what it takes here says nothing of that; "
            "compare can judge its outputs"
        )


def _listed(ports: Mapping[str, np.dtype[np.generic]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in ports.items())


def _row(name: str, found: TensorStatistics, options: Calibration) -> TensorRow:
    if found.unbounded:
        return TensorRow(
            name=name, low=None, high=None, elements=found.elements, note="has infinite elements"
        )
    low = high = None
    if options.method != "auto":
        low, high = range_of(options.method, found, symmetric=False, percentile=options.percentile)
    return TensorRow(
        name=name,
        low=found.low,
        high=found.high,
        elements=found.elements,
        range_low=low,
        range_high=high,
    )


def _outlook(model: ir.Model, selection: Selection, target: str, device: str) -> PlanSummary:
    """Summarize a selection as a build does its plan, but without any grid."""
    plan = Plan(
        model=model_digest(model),
        target=target,
        device=device,
        scheme="int8",
        tensors={},
        nodes=selection.nodes,
    )
    kinds = {
        "activation": len(selection.activations),
        "weight": len(selection.weights),
        "bias": len(selection.biases),
    }
    summary = sections.plan_summary(plan, host_cpu(), model)
    return summary.model_copy(update={"tensors": {k: n for k, n in kinds.items() if n}})


def _weight_bytes(model: ir.Model, selection: Selection) -> tuple[int, int]:
    """Return the bytes of all float32 weights, and with the selected ones at a byte an element."""
    before = after = 0
    for graph in all_graphs(model):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                before += tensor.nbytes
                after += tensor.size if name in selection.weights else tensor.nbytes
    return before, after


def _timed(
    models: Sequence[Opened], feeds: Feeds, threads: int, progress: Progress
) -> Iterator[BenchRow]:
    """Yield the speed of each model, the first one's from its first comparison."""
    first, *others = models
    progress.step("time", 0, len(models))
    timings = []
    for done, other in enumerate(others, 1):
        timings.append(time_pair(first.path, other.path, feeds, threads=threads))
        progress.step("time", done, len(models))
    alone = timings[0].first_ms if timings else time_one(first.path, feeds, threads=threads)
    progress.step("time", len(models), len(models))
    yield BenchRow(model=str(first.path), median_ms=alone, bytes=first.bytes)
    for other, timing in zip(others, timings, strict=True):
        yield BenchRow(
            model=str(other.path),
            median_ms=timing.second_ms,
            bytes=other.bytes,
            ratio=timing.ratio,
            interval=timing.interval,
        )
