"""``qcompile dequantize``: a quantized model becomes a float model."""

from qcompile.cli.options import Debug, ForceFile, Json, ModelFile, OnnxOutput, Quiet
from qcompile.cli.screen import Screen
from qcompile.report.console_results import render_dequantized

EPILOG = """
Examples:

  qcompile dequantize quantized.onnx -o float.onnx

  qcompile build float.onnx --int8 --calib data/

The second line calibrates anew; qcompile build quantized.onnx keeps the scales.
"""


def dequantize(
    model: ModelFile,
    *,
    output: OnnxOutput,
    force: ForceFile = False,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Take the codes out of a quantized model: weights become what their codes stand for.

    Reads QuantizeLinear and DequantizeLinear of all types, ONNX Runtime's QLinear operators,
    weights in groups (MatMulNBits), and what dynamic quantization writes. Activations are no longer
    rounded; what cannot be turned to floats stays, and is named.
    """
    from qcompile import commands

    screen = Screen(quiet=quiet, as_json=as_json)
    with screen.progress() as progress:
        result = commands.dequantize(model, output, force=force, progress=progress)
    screen.answer(result, render_dequantized)
