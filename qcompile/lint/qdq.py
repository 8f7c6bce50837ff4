"""Small questions about Q/DQ nodes, in every spelling that TensorRT's parser takes.

The parser does not look at the domain: ``com.microsoft::QuantizeLinear`` is the standard operator.
Its own operators (domain ``trt``) have no limit by opset.
"""

import enum
from collections.abc import Iterator
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from qcompile.graph.walk import all_graphs, all_nodes, constant, is_constant

QUANTIZE = frozenset(
    {
        "QuantizeLinear",
        "TRT_FP8QuantizeLinear",
        "TRT_INT4QuantizeLinear",
        "TRT_MXFP8QuantizeLinear",
    }
)
DEQUANTIZE = frozenset(name.replace("Quantize", "Dequantize") for name in QUANTIZE)
DOMAINS = frozenset({"", "com.microsoft", "trt"})

CODES = frozenset(
    {ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4, ir.DataType.FLOAT4E2M1}
)
"""Types that TensorRT quantizes to."""
FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.FLOAT4E2M1})
REALS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types of scales, and of what a DQ makes."""

# What the codes of a weight may pass through on their way to its consumer.
_MOVES = frozenset({"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_CARRIES = _MOVES - {"Cast"} | {"Concat", "Expand", "Gather", "MaxPool", "Pad", "Slice", "Split"}
# Through these the parser finds the constant that a scale or a zero point is.
_TRANSPARENT = frozenset({"Identity", "Cast"})
_OWN_TYPES = {
    "TRT_FP8QuantizeLinear": ir.DataType.FLOAT8E4M3FN,
    "TRT_INT4QuantizeLinear": ir.DataType.INT4,
    "TRT_MXFP8QuantizeLinear": ir.DataType.FLOAT8E4M3FN,
}
_LARGEST = 1 << 24
"""Elements of a scale or zero point that are looked at."""


class Form(enum.Enum):
    """Which elements share a scale."""

    TENSOR = "per-tensor"
    AXIS = "per-axis"
    BLOCK = "block-wise"
    UNKNOWN = "unknown: the scale's shape is not known"


def is_quantize(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Return whether the node makes codes of real numbers."""
    return node is not None and node.domain in DOMAINS and node.op_type in QUANTIZE


def is_dequantize(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Return whether the node makes real numbers of codes."""
    return node is not None and node.domain in DOMAINS and node.op_type in DEQUANTIZE


def qdq_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield all Q and DQ nodes, subgraphs included, in the model's order."""
    return (node for node, _ in all_nodes(model) if is_quantize(node) or is_dequantize(node))


def constants(model: ir.Model) -> Iterator[ir.Value]:
    """Yield all initializers and outputs of Constant nodes, subgraphs included; nothing is read."""
    for graph in all_graphs(model):
        yield from graph.initializers.values()
    for node, _ in all_nodes(model):
        yield from (value for value in node.outputs if is_constant(value))


def opset_of(model: ir.Model) -> int:
    """Return the version of the default domain."""
    return model.opset_imports.get("", 0)


def spelled(kind: ir.DataType | None) -> str:
    """Return the name of a type as messages print it."""
    return "of unknown type" if kind is None else kind.name.lower()


def label(node: ir.Node) -> str:
    """Return the node's name, or that of its first output where it has none."""
    return node.name or next((value.name for value in node.outputs if value.name), node.op_type)


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input of the node, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def data(node: ir.Node) -> ir.Value | None:
    """Return what a Q or DQ node converts."""
    return input_of(node, 0)


def scale(node: ir.Node) -> ir.Value | None:
    """Return the scale of a Q or DQ node."""
    return input_of(node, 1)


def zero_point(node: ir.Node) -> ir.Value | None:
    """Return the zero point of a Q or DQ node, None where it is left out."""
    return input_of(node, 2)


def shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of a value where all of it is known."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    return tuple(d for d in dims if isinstance(d, int)) if value.shape.is_static() else None


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions of a value, where known."""
    return None if value is None or value.shape is None else len(value.shape)


def dtype(value: ir.Value | None) -> ir.DataType | None:
    """Return the type of a value's elements, where known."""
    if value is None:
        return None
    return value.dtype if value.const_value is None else value.const_value.dtype


def source(value: ir.Value | None) -> ir.Value | None:
    """Return the value behind Identity and Cast nodes, as the parser looks for constants."""
    while value is not None:
        node = value.producer()
        if node is None or node.domain or node.op_type not in _TRANSPARENT or not node.inputs:
            return value
        value = node.inputs[0]
    return None


def numbers(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant scale or zero point as float64; None where it is computed or very large."""
    array = constant(source(value), max_elements=_LARGEST)
    return None if array is None or array.dtype.kind in "OSU" else array.astype(np.float64)


def quantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the Q that made these codes, also behind nodes that only move them; else None."""
    while value is not None:
        node = value.producer()
        if node is None or is_quantize(node):
            return node
        if node.domain or node.op_type not in _CARRIES or not node.inputs:
            return None
        value = node.inputs[0]
    return None


def code_type(node: ir.Node) -> ir.DataType | None:
    """Return the type of the codes of a Q or DQ node, as TensorRT's parser sees it, where known.

    A Q takes that of its zero point (uint8 becomes int8), or its ``output_dtype``, or else int8
    (the ONNX standard says uint8). A DQ takes that of the Q that made its codes, or else of the
    codes as they are declared.
    """
    if is_dequantize(node):
        maker = quantizer(data(node))
        if maker is not None:
            return code_type(maker)
        return dtype(data(node)) or dtype(zero_point(node))
    if node.op_type in _OWN_TYPES:
        return _OWN_TYPES[node.op_type]
    if zero_point(node) is not None:
        kind = dtype(zero_point(node))
        return ir.DataType.INT8 if kind == ir.DataType.UINT8 else kind
    return _output_type(node) or ir.DataType.INT8


def real_type(node: ir.Node) -> ir.DataType | None:
    """Return the type of the real numbers of a Q or DQ node, where known.

    A DQ makes ``output_dtype`` or else the scale's type, so that decides its reader's precision.
    """
    if is_quantize(node):
        return dtype(data(node))
    return _output_type(node) or dtype(scale(node))


def _output_type(node: ir.Node) -> ir.DataType | None:
    """Return what ``output_dtype`` says, None where it says nothing or what is no type."""
    try:
        return ir.DataType(_whole(node, "output_dtype", 0)) or None
    except ValueError:
        return None


def _whole(node: ir.Node, name: str, default: int) -> int:
    """Return an attribute; the checker has not seen those of other domains, so it may be no int."""
    found = node.attributes.get(name)
    if found is None or found.is_ref() or found.type != ir.AttributeType.INT:
        return default
    return found.as_int()


def form(node: ir.Node) -> Form:
    """Return which elements share a scale; a scale with one element is per-tensor at any rank."""
    dims = shape(scale(node))
    if dims is None:
        return Form.UNKNOWN
    if int(np.prod(dims)) == 1:
        return Form.TENSOR
    return Form.AXIS if len(dims) == 1 else Form.BLOCK


def axis(node: ir.Node, opset: int) -> int | None:
    """Return the axis of a per-axis Q or DQ node, counted from the front; None where unknown.

    Args:
        node: A Q or DQ node.
        opset: Of the default domain; up to 12, operators had no axis, and TensorRT takes 0.
    """
    wanted = _whole(node, "axis", 1 if opset >= 13 else 0)
    dims = rank(data(node))
    if wanted >= 0:
        return wanted
    return None if dims is None else wanted + dims


def block(node: ir.Node) -> tuple[int, int] | None:
    """Return the axis and size of the blocks of a block-wise node; None where they are unclear."""
    whole, parts = shape(data(node)), shape(scale(node))
    if whole is None or parts is None or len(whole) != len(parts):
        return None
    found = [
        (i, n // max(m, 1)) for i, (n, m) in enumerate(zip(whole, parts, strict=True)) if n != m
    ]
    return found[0] if len(found) == 1 else None


def is_weight(value: ir.Value | None) -> bool:
    """Return whether a value is computed of one constant by moves, casts, Q and DQ alone."""
    while value is not None and not is_constant(value):
        node = value.producer()
        if node is None or not node.inputs:
            return False
        moves = not node.domain and node.op_type in _MOVES
        if not (moves or is_quantize(node) or is_dequantize(node)):
            return False
        value = node.inputs[0]
    return value is not None
