"""Rules L21, L26, L36, L41, L47 and L48: which factors of a weighted node are codes, and how."""

from collections.abc import Iterator

import onnx_ir as ir

from qcompile.lint.operands import (
    Operand,
    Weighted,
    reshapes,
    track_axis,
    weighted_nodes,
)
from qcompile.lint.qdq import CODES, Form, axis, dtype, form, label, scale
from qcompile.lint.rule import Place, Rule, Setting, Severity
from qcompile.lint.scales import depends_on_inputs

_INT4 = ir.DataType.INT4


def _name(operand: Operand) -> str:
    return operand.value.name or "?"


def _quantized_one_sided(model: ir.Model, setting: Setting) -> Iterator[Place]:
    for weighted in weighted_nodes(model):
        if weighted.node.op_type == "ConvTranspose" and setting.flavour == "tensorrt-rtx":
            continue  # in float anyway: L41
        told = _missing(weighted)
        if told is not None:
            yield Place(label(weighted.node), told)


def _missing(weighted: Weighted) -> str | None:
    kind, data, weight = weighted.node.op_type, weighted.data, weighted.weight
    if data.codes is not None and weight.dequantize is None:
        what = "per channel" if weight.constant else "per tensor"
        return (
            f"its input {_name(data)} is quantized and the other, {_name(weight)}, is float, so it "
            f"computes in float and the rounding only costs: quantize {_name(weight)} {what}, or "
            "leave both in float"
        )
    weight_only = weight.constant and (weighted.is_product or weight.codes is _INT4)  # or L33, L34
    if weight.codes is not None and data.dequantize is None and not weight_only:
        return (
            f"its {'weight' if weight.constant else 'input'} {_name(weight)} is quantized and "
            f"{_name(data)} is float, so it computes in float: round {_name(data)} by Q/DQ "
            f"directly in front of this {kind}, or leave both in float"
        )
    return None


def _disturbed_weight(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    opset = model.opset_imports.get("", 1)
    for weighted in weighted_nodes(model):
        weight = weighted.weight
        move = _disturbing(weight, opset) if weight.constant else None
        if move is None:
            continue
        remedy = (
            "give the DQ scales of the wanted type, without Cast"
            if move.op_type == "Cast"
            else "store the codes in their last shape, with scales along the output channels"
        )
        yield Place(
            label(weighted.node),
            f"{move.op_type} {label(move)} lies between weight {_name(weight)} and its DQ, so the "
            f"weight is made float before the {weighted.node.op_type}: {remedy}",
        )


def _disturbing(weight: Operand, opset: int) -> ir.Node | None:
    """Return the node that keeps a DQ from being fused with the reader of a weight."""
    dequantize = weight.dequantize
    if dequantize is None:
        return None
    for move in weight.moves:
        if move.op_type == "Cast" and dtype(move.inputs[0]) != dtype(move.outputs[0]):
            return move
    kind = form(dequantize)
    if kind is Form.BLOCK:
        return next((move for move in weight.moves if reshapes(move)), None)
    channels = axis(dequantize, opset)
    if kind is not Form.AXIS or channels is None:
        return None
    return track_axis(channels, weight.moves)[1]


def _few_bit_products(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for weighted in weighted_nodes(model):
        data, weight = weighted.data, weighted.weight
        if not weighted.is_product or data.dequantize is None or weight.dequantize is None:
            continue
        if form(data.dequantize) is Form.BLOCK:
            continue  # blocks on both sides are what NVFP4 and MXFP8 are
        if not _needs_float(data.codes, weight.codes, form(weight.dequantize)):
            continue
        what = "INT4 codes" if weight.codes is _INT4 else "a scale for each block"
        yield Place(
            label(weighted.node),
            f"weight {_name(weight)} has {what} and input {_name(data)} is quantized, too: no "
            "documented kernel multiplies these, and the builder may take block scales for channel "
            f"scales; remove the Q/DQ of {_name(data)} (weight-only), or quantize the weight to "
            "INT8 or FP8 per channel",
        )


def _needs_float(data: ir.DataType | None, weight: ir.DataType | None, weight_form: Form) -> bool:
    if data is weight:
        return weight_form is Form.BLOCK
    return (data, weight) == (ir.DataType.INT8, _INT4)


def _mixed_codes(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for weighted in weighted_nodes(model):
        ours, theirs = weighted.data.codes, weighted.weight.codes
        if ours not in CODES or theirs not in CODES or ours is theirs:
            continue  # other types are other rules' business
        four_bits = theirs is _INT4
        if four_bits and (not weighted.is_product or _needs_float(ours, theirs, Form.TENSOR)):
            continue  # L34 and L36
        yield Place(
            label(weighted.node),
            f"input {_name(weighted.data)} is {ours.name} and {_name(weighted.weight)} is "
            f"{theirs.name}: no kernel multiplies these; quantize both to one type",
        )


def _quantized_deconvolution(model: ir.Model, setting: Setting) -> Iterator[Place]:
    if setting.flavour != "tensorrt-rtx":
        return
    for weighted in weighted_nodes(model):
        quantized = [o for o in (weighted.data, weighted.weight) if o.dequantize is not None]
        if weighted.node.op_type == "ConvTranspose" and quantized:
            names = " and ".join(_name(o) for o in quantized)
            yield Place(
                label(weighted.node),
                f"TensorRT-RTX computes ConvTranspose in float, so the Q/DQ of {names} only costs: "
                "remove it",
            )


def _computed_scale_of_convolution(model: ir.Model, setting: Setting) -> Iterator[Place]:
    if setting.flavour != "tensorrt-rtx":
        return
    for weighted in weighted_nodes(model):
        if weighted.node.op_type != "Conv":
            continue
        data, weight = weighted.data.dequantize, weighted.weight.dequantize
        if data is None or weight is None:
            continue
        scales = (value for value in (scale(data), scale(weight)) if value is not None)
        computed = next(filter(depends_on_inputs, scales), None)
        if computed is not None:
            yield Place(
                label(weighted.node),
                f"scale {computed.name} is computed while the engine runs: the builder crashes; "
                "calibrate a constant, or leave the convolution in float",
            )


L21 = Rule(
    "L21",
    "both factors of a Conv, MatMul or Gemm are quantized, or neither (or only a MatMul's weight)",
    Severity.FLOAT,
    "documentation (explicit quantization); experiment, TensorRT-RTX 1.7.1: float kernels where "
    "one factor is float, also where Relu or Sigmoid stands between DQ and Conv; a MatMul with "
    "int8, int4 or fp8 weights alone is fused with their DQ",
    _quantized_one_sided,
)
L26 = Rule(
    "L26",
    "the DQ of a weight stands directly in front of its reader",
    Severity.FLOAT,
    "experiment, TensorRT-RTX 1.7.1: any Cast, and a Reshape that splits or merges the axis of the "
    "scales, or that follows blocks, lose the kernel; a Reshape that keeps "
    "that axis whole does not, nor does Transpose",
    _disturbed_weight,
)
L36 = Rule(
    "L36",
    "weights of four bits or in blocks are multiplied with float activations",
    Severity.NUMERICS,
    "experiment, TensorRT-RTX 1.7.1: INT4, INT8 and FP8 blocks with quantized activations build "
    "for weights [K, N] into one product of codes and a multiplication after the sum, which block "
    "scales do not allow; transposed weights do not build; INT4 per channel is widened to INT8",
    _few_bit_products,
)
L41 = Rule(
    "L41",
    "ConvTranspose is left in float (TensorRT-RTX)",
    Severity.WARNING,
    "experiment, TensorRT-RTX 1.7.1: a float deconvolution for per-tensor and per-channel weights",
    _quantized_deconvolution,
)
L47 = Rule(
    "L47",
    "both factors of a Conv, MatMul or Gemm are codes of one type",
    Severity.ERROR,
    "experiment, TensorRT-RTX 1.7.1: the builder refuses INT8 with FP8, and INT4 with FP8",
    _mixed_codes,
)
L48 = Rule(
    "L48",
    "the codes that a Conv multiplies have constant scales (TensorRT-RTX)",
    Severity.ERROR,
    "experiment, TensorRT-RTX 1.7.1: the builder crashes for INT8 and FP8; not with one float "
    "factor, and not for ConvTranspose and MatMul",
    _computed_scale_of_convolution,
)
