"""What a layer multiplies its weights with, as rows."""

import onnx_ir as ir

from qcompile.graph.walk import is_op
from qcompile.numerics.patches import Floats, patches, same_pads, spread


def input_rows(node: ir.Node, data: Floats, limit: int) -> Floats:
    """Return some positions of a layer's input, evenly spread.

    Args:
        node: A MatMul, a Gemm, or a Conv with a constant weight.
        data: One sample of the layer's input: ``(..., K)``, or ``(N, C, D1, ...)`` for Conv.
        limit: Most positions.

    Returns:
        ``(groups, P, K)`` in the type of ``data``; for Conv K is ``C / groups * k1 * ...``.
    """
    if not is_op(node, "Conv"):
        rows = data.reshape(-1, data.shape[-1])
        return rows[spread(len(rows), limit)][None]
    weight = node.inputs[1]
    assert weight is not None  # noqa: S101 - the caller chose such nodes
    assert weight.const_value is not None  # noqa: S101
    kernel = weight.const_value.shape.numpy()[2:]
    rank = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad.startswith("SAME"):
        pads = same_pads(auto_pad, data.shape[2:], kernel, strides, dilations)
    found = patches(data, kernel, strides, pads, dilations, limit)
    groups = node.attributes.get_int("group", 1)
    return found.reshape(len(found), groups, -1).transpose(1, 0, 2)
