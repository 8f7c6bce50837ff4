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
    SequenceLength,
    Tokenizer,
    flag,
    said,
)
from qcompile.cli.screen import Screen
from qcompile.errors import RecipeError
from qcompile.recipe import recipe_from
from qcompile.report.console_results import render_comparison

EPILOG = """
Examples:

  qcompile compare model.onnx model-int8-ort-cpu/model.onnx --data test/

  qcompile compare old.onnx new.onnx --data test.npz --metric scores:mean_iou --json

  qcompile compare llm.onnx llm-int4/model.onnx --data wikitext.txt --perplexity
"""


def compare(
    reference: Annotated[
        Path, typer.Argument(metavar="A", help="The reference, an ONNX file.", show_default=False)
    ],
    model: Annotated[
        Path,
        typer.Argument(
            metavar="B",
            help="The model to judge, ONNX or ORT format; same inputs and outputs. What was built "
            "for another machine is simulated.",
            show_default=False,
        ),
    ],
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Samples: a folder of .npz, .npy, pictures or text, one .npz, .txt or .jsonl, or "
            "module:callable.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ],
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    perplexity: Annotated[
        bool,
        flag(
            "--perplexity",
            "How well both language models predict the next token; short for --metric perplexity.",
            DATA,
        ),
    ] = False,
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

    if perplexity and metric is not None:
        raise RecipeError("--perplexity is a metric: leave out --metric")
    options = {
        "text": {"tokenizer": tokenizer, "length": sequence_length},
        "metric": "perplexity" if perplexity else metric,
        "jobs": jobs,
    }
    asked = recipe_from(said(options), recipe)
    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = commands.compare(reference, model, data, recipe=asked, progress=progress)
    screen.answer(result, render_comparison)
