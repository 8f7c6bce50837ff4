"""Edits that keep the rule of names: survivors keep theirs, others are `<survivor>.<what>`."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.graph.dump import dump
from qcompile.graph.walk import all_graphs


class Names:
    """Hands out value and node names that no scope of the model uses yet."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str | None] = set()
        for graph in all_graphs(model):
            self._taken.update(v.name for v in graph.inputs)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(node.name)
                self._taken.update(v.name for v in node.outputs)

    def fresh(self, survivor: ir.Value | ir.Node, what: str) -> str:
        """Return ``<survivor>.<what>``, numbered from 2 where that is taken, and reserve it."""
        base = f"{survivor.name}.{what}"
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}.{number}"
        self._taken.add(name)
        return name


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an array to the graph as an initializer of that name; return its value."""
    return add_initializer(graph, ir.tensor(array, name=name))


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a tensor to the graph as an initializer under the tensor's name; return its value."""
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def lazy_tensor(
    name: str, dtype: ir.DataType, shape: Sequence[int], compute: Callable[[], np.ndarray]
) -> ir.LazyTensor:
    """Return a tensor that is computed each time it is read, so that large weights stay on disk.

    Args:
        name: Of the tensor.
        dtype: Of the elements that ``compute`` returns.
        shape: That ``compute`` returns.
        compute: Gives the values; pure, since it may run several times.
    """

    def evaluate() -> ir.TensorProtocol:
        array = np.ascontiguousarray(compute()).reshape(tuple(shape))
        return ir.Tensor(array.astype(dtype.numpy(), copy=False), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(shape), name=name)


def add_cast(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, node_name: str, name: str
) -> ir.Value:
    """Put a Cast right behind what makes a value, that of an input first; return its output."""
    node = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=node_name)
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(dtype), value.shape
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return result


def take_over(new: ir.Value, old: ir.Value) -> None:
    """Let ``new`` replace ``old`` everywhere, graph outputs included, under the old name and type.

    The node that makes ``old`` has no reader afterwards; remove it with ``remove_dead``.
    """
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name, old.name = old.name, None
    new.name = name


def bypass(old: ir.Value, source: ir.Value) -> None:
    """Let the readers of ``old`` read ``source`` instead; ``old`` must not be a graph output."""
    old.replace_all_uses_with(source)


def remove_dead(nodes: Sequence[ir.Node]) -> None:
    """Remove those of the nodes that nobody reads, last first, with their lone constants."""
    for node in reversed(nodes):
        graph = node.graph
        if graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        read = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        for value in read:
            drop_unread(value)


def remove_unread(last: ir.Node) -> None:
    """Remove a node that nobody reads, and whatever was there for it alone, constants included."""
    waiting = [last]
    while waiting:
        node = waiting.pop()
        makers = [v.producer() for v in node.inputs if v is not None]
        remove_dead([node])
        if node.graph is None:
            waiting += [maker for maker in makers if maker is not None]


def drop_unread(value: ir.Value) -> None:
    """Remove an initializer that nobody reads; anything else stays."""
    if value.uses() or not value.is_initializer() or value.is_graph_output():
        return
    if value.graph is not None and not value.is_graph_input():
        value.graph.initializers.pop(str(value.name))


def changes(model: ir.Model, *steps: ir.passes.PassBase) -> bool:
    """Run passes of onnx_ir or onnxscript in place; return whether the graph's text changed.

    Neither their own ``modified`` is relied on (some say True for nothing), nor that they keep what
    the graph declares of its outputs (some lose it when another value becomes the output).
    """
    before = dump(model)
    declared = [(v.type, v.shape) for v in model.graph.outputs]
    for step in steps:
        step(model)
    for value, (type_, shape) in zip(model.graph.outputs, declared, strict=True):
        value.type = type_ or value.type
        value.shape = shape or value.shape
    return dump(model) != before
