"""``qcompile check``: what a GPU's runtime would refuse, run in float, or compute differently."""

from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli.options import TARGET, Debug, Ep, Json, Quiet, Sm, TrtVersion, numbers
from qcompile.cli.screen import Screen
from qcompile.report.console_check import render_check

EPILOG = """
Exit code 1: the model breaks a rule without which it does not parse or build.

Examples:

  qcompile check model.onnx

  qcompile check model.onnx --target tensorrt-rtx --sm 86,89

  qcompile check model.onnx --shapes input:1x3x32x32,8x3x32x32,64x3x32x32

  qcompile check build_engine.sh --trt-version 11

  qcompile check model.onnx --target ort-cuda
"""

ERRORS_FOUND = 1


def check(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="An ONNX file of any tool; or a Python script (.py) or trtexec commands (.sh, "
            ".txt) that build an engine.",
            show_default=False,
        ),
    ],
    *,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="tensorrt, tensorrt-rtx or ort-cuda.", rich_help_panel=TARGET
        ),
    ] = "tensorrt",
    trt_version: TrtVersion = None,
    sm: Sm = None,
    ep: Ep = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:MIN,BEST,MAX",
            help="Shapes that the engine will be built for, of inputs with dynamic axes.",
            show_default=False,
            rich_help_panel=TARGET,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Check a model as it is against the rules of TensorRT, or of ONNX Runtime's CUDA provider.

    Needs neither of them, nor a GPU. Each finding names its rule, its node, and what to do.
    """
    from qcompile import checking

    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = checking.check(
            model,
            target=target,
            version=trt_version,
            sms=numbers("--sm", sm) or (),
            shapes=shapes,
            ep=ep,
            progress=progress,
        )
    screen.answer(result, render_check)
    if result.counts["error"]:
        raise typer.Exit(ERRORS_FOUND)
