"""Rules L01 to L10: what the parser asserts of scale, zero point and code type of a Q/DQ node."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompile.graph.walk import is_constant
from qcompile.lint.qdq import (
    CODES,
    REALS,
    code_type,
    constants,
    data,
    dtype,
    is_dequantize,
    is_quantize,
    label,
    numbers,
    qdq_nodes,
    quantizer,
    scale,
    shape,
    source,
    spelled,
    zero_point,
)
from qcompile.lint.rule import Place, Rule, Setting, Severity

_FP8 = ir.DataType.FLOAT8E4M3FN
# TensorRT narrows double constants by itself; the MX operators read uint8 scales as powers of two.
_SCALES = REALS | {ir.DataType.DOUBLE}
_UNSTORABLE = frozenset(
    {
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.INT2,
        ir.DataType.UINT2,
        ir.DataType.UINT4,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
        ir.DataType.FLOAT8E8M0,
    }
)


def _no_scale(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        if scale(node) is None:
            yield Place(label(node), f"{node.op_type} has no scale: give it one as second input")


def _bad_scale(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        value = scale(node)
        values = numbers(value)
        if value is None or values is None:
            continue
        kind = dtype(value)
        if kind not in _SCALES and not (kind == ir.DataType.UINT8 and "MX" in node.op_type):
            yield Place(
                label(node), f"scale {value.name} is {spelled(kind)}: store it as float or float16"
            )
        elif not (np.isfinite(values) & (values > 0)).all():
            bad = values[~(np.isfinite(values) & (values > 0))]
            yield Place(
                label(node),
                f"scale {value.name} holds {bad.reshape(-1)[0]:g} ({bad.size} of {values.size} "
                "elements): scales must be above 0 and finite; a channel of zeros takes any scale",
            )


def _zero_points(model: ir.Model) -> Iterator[tuple[ir.Node, ir.DataType | None, float]]:
    """Yield the Q/DQ nodes whose zero point is not 0, its type, and its element furthest from 0."""
    for node in qdq_nodes(model):
        values = numbers(zero_point(node))
        if values is not None and values.any():
            worst = values.reshape(-1)[np.abs(values).argmax()]
            yield node, dtype(zero_point(node)), float(worst)


def _asymmetric(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, kind, worst in _zero_points(model):
        if kind != _FP8:
            yield Place(
                label(node),
                f"zero point {worst:g} ({spelled(kind)}): TensorRT takes symmetric codes only; "
                "quantize symmetrically, in int8",
            )


def _ignored_zero_point(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, kind, worst in _zero_points(model):
        if kind == _FP8:
            yield Place(
                label(node),
                f"zero point {worst:g} of fp8 codes is ignored without a word: set it to 0 and "
                "choose the scale for that",
            )


def _sizes_differ(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        scales, zeros = shape(scale(node)), shape(zero_point(node))
        if scales is None or zeros is None or dtype(zero_point(node)) == _FP8:
            continue
        if np.prod(scales) != np.prod(zeros):
            yield Place(
                label(node),
                f"zero point of shape {list(zeros)} for a scale of shape {list(scales)}: give both "
                "the same number of elements",
            )


def _unsigned(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        if not is_quantize(node) or scale(node) is None:
            continue
        values = numbers(zero_point(node))
        if values is not None and dtype(zero_point(node)) == ir.DataType.UINT8 and not values.any():
            yield Place(
                label(node),
                "uint8 codes with zero point 0 become int8: codes above 127 saturate, half the "
                "range is lost; quantize to int8",
            )
        elif _is_unsigned_by_default(node):
            yield Place(
                label(node),
                "without a zero point, ONNX makes uint8 codes and TensorRT int8: what is above "
                "127 scales saturates, what is below 0 does not; give an int8 zero point of 0",
            )


def _is_unsigned_by_default(node: ir.Node) -> bool:
    standard = node.op_type == "QuantizeLinear"
    return standard and zero_point(node) is None and "output_dtype" not in node.attributes


def _unsigned_codes(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        made_here = quantizer(data(node)) is not None
        mx = "MX" in node.op_type
        if is_dequantize(node) and not made_here and not mx and _is(node, ir.DataType.UINT8):
            yield Place(label(node), f"reads uint8 codes ({_data_name(node)}): store them as int8")


def _unstorable(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for value in constants(model):
        kind = dtype(value)
        if kind in _UNSTORABLE:
            yield Place(
                str(value.name),
                f"a constant of type {spelled(kind)} is refused before any node is read: "
                "TensorRT stores int8, int4, fp8 e4m3fn and fp4 codes",
            )


def _quantized_bias(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        if is_dequantize(node) and _is(node, ir.DataType.INT32):
            yield Place(
                label(node),
                f"reads int32 codes ({_data_name(node)}), as of a quantized bias: keep the bias "
                "in float (onnxruntime: extra_options QuantizeBias=False)",
            )


def _odd_codes(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    others = {ir.DataType.UINT8, ir.DataType.INT32}  # rules of their own
    for node in qdq_nodes(model):
        kind = code_type(node)
        if kind is None or kind in CODES | others:
            continue
        if is_dequantize(node) and quantizer(data(node)) is not None:
            continue  # said of the Q
        if not is_constant(source(data(node) if is_dequantize(node) else zero_point(node))):
            yield Place(
                label(node),
                f"codes of type {spelled(kind)}: TensorRT has int8, int4, fp8 e4m3fn and fp4",
            )


def _is(node: ir.Node, kind: ir.DataType) -> bool:
    return code_type(node) == kind


def _data_name(node: ir.Node) -> str:
    value = data(node)
    return "" if value is None else str(value.name)


_ERROR, _NUMERICS = Severity.ERROR, Severity.NUMERICS
_PARSER = "parser of onnx-tensorrt 11.0"
_TRIED = "experiment, TensorRT-RTX 1.7.1"

RULES = (
    Rule("L01", "a Q or DQ node has a scale", _ERROR, f"{_PARSER}; {_TRIED}", _no_scale),
    Rule(
        "L02",
        "a scale is float, float16 or bfloat16, and all of it above 0 and finite",
        _ERROR,
        f"{_PARSER}; {_TRIED}, which lets an infinite scale through",
        _bad_scale,
    ),
    Rule("L03", "zero points are 0", _ERROR, f"{_PARSER}; {_TRIED}", _asymmetric),
    Rule(
        "L04",
        "zero points of fp8 codes are 0, too",
        _NUMERICS,
        f"{_PARSER}; {_TRIED}",
        _ignored_zero_point,
    ),
    Rule(
        "L05",
        "a zero point has as many elements as its scale",
        _ERROR,
        f"{_PARSER}; {_TRIED}",
        _sizes_differ,
    ),
    Rule("L06", "a Q makes signed codes", _NUMERICS, f"{_PARSER}; {_TRIED}", _unsigned),
    Rule("L07", "a DQ reads signed codes", _ERROR, f"{_PARSER}; {_TRIED}", _unsigned_codes),
    Rule(
        "L08",
        "constants have types that TensorRT can store",
        _ERROR,
        f"{_TRIED}, uint32, uint64, e8m0 and Constant nodes, too",
        _unstorable,
    ),
    Rule(
        "L09",
        "biases are float",
        _ERROR,
        f"{_TRIED}; GitHub threads: onnxruntime quantizes biases by default",
        _quantized_bias,
    ),
    Rule(
        "L10",
        "codes are int8, int4, fp8 e4m3fn or fp4 e2m1",
        _ERROR,
        f"{_PARSER}; {_TRIED}",
        _odd_codes,
    ),
)
