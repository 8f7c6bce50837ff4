"""``qcompile export``: a torch model becomes an ONNX file."""

from typing import Annotated

import typer

from qcompile.cli.options import (
    DATA,
    TORCH,
    Debug,
    DynamicAxes,
    ForceFile,
    Jobs,
    Json,
    OnnxOutput,
    PictureRecipe,
    Quiet,
    SequenceLength,
    Tokenizer,
    said,
)
from qcompile.cli.screen import Screen
from qcompile.recipe import recipe_from
from qcompile.report.console_results import render_export

EPILOG = """
Examples:

  qcompile export net.py:make -o net.onnx --dynamic-axes batch

  qcompile export package.nets:make -o net.onnx --shapes image:1x3x32x32,1x3x32x32,64x3x32x32

  qcompile export program.pt2 -o net.onnx

  qcompile export hf:bert-base/ -o bert.onnx

The function runs with your rights: name only what you trust. Files are not: a .pt2 is loaded only
where it holds no pickle, of a Hugging Face folder only config.json and .safetensors are read.

Exit codes: 0 exported, 2 bad input or an export that differs from the module, 130 interrupted, 1 a
defect of qcompile.
"""


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="module:callable or file.py:callable that returns an nn.Module (or a tuple of it "
            "and example inputs), an exported program (.pt2), or hf:DIR, a Hugging Face folder.",
            show_default=False,
        ),
    ],
    *,
    output: OnnxOutput,
    dynamic_axes: DynamicAxes = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:MIN,BEST,MAX",
            help="Least, best and largest shapes of inputs, such as "
            "image:1x3x32x32,8x3x32x32,64x3x32x32: sizes that differ are dynamic, and where there "
            "are no example inputs, some of the best shape are made up.",
            show_default=False,
            rich_help_panel=TORCH,
        ),
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples, as build takes them; without example inputs, the first is traced on.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    recipe: PictureRecipe = None,
    force: ForceFile = False,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Turn a torch model into an ONNX file, and measure how far the file is from the module.

    Both are run on the example inputs and on random ones within the dynamic sizes. An output that
    is off by more than 1e-4 (relative L2; 1e-2 with float16 weights) is an error.
    """
    options = {"text": {"tokenizer": tokenizer, "length": sequence_length}, "jobs": jobs}
    asked = recipe_from(said(options), recipe)
    from qcompile import tracing

    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = tracing.export(
            source,
            output,
            dynamic_axes=dynamic_axes or (),
            shapes=shapes,
            calib=calib,
            recipe=asked,
            force=force,
            progress=progress,
        )
    screen.answer(result, render_export)
