"""The other commands, on the parts of a build: calibrate, compare, inspect, bench."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from qcompile.errors import DataError, ModelError, RecipeError
from qcompile.frontend import check_float, jobs_of, load
from qcompile.graph.digest import model_digest
from qcompile.graph.walk import all_graphs
from qcompile.numerics.ranges import range_of
from qcompile.plan import CALIBRATED, Plan
from qcompile.planning.pays import select_paying
from qcompile.planning.plan import activations_of, wishes_of
from qcompile.planning.select import Selection
from qcompile.planning.wishes import Wishes
from qcompile.progress import Progress, StageLog
from qcompile.recipe import Calibration, Recipe
from qcompile.report.results import (
    BenchReport,
    BenchRow,
    CalibrationReport,
    ComparisonReport,
    Inspection,
    TensorRow,
)
from qcompile.report.schema import PlanSummary
from qcompile.runtime.host import host_cpu
from qcompile.runtime.made_up import made_up_feeds
from qcompile.runtime.ort import Session
from qcompile.runtime.timing import time_one, time_pair
from qcompile.samples import Feeds, Port, Samples
from qcompile.source.files import model_files
from qcompile.source.onnx_file import load_model
from qcompile.source.ports import with_head_sizes
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
    check_float(loaded)
    data = split_data(calib, evaluation, loaded, recipe, heard)
    if data.calibration is None:
        raise DataError(f"{calib}: no samples to calibrate with")
    names = activations_of(select_paying(loaded.model, target, recipe.scheme, wishes_of(recipe)))
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
        model: Another with the same inputs and outputs.
        data: Samples; with labels, accuracies are compared too.
        recipe: Its metric, what it does with pictures and text, and its jobs count.
        progress: Hears of steps and notices.

    Raises:
        QcompileError: Bad input.
    """
    recipe, heard = recipe or Recipe(), StageLog(progress)
    metric = load_metric(recipe.metric) if recipe.metric else None
    jobs = jobs_of(recipe, heard)
    first = _Opened.of(Path(reference), jobs, heard)
    second = _Opened.of(Path(model), jobs, heard)
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
    device = device or device_of(Recipe(target=target), chosen, heard)
    chosen.check("int8", device)
    loaded = load(path, chosen.name, "int8", threads=1, dump_dir=None, progress=heard)
    selection = select_paying(loaded.model, chosen, "int8", Wishes())
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
    first, *others = [_Opened.of(Path(model), 1, heard) for model in models]
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


@dataclass(frozen=True)
class _Opened:
    """A model to run as it is, after the checks that any model goes through."""

    path: Path
    bytes: int
    session: Session
    inputs: tuple[Port, ...]

    @classmethod
    def of(cls, path: Path, threads: int, progress: Progress) -> "_Opened":
        loaded = load_model(path, progress)
        size = sum(file.stat().st_size for file in model_files(path))
        session = Session(path, threads=threads)
        return cls(path, size, session, with_head_sizes(session.inputs, loaded))


def _predicts_tokens(session: Session, samples: Samples) -> bool:
    return perplexity.perplexity_metric(session.inputs, session.outputs, samples[0]) is not None


def _samples(source: Source, model: _Opened, recipe: Recipe, progress: Progress) -> Samples:
    session = model.session
    reading = Reading.of(recipe.text, model.path, session.outputs)
    samples = open_samples(source, model.inputs, recipe.preprocess, progress, session, reading)
    check_samples(samples, model.inputs, progress)
    return samples


def _check_same_inputs(first: _Opened, other: _Opened) -> None:
    wanted = {port.name: port.dtype for port in first.session.inputs}
    found = {port.name: port.dtype for port in other.session.inputs}
    if wanted != found:
        raise ModelError(
            f"{other.path}: its inputs ({_listed(found)}) are not those of {first.path} "
            f"({_listed(wanted)})"
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
    models: Sequence[_Opened], feeds: Feeds, threads: int, progress: Progress
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
