"""``qcompile compare``: two models on the same samples."""

from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli.options import (
    DATA,
    Debug,
    Jobs,
    Json,
    Metric,
    PictureRecipe,
    Quiet,
    said,
)
from qcompile.cli.screen import Screen
from qcompile.recipe import recipe_from
from qcompile.report.console_results import render_comparison

EPILOG = """
Examples:

  qcompile compare model.onnx model-int8-ort-cpu/model.onnx --data test/

  qcompile compare old.onnx new.onnx --data test.npz --metric scores:mean_iou --json
"""


def compare(
    reference: Annotated[
        Path, typer.Argument(metavar="A", help="The reference, an ONNX file.", show_default=False)
    ],
    model: Annotated[
        Path,
        typer.Argument(
            metavar="B", help="The model to judge; same inputs and outputs.", show_default=False
        ),
    ],
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Samples: a folder of .npz, .npy or pictures, one .npz, or module:callable.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ],
    metric: Metric = None,
    recipe: PictureRecipe = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Run two models on the same samples and tell how far B is from A.

    Signal to quantization noise, cosine and largest error of each output; agreement of the top
    classes; accuracy where the samples have labels; all with 95 % intervals.
    """
    from qcompile import commands

    asked = recipe_from(said({"metric": metric, "jobs": jobs}), recipe)
    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = commands.compare(reference, model, data, recipe=asked, progress=progress)
    screen.answer(result, render_comparison)
