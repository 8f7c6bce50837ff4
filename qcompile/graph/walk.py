"""Small questions about a graph that many stages ask."""

from collections.abc import Iterator
from typing import TypeGuard

import numpy as np
import onnx_ir as ir


def is_constant(value: ir.Value | None) -> bool:
    """Return whether the value is the same in every run: an initializer or a Constant's output.

    An initializer that is also a graph input may be overridden by the caller, so it is none.
    """
    if value is None or value.is_graph_input():
        return False
    if value.is_initializer():
        return value.const_value is not None
    node = value.producer()
    return node is not None and node.op_type == "Constant" and not node.domain


def constant(value: ir.Value | None, max_elements: int | None = None) -> np.ndarray | None:
    """Return a constant value as an array, or None where it is not constant or too large.

    External data is memory-mapped, so that only what is read is loaded.

    Args:
        value: Any value; None (an omitted input) gives None.
        max_elements: Larger tensors give None, without being read.
    """
    if value is None or not is_constant(value):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or (max_elements is not None and tensor.size > max_elements):
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """Return the single element of a constant as a float, or None."""
    array = constant(value, max_elements=1)
    if array is None or array.size != 1 or not np.issubdtype(array.dtype, np.number):
        return None
    return float(array.reshape(()))


def consumers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return each use of the value as node and input index, also uses inside subgraphs."""
    return [(use.node, use.idx) for use in value.uses()]


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that is the only reader of the value, or None (also for graph outputs)."""
    readers = consumers(value)
    return None if value.is_graph_output() or len(readers) != 1 else readers[0][0]


def is_op(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Return whether the node is one of the default domain's operators named."""
    return node is not None and not node.domain and node.op_type in op_types


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that makes the value if it is one of these operators, else None."""
    node = None if value is None else value.producer()
    return node if is_op(node, *op_types) else None


def all_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node | None]]:
    """Yield every node of the main graph and its subgraphs, with the node that owns the subgraph.

    The owner is None in the main graph, and the innermost If, Loop or Scan elsewhere.
    """
    yield from _nodes_below(model.graph, None)


def _nodes_below(
    graph: ir.Graph, owner: ir.Node | None
) -> Iterator[tuple[ir.Node, ir.Node | None]]:
    for node in graph:
        yield node, owner
        for inner in subgraphs(node):
            yield from _nodes_below(inner, node)


def all_graphs(model: ir.Model) -> list[ir.Graph]:
    """Return the main graph and every subgraph below it, outer before inner."""
    return [model.graph, *(g for node, _ in all_nodes(model) for g in subgraphs(node))]


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs among the node's attributes, in the attributes' order."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def weight_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield all initializers, subgraphs included; nothing is read."""
    tensors = (v.const_value for g in all_graphs(model) for v in g.initializers.values())
    return (tensor for tensor in tensors if tensor is not None)


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, subgraphs included; nothing is read."""
    return sum(tensor.nbytes for tensor in weight_tensors(model))


def release(tensor: ir.TensorProtocol | None) -> None:
    """Close the file mapping of an external tensor, if any; it opens again when read.

    Where somebody still holds a view, it closes with the last one.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return
    try:
        tensor.release()
    except BufferError:
        tensor.raw = None  # else the tensor would hold the mapping for good
