"""The proof of an engine: its outputs, its layers and its speed against the float model."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from qcompile.compare.end_to_end import compare_all
from qcompile.compare.gates import seems_slower
from qcompile.compare.layers import LayerError, compare_layers, worst_first
from qcompile.compare.metric import Metric
from qcompile.compare.perplexity import perplexity_metric
from qcompile.compare.results import Comparison
from qcompile.data import Split
from qcompile.errors import EngineError
from qcompile.frontend import Loaded
from qcompile.progress import Progress
from qcompile.quantized import Quantized
from qcompile.recipe import Gates
from qcompile.runtime.made_up import made_up_feeds
from qcompile.runtime.ort import Session
from qcompile.runtime.prefill import first_token
from qcompile.runtime.provider import Engine
from qcompile.runtime.staged import StagedRun, run_staged
from qcompile.runtime.timing import Timing, time_pair
from qcompile.samples import Feeds, InMemory

LAYERED = 4
"""Samples of the layer-by-layer comparison."""

JUDGED_SECONDS, SHOWN_SECONDS = 2.0, 1.0
"""Of a measurement: where a gate judges the ratio, and where it is shown alone."""

AGAIN_SECONDS = 9.0
"""An engine that seems slower than float is timed once more, so long."""


def compare(
    loaded: Loaded,
    model: Path | ir.Model,
    engine: Engine | None,
    data: Split,
    metric: Metric | None,
    jobs: int,
    progress: Progress,
) -> dict[str, Comparison]:
    """Load and run the engine; compare it with the float model, on samples not calibrated on.

    Args:
        loaded: The float model.
        model: The rewritten model, as it is simulated.
        engine: What ONNX Runtime runs here, and who; None where the engine cannot run here.
        data: Its evaluation samples.
        metric: A score of both models.
        jobs: Threads.
        progress: Hears of steps and notices.

    Returns:
        ``engine`` and ``simulated``; nothing where there are no samples, for a model too large to
        be held as a whole ``engine`` alone.

    Raises:
        EngineError: ONNX Runtime refuses the engine, or it fails.
    """
    if loaded.session is None:
        if engine is None or engine.path.suffix != ".onnx":
            progress.notice("not compared: the model is too large to be run as a whole")
            return {}
        return _compare_staged(loaded, engine.path, data, metric, jobs, progress)
    runners = {}
    if engine:
        session = Session(engine.path, threads=jobs, provider=engine.provider)
        runners["engine"] = session.run
    runners["simulated"] = Session(model, threads=jobs, optimize=False).run
    if data.evaluation is None:
        return {}
    return compare_all(
        loaded.session.run, runners, data.evaluation, metric=metric, progress=progress
    )


def _compare_staged(
    loaded: Loaded,
    engine: Path,
    data: Split,
    metric: Metric | None,
    jobs: int,
    progress: Progress,
) -> dict[str, Comparison]:
    """Compare two models that are run a stage at a time; without samples run the engine alone."""
    samples = data.evaluation or InMemory([made_up_feeds(loaded.inputs)])
    with tempfile.TemporaryDirectory(dir=engine.parent) as folder:

        def staged(path: Path, name: str) -> StagedRun:
            scratch = Path(folder) / name
            return run_staged(ir.load(path), samples, scratch, threads=jobs, progress=progress)

        tested = staged(engine, "engine")
        if data.evaluation is None:
            progress.notice("the engine was run on made-up inputs, for there are no samples")
            return {}
        reference = staged(loaded.path, "float")
        return compare_all(
            reference.run, {"engine": tested.run}, samples, metric=metric, progress=progress
        )


def own_metric(loaded: Loaded, data: Split) -> Metric | None:
    """Return perplexity where the model predicts the tokens that it is given."""
    if data.evaluation is None:
        return None
    return perplexity_metric(loaded.inputs, loaded.outputs, data.evaluation[0])


def layers(
    model: ir.Model,
    made: Quantized,
    data: Split,
    jobs: int,
    progress: Progress,
) -> list[LayerError]:
    """Return the error of each rounded activation and weight, worst first.

    Args:
        model: The float graph that was planned.
        made: The same graph with the plan written into it.
        data: Activations are compared on its evaluation samples; without them, weights alone are.
        jobs: Threads.
        progress: Hears of the stage.
    """
    there = {out.name for node in made.model.graph for out in node.outputs}
    pairs = {
        name: f"{name}.quantized"
        for name, tensor in made.plan.tensors.items()
        if tensor.kind == "activation" and f"{name}.quantized" in there
    }
    if data.evaluation is None or not pairs:
        return made.weights
    activations = compare_layers(
        model,
        made.runnable,
        pairs,
        data.evaluation,
        limit_samples=LAYERED,
        threads=jobs,
        progress=progress,
    )
    return worst_first([*activations, *made.weights])


class Timings(NamedTuple):
    """How fast the engine is: what gates judge, and a language model's prefill."""

    judged: Timing
    prefill: Timing | None


def time_engine(
    loaded: Loaded,
    engine: Engine,
    data: Split,
    *,
    weights_alone: bool,
    gates: Gates,
    progress: Progress,
) -> Timings | None:
    """Time source model and engine in turn.

    Weights in few bits serve the step of generation, one token: a language model is timed there,
    and in its prefill.

    Args:
        loaded: The float model.
        engine: The engine's file.
        data: Timed on its first sample, else on made-up inputs, with a notice.
        weights_alone: The scheme is weight-only.
        gates: Say whether the ratio is judged. Unless a slower engine is allowed, that it is slower
            is confirmed by a longer measurement, which then counts: a disturbed machine shows the
            same pair of models up to 10 % apart.
        progress: Hears of the stage.

    Returns:
        None, with a notice, where made-up inputs do not fit the model, or it is too large.

    Raises:
        EngineError: A model does not run on a sample.
    """
    samples = data.evaluation or data.calibration
    if loaded.session is None:
        progress.notice("not timed: the float model is too large to be loaded as a whole")
        return None
    if samples is None:
        progress.notice("timed on made-up inputs, for there are no samples")
    feeds: Feeds = samples[0] if samples else made_up_feeds(loaded.inputs)
    token = first_token(feeds, loaded.inputs) if weights_alone else None
    progress.step("time", 0, 1)
    try:
        pair, on = (loaded.floating, engine.path), engine.provider
        judged = not gates.allow_slower or gates.min_speedup is not None
        seconds = JUDGED_SECONDS if judged else SHOWN_SECONDS
        timing = time_pair(*pair, token or feeds, seconds=seconds, provider=on)
        if not gates.allow_slower and seems_slower(timing):
            progress.notice(f"seemed slower than float ({timing.ratio:.2f}x): timed again, longer")
            timing = time_pair(*pair, token or feeds, seconds=AGAIN_SECONDS, provider=on)
        prefill = time_pair(*pair, feeds, seconds=SHOWN_SECONDS, provider=on) if token else None
    except EngineError as error:
        if samples is not None:
            raise
        progress.notice(f"neither run nor timed: made-up inputs do not fit ({error})")
        return None
    progress.step("time", 1, 1)
    return Timings(timing, prefill)
