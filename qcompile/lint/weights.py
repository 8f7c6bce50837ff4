"""Rules L18, L19, L20, L33 and L34: shapes of scales, axes and blocks that keep low precision.

``RULES`` has L31, of the layers' sizes, too.
"""

from collections.abc import Iterator

import onnx_ir as ir

from qcompile.lint.operands import Weighted, track_axis, weighted_nodes
from qcompile.lint.qdq import (
    Form,
    axis,
    block,
    data,
    form,
    is_dequantize,
    is_quantize,
    is_weight,
    label,
    qdq_nodes,
    scale,
    shape,
)
from qcompile.lint.rule import Place, Rule, Setting, Severity
from qcompile.lint.sizes import L31

_INT4 = ir.DataType.INT4
_BLOCKS = (64, 128)


def _activation_channels(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        value = data(node)
        if form(node) not in {Form.AXIS, Form.BLOCK} or value is None or is_weight(value):
            continue
        maker = value.producer()
        if is_dequantize(node) and (is_quantize(maker) or _is_dynamic(maker)):
            continue  # said of the Q, or blocks with scales of their own in each run
        yield Place(
            label(node),
            f"{value.name} is an activation and has {form(node).value} scales "
            f"{list(shape(scale(node)) or ())}, so what reads it computes in float: one scale for "
            "the whole tensor, of shape []",
        )


def _is_dynamic(node: ir.Node | None) -> bool:
    return node is not None and node.op_type.endswith("DynamicQuantize")


def _activation_scale_rank(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    told: set[ir.Node] = set()
    for weighted in weighted_nodes(model):
        dequantize = weighted.data.dequantize
        if weighted.node.op_type != "Conv" or dequantize is None or dequantize in told:
            continue
        if shape(scale(dequantize)) == (1,):
            told.add(dequantize)
            yield Place(
                label(dequantize),
                f"the scale of its DequantizeLinear has shape [1], so Conv {label(weighted.node)} "
                "computes in float: make scale and zero point scalars, of shape []",
            )


def _weight_axis(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    opset = model.opset_imports.get("", 1)
    for weighted in weighted_nodes(model):
        weight, wanted = weighted.weight, weighted.output_axis
        if not weight.constant or weight.dequantize is None or weight.codes is _INT4:
            continue
        if weighted.is_product and weighted.data.dequantize is None:
            continue  # weight-only is fused at any axis
        found = axis(weight.dequantize, opset)
        if form(weight.dequantize) is not Form.AXIS or found is None or wanted is None:
            continue
        there, _ = track_axis(found, weight.moves)
        if there is not None and there != wanted:
            yield Place(
                label(weighted.node),
                f"weight {weight.value.name} has its scales along axis {there} and computes in "
                f"float: a {_kind(weighted)} needs them along its output channels, axis {wanted}",
            )


def _kind(weighted: Weighted) -> str:
    node = weighted.node
    if node.op_type != "Gemm":
        return node.op_type
    name = "transB" if weighted.index else "transA"
    return f"Gemm with {name}={node.attributes.get_int(name, 0)}"


def _four_bit_blocks(model: ir.Model, setting: Setting) -> Iterator[Place]:
    for weighted in weighted_nodes(model):
        weight = weighted.weight
        if weight.dequantize is None or weight.codes is not _INT4 or not weight.constant:
            continue
        if weighted.data.dequantize is not None:
            continue  # L34 and L36
        if weighted.is_product:
            wrong = _bad_blocks(weight.dequantize, setting)
            remedy = "blocks of 64 or 128 along the inputs are fused"
        else:
            wrong = None if form(weight.dequantize) is Form.BLOCK else "a convolution as its reader"
            remedy = "only MatMul and Gemm take four bits, quantize it to INT8"
        if wrong is not None:
            yield Place(
                label(weighted.node),
                f"INT4 weight {weight.value.name} has {wrong}, so a kernel of its own makes it "
                f"float before the {weighted.node.op_type}: {remedy}",
            )


def _bad_blocks(dequantize: ir.Node, setting: Setting) -> str | None:
    kind = form(dequantize)
    if kind in {Form.TENSOR, Form.AXIS}:
        return f"{kind.value} scales"
    found = block(dequantize)
    if kind is not Form.BLOCK or found is None:
        return None
    along, size = found
    if setting.flavour == "tensorrt":
        return None if size in _BLOCKS else f"blocks of {size}"
    count = (shape(scale(dequantize)) or (0,))[along]
    return f"a single block of {size} along axis {along}" if count == 1 else None


def _four_bit_convolution(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for weighted in weighted_nodes(model):
        weight = weighted.weight
        if weighted.is_product or weight.dequantize is None or weight.codes is not _INT4:
            continue
        if weighted.data.dequantize is not None or form(weight.dequantize) is Form.BLOCK:
            yield Place(
                label(weighted.node),
                f"{weighted.node.op_type} has INT4 weight {weight.value.name}; only MatMul and "
                "Gemm take four bits: quantize it to INT8 or FP8 per channel",
            )


L18 = Rule(
    "L18",
    "activations have one scale for the whole tensor",
    Severity.FLOAT,
    "header NvInfer.h (per-channel for weights only); experiment, TensorRT-RTX 1.7.1: float Conv, "
    "and float MatMul where the scales run along the sum",
    _activation_channels,
)
L19 = Rule(
    "L19",
    "the scale of what a Conv reads has rank 0",
    Severity.FLOAT,
    "experiment, TensorRT-RTX 1.7.1: with shape [1] Conv runs in float, also behind a MaxPool; the "
    "DQ's scale alone decides, the Q's may have rank 1; MatMul does not mind",
    _activation_scale_rank,
)
L20 = Rule(
    "L20",
    "scales of weights lie along the output channels",
    Severity.FLOAT,
    "ModelOpt; experiment, TensorRT-RTX 1.7.1: float kernels for Conv axis 1, MatMul axis 0 and "
    "Gemm transB=1 axis 1; a weight-only MatMul takes any axis",
    _weight_axis,
)
L33 = Rule(
    "L33",
    "INT4 weights are quantized in blocks, of a size that kernels have",
    Severity.FLOAT,
    "TensorRT: its documentation, as digested by others, has blocks of 64 and 128; TensorRT-RTX: "
    "experiment, 1.7.1: blocks of 4 to 512 are fused as long as there are two of them; one "
    "block, per-channel and per-tensor are not",
    _four_bit_blocks,
)
L34 = Rule(
    "L34",
    "convolutions have no INT4 weights",
    Severity.ERROR,
    "ModelOpt; experiment, TensorRT-RTX 1.7.1: blocks are refused by the parser, INT4 with "
    "quantized activations by the builder; INT4 per channel with float activations builds, see L33",
    _four_bit_convolution,
)

RULES = (L18, L19, L20, L31, L33, L34)
