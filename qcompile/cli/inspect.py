"""``qcompile inspect``: what a model is and what a build would do with it."""

from qcompile.cli.options import CpuOption, Debug, Ep, Json, ModelFile, Quiet, Sm, Target
from qcompile.cli.screen import Screen
from qcompile.report.console_results import render_inspection

EPILOG = """
Examples:

  qcompile inspect model.onnx

  qcompile inspect model.onnx --cpu arm --json
"""


def inspect(
    model: ModelFile,
    target: Target = None,
    cpu: CpuOption = None,
    sm: Sm = None,
    ep: Ep = None,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Show a model's operators and sizes, what would be quantized, and why the rest would not.

    Needs no data and writes nothing. A build also measures errors, and may leave more in float.
    """
    from qcompile import commands

    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = commands.inspect(
            model, target=target or "ort-cpu", device=cpu or sm or ep, progress=progress
        )
    screen.answer(result, render_inspection)
