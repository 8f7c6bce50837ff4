"""Convolutions and products that are too small for codes to be faster than half precision."""

import math

import onnx_ir as ir

from qcompile.planning.forms import convolution_kind

FEW = 16
"""Channels, or rows and columns of a matrix, below which kernels on codes are not filled."""

MULTIPLE = 8
"""Kernels of grouped convolutions take channels in such numbers."""

LARGEST_FP8 = 32
"""Largest window of an FP8 convolution."""


LEAST_WINDOW = 3
"""Least window of an int8 kernel of a grouped convolution."""


def small_kind(node: ir.Node, scheme: str) -> str:
    """Say what makes a Conv, MatMul or Gemm with constant weights better left in float.

    The limits are those of NVIDIA's own quantizer: facts of its TensorRT kernels.

    Args:
        node: Its weight has a shape.
        scheme: int8 or fp8.

    Returns:
        channels, groups, fp8 convolution, columns, row; or nothing where codes pay.
    """
    weight = node.inputs[1]
    if weight is None or weight.shape is None:
        return ""
    shape = [int(d) for d in weight.shape if isinstance(d, int)]
    if node.op_type != "Conv":
        few = min(shape[:2], default=0) < FEW
        return "columns" if few else "row" if _is_vector(node) else ""
    dense = convolution_kind(node) == "dense"
    if scheme == "fp8":
        large = min(shape[:2]) > FEW and math.prod(shape[2:]) <= LARGEST_FP8
        return "" if dense and large else "fp8 convolution"
    if dense:
        return "channels" if _few_channels(node, shape[0], shape[1], shape[2:]) else ""
    ragged = shape[0] % MULTIPLE != 0 or any(size < LEAST_WINDOW for size in shape[2:])
    return "groups" if ragged else ""


def _few_channels(node: ir.Node, outputs: int, inputs: int, window: list[int]) -> bool:
    if outputs >= FEW and inputs >= FEW:
        return False
    value = node.inputs[0]
    first = value is not None and value.producer() is None
    filled = outputs % MULTIPLE == 0 or inputs % MULTIPLE == 0
    square = len(set(window)) <= 1
    return not (filled and square and (first or outputs >= FEW * inputs))


def _is_vector(node: ir.Node) -> bool:
    """Say whether a product has a single row: it then takes as long as reading its weights."""
    value = node.inputs[0]
    if value is None or value.shape is None or len(value.shape) == 0:
        return False
    rows = list(value.shape[:-1])
    return all(isinstance(d, int) for d in rows) and math.prod(rows) == 1
