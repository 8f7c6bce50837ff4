"""What a model's inputs must look like, where the file names a size without giving it."""

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from qcompile.graph.walk import all_nodes
from qcompile.samples import Port

_QUERY, _KEY, _PASTS, _COS = 0, 1, (3, 4), 7
"""Inputs of com.microsoft::GroupQueryAttention."""


def with_head_sizes(ports: Sequence[Port], model: ir.Model) -> tuple[Port, ...]:
    """Return the ports with the head size of each past that a GroupQueryAttention reads.

    Exporters write ``(batch, heads, past length, "head size")``; without the size not even an
    empty past can be made. It follows from the rotary cache, or from the width of the queries.

    Args:
        ports: The model's inputs.
        model: The model.
    """
    sizes: dict[str, int] = {}
    for node, _ in all_nodes(model):
        if node.op_type != "GroupQueryAttention" or (size := _head_size(node)) is None:
            continue
        for index in _PASTS:
            past = node.inputs[index] if index < len(node.inputs) else None
            if past is not None and past.name:
                sizes[past.name] = size
    return tuple(
        replace(port, shape=(*port.shape[:-1], sizes[port.name]))
        if port.name in sizes and port.shape and not isinstance(port.shape[-1], int)
        else port
        for port in ports
    )


def _head_size(node: ir.Node) -> int | None:
    cos = node.inputs[_COS] if len(node.inputs) > _COS else None
    if cos is not None and cos.shape is not None and isinstance(cos.shape[-1], int):
        return 2 * cos.shape[-1]
    heads = node.attributes.get_int("num_heads", 0)
    if node.inputs[_KEY] is None:
        heads += 2 * node.attributes.get_int("kv_num_heads", 0)
    width = _width(node.inputs[_QUERY])
    return width // heads if width and heads else None


def _width(value: ir.Value | None) -> int | None:
    """Return the last dimension of a value, or of the weight that makes it."""
    if value is None:
        return None
    if value.shape is not None and len(value.shape) and isinstance(value.shape[-1], int):
        return value.shape[-1]
    node = value.producer()
    weight = node.inputs[1] if node is not None and node.op_type == "MatMul" else None
    if weight is None or weight.const_value is None:
        return None
    return int(weight.const_value.shape.numpy()[-1])
