"""``qcompile calibrate``: collect statistics now, for builds to come."""

from typing import Annotated

import typer

from qcompile.cli.options import (
    DATA,
    CalibMethod,
    CalibNeeded,
    CalibSamples,
    Debug,
    Jobs,
    Json,
    ModelFile,
    Quiet,
    RecipeFile,
    SequenceLength,
    Tokenizer,
    said,
)
from qcompile.cli.screen import Screen
from qcompile.recipe import recipe_from
from qcompile.report.console_results import render_calibration

EPILOG = """
Examples:

  qcompile calibrate model.onnx --calib data/

  qcompile calibrate model.onnx --calib data/ --calib-method entropy --json

Statistics are kept in QCOMPILE_CACHE (~/.cache/qcompile) under a hash of graph and samples. They
are the same bits for any order of the samples; an interrupted run continues where it was.
"""


def calibrate(
    model: ModelFile,
    *,
    calib: CalibNeeded,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="DATA",
            help="The samples of the builds to come to compare on: their --eval.",
            show_default="a fifth of --calib, which is then not calibrated on",
            rich_help_panel=DATA,
        ),
    ] = None,
    calib_method: CalibMethod = None,
    calib_samples: CalibSamples = None,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    recipe: RecipeFile = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Run the samples through the float model and keep what each activation looked like.

    Builds of the same model on the same samples then reuse the statistics, whatever their method.
    The answer lists what was seen of each tensor and, for a single method, the range it gives.
    """
    options = {
        "calibration": {"method": calib_method, "samples": calib_samples},
        "text": {"tokenizer": tokenizer, "length": sequence_length},
        "jobs": jobs,
    }
    asked = recipe_from(said(options), recipe)
    from qcompile import commands

    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = commands.calibrate(
            model, calib, evaluation=evaluation, recipe=asked, progress=progress
        )
    screen.answer(result, render_calibration)
