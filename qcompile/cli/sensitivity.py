"""``qcompile sensitivity``: which layers lose most by being quantized."""

from typing import Annotated

import typer

from qcompile.cli.options import (
    DATA,
    PRECISION,
    CalibMethod,
    CalibNeeded,
    CalibSamples,
    CpuOption,
    Debug,
    Ep,
    HighPrecision,
    Jobs,
    Json,
    Metric,
    ModelFile,
    Quiet,
    RecipeFile,
    SequenceLength,
    Sm,
    Target,
    Tokenizer,
    flag,
    numbers,
    said,
)
from qcompile.cli.screen import Screen
from qcompile.errors import RecipeError
from qcompile.recipe import recipe_from
from qcompile.report.console_sensitivity import render_sensitivity

EPILOG = """
Examples:

  qcompile sensitivity model.onnx --calib data/

  qcompile sensitivity model.onnx --calib data/ --eval test/ --metric scores:mean_iou

  qcompile sensitivity model.onnx --calib data/ --target tensorrt --sm 89 --fp8 --json

Leave the worst in float with build --exclude NAME, or let build --max-drop X choose the fewest.

What was measured is kept in QCOMPILE_CACHE (~/.cache/qcompile): a second run answers at once, and
one that was stopped goes on at the next layer.
"""


def sensitivity(
    model: ModelFile,
    *,
    calib: CalibNeeded,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="DATA",
            help="Samples that layers are measured on, in the same forms.",
            show_default="a fifth of --calib, held back",
            rich_help_panel=DATA,
        ),
    ] = None,
    metric: Metric = None,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Samples that each layer is measured on.",
            show_default="as many as 2e12 multiply-adds allow; 16, or all with a metric",
            rich_help_panel=DATA,
        ),
    ] = None,
    int8: Annotated[
        bool, flag("--int8", "Weights and activations in int8. The default.", PRECISION)
    ] = False,
    fp8: Annotated[
        bool, flag("--fp8", "Weights and activations in FP8 (E4M3).", PRECISION)
    ] = False,
    dynamic: Annotated[
        bool, flag("--dynamic", "Int8 with activations quantized while running.", PRECISION)
    ] = False,
    high_precision: HighPrecision = None,
    calib_method: CalibMethod = None,
    calib_samples: CalibSamples = None,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    target: Target = None,
    cpu: CpuOption = None,
    sm: Sm = None,
    ep: Ep = None,
    recipe: RecipeFile = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Rank layers by what quantizing each alone does to the outputs, or to a metric.

    Each layer is rounded on the grids that a build chooses before it mends anything: weights to
    the nearest code. Beside the loss stand the time of the layer in float and in codes, measured
    where the engine runs on this CPU, and its share of the multiply-adds.
    """
    schemes = {"int8": int8, "fp8": fp8, "int8-dynamic": dynamic}
    named = [scheme for scheme, said_so in schemes.items() if said_so]
    if len(named) > 1:
        raise RecipeError(f"{' and '.join(named)}: layers are ranked in one scheme; leave out one")
    options = {
        "scheme": named[0] if named else None,
        "target": target,
        "cpu": cpu,
        "sm": numbers("--sm", sm),
        "ep": ep,
        "high_precision": high_precision,
        "calibration": {"method": calib_method, "samples": calib_samples},
        "text": {"tokenizer": tokenizer, "length": sequence_length},
        "metric": metric,
        "jobs": jobs,
    }
    asked = recipe_from(said(options), recipe)
    from qcompile import ranking

    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = ranking.sensitivity(
            model, calib, evaluation=evaluation, recipe=asked, samples=samples, progress=progress
        )
    screen.answer(result, render_sensitivity)
