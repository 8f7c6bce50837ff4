"""Rules L11 to L15, L27 and L45: the shape of a scale, where it comes from, and how small it is."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from qcompile.lint.qdq import (
    CODES,
    FOUR_BITS,
    Form,
    axis,
    block,
    code_type,
    data,
    dtype,
    form,
    is_dequantize,
    is_quantize,
    label,
    numbers,
    opset_of,
    qdq_nodes,
    quantizer,
    scale,
    shape,
    spelled,
)
from qcompile.lint.rule import Place, Rule, Setting, Severity

_BLOCKED = CODES - {ir.DataType.INT8}
_PRECISE: Mapping[ir.DataType, tuple[float, float]] = {
    ir.DataType.FLOAT16: (2.0**-17, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-126, 2.0**128 - 2.0**120),
    ir.DataType.FLOAT: (2.0**-126, 2.0**128 - 2.0**104),
}
"""The least number with eight bits and the largest one of each type of scales."""


def _wrong_length(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        dims, scales = _dims(data(node)), shape(scale(node))
        if dims is None or scales is None or form(node) is not Form.AXIS:
            continue
        at = axis(node, opset_of(model))
        if at is None or not 0 <= at < len(dims):
            said = "" if "axis" in node.attributes else " (the default)"
            yield Place(
                label(node),
                f"axis {at}{said} for data of shape {_text(dims)}: name the axis of the channels",
            )
        elif isinstance(dims[at], int) and dims[at] != scales[0]:
            yield Place(
                label(node),
                f"{scales[0]} scales for the {dims[at]} elements of axis {at} of data of shape "
                f"{_text(dims)}: give one for each, or name the right axis",
            )


def _bad_blocks(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        dims, scales = _dims(data(node)), shape(scale(node))
        if dims is None or scales is None or form(node) is not Form.BLOCK:
            continue
        problem = _block_problem(dims, scales, axis(node, opset_of(model)))
        if problem:
            shapes = f"scale of shape {list(scales)} for data of shape {_text(dims)}"
            yield Place(label(node), f"{shapes}: {problem}")


def _block_problem(
    dims: tuple[int | str, ...], scales: tuple[int, ...], axis: int | None
) -> str | None:
    if len(dims) != len(scales):
        return "a scale has rank 0, rank 1 or the rank of its data"
    differ = [i for i, (n, m) in enumerate(zip(dims, scales, strict=True)) if n != m]
    if len(differ) != 1:
        return f"they must differ in one dimension, the blocked one, not in {len(differ)}"
    whole, parts = dims[differ[0]], scales[differ[0]]
    if axis is not None and differ[0] != axis:
        return f"they differ in dimension {differ[0]}, but axis is {axis}"
    if not isinstance(whole, int):
        return f"the blocked dimension {differ[0]} must be known when the engine is built"
    if parts == 0 or whole % parts:
        return f"{whole} does not divide into {parts} blocks; pad the weight or change the block"
    return None


def _wrong_block_axis(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        dims, blocked = shape(data(node)), block(node) if form(node) is Form.BLOCK else None
        if blocked is not None and dims is not None and blocked[0] < len(dims) - 2:
            yield Place(
                label(node),
                f"blocks along axis {blocked[0]} of {len(dims)}: only the last two axes may be "
                "blocked; quantize by channel, or transpose behind the DQ",
            )


def _blocks_of_int8(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        kind = code_type(node)
        blocked = form(node) is Form.BLOCK and block(node) is not None
        if blocked and kind is not None and kind not in _BLOCKED and not _said_of_quantizer(node):
            yield Place(
                label(node),
                f"{spelled(kind)} codes in blocks save storage alone, the product is computed in "
                "float: take int4 or fp8, or one scale a channel",
            )


def _odd_count(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        kind, dims = code_type(node), shape(data(node))
        odd = kind in FOUR_BITS and dims is not None and math.prod(dims) % 2
        if dims is not None and odd and not _said_of_quantizer(node):
            yield Place(
                label(node),
                f"{math.prod(dims)} {spelled(kind)} codes ({list(dims)}): two share a byte, so "
                "their number must be even; pad the weight",
            )


def _computed_scale(model: ir.Model, setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        value = scale(node)
        if value is None or not depends_on_inputs(value):
            continue
        cost = (
            "products compute in float"
            if setting.flavour == "tensorrt-rtx"
            else "TensorRT before 10.13 refuses it, later versions may compute in float"
        )
        yield Place(
            label(node),
            f"scale {value.name} is computed while the engine runs: {cost}; calibrate a constant",
        )


def depends_on_inputs(value: ir.Value) -> bool:
    """Say whether a scale is computed while the engine runs; those of dynamic blocks may be."""
    waiting, seen = [value], {value}
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None and not value.is_initializer():
            return True
        if node is None or (node.domain == "trt" and "DynamicQuantize" in node.op_type):
            continue  # block scales of NVFP4 and MXFP8 are made so
        new = {source for source in node.inputs if source is not None} - seen
        seen |= new
        waiting += new
    return False


def _coarse_scale(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        values, kind = numbers(scale(node)), _scale_type(node, opset_of(model))
        if values is None or kind is None or kind not in _PRECISE:
            continue
        least, most = _PRECISE[kind]
        small, large = (values > 0) & (values < least), np.isfinite(values) & (values > most)
        if (small | large).any():
            bad = values[small | large].reshape(-1)
            side = f"below {least:.3g}, so it loses bits" if small.any() else f"above {most:.3g}"
            yield Place(
                label(node),
                f"scale {bad[0]:.3g} ({bad.size} of {values.size}) in {spelled(kind)} is {side}: "
                "keep scales in float, or widen the range",
            )


def _scale_type(node: ir.Node, opset: int) -> ir.DataType | None:
    """Return the type in which the scale is used: before opset 19 that of a Q's input."""
    kind, made_of = dtype(scale(node)), dtype(data(node))
    return (
        ir.DataType.FLOAT16
        if (is_quantize(node) and opset < 19 and made_of == ir.DataType.FLOAT16)
        else kind
    )


def _said_of_quantizer(node: ir.Node) -> bool:
    return is_dequantize(node) and quantizer(data(node)) is not None


def _dims(value: ir.Value | None) -> tuple[int | str, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else str(d.value or "?") for d in value.shape)


def _text(dims: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, dims))}]"


_ERROR = Severity.ERROR
_PARSER = "parser of onnx-tensorrt 11.0"
_HEADER = "header NvInfer.h"
_TRIED = "experiment, TensorRT-RTX 1.7.1"

RULES = (
    Rule(
        "L11",
        "per-axis: a scale for each element of the axis",
        _ERROR,
        f"{_PARSER}; {_TRIED}",
        _wrong_length,
    ),
    Rule(
        "L12",
        "block-wise: scale and data differ in the blocked dimension alone, in whole blocks",
        _ERROR,
        f"{_PARSER}; {_TRIED}: the dimension is that of the axis, and one must differ",
        _bad_blocks,
    ),
    Rule(
        "L13",
        "blocks lie along one of the last two axes",
        _ERROR,
        f"{_HEADER}; {_TRIED}",
        _wrong_block_axis,
    ),
    Rule(
        "L14",
        "blocks are of int4, fp8 or fp4 codes",
        Severity.FLOAT,
        f"{_HEADER}; {_TRIED}",
        _blocks_of_int8,
    ),
    Rule(
        "L15",
        "the number of 4-bit codes is even",
        _ERROR,
        f"{_PARSER}; {_TRIED}: the parser refuses it",
        _odd_count,
    ),
    Rule(
        "L27",
        "scales are constants",
        Severity.FLOAT,
        f"{_TRIED}: MatMul runs in float (of Conv see L48), constant expressions are folded; "
        f"{_HEADER}: allowed since 10.13",
        _computed_scale,
    ),
    Rule(
        "L45",
        "scales keep eight bits or more in the type they are stored in",
        Severity.NUMERICS,
        "ModelOpt (it replaces zero scales by the least normal number); inference",
        _coarse_scale,
    ),
)
