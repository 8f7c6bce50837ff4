"""``qcompile bench``: how fast models run here."""

from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli.options import DATA, Debug, Json, PictureRecipe, Quiet
from qcompile.cli.screen import Screen
from qcompile.recipe import recipe_from
from qcompile.report.console_results import render_bench

EPILOG = """
Examples:

  qcompile bench model.onnx model-int8-ort-cpu/model.onnx

  qcompile bench model.onnx engine/model.onnx --data test/ --threads 4
"""


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            help="ONNX files for this machine; the first is what the others are compared with.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Take the inputs from these samples.",
            show_default="values made up for the timing, 1 for each dynamic dimension",
            rich_help_panel=DATA,
        ),
    ] = None,
    recipe: PictureRecipe = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of each session.")] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Time models in turn in one run; give ratios with 95 % intervals."""
    from qcompile import commands

    asked = recipe_from({}, recipe)
    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = commands.bench(models, data=data, recipe=asked, threads=threads, progress=progress)
    screen.answer(result, render_bench)
