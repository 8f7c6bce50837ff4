"""Pass: fold weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import add_initializer, lazy_tensor, remove_dead
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, is_op

_FLOATS = {ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}


@dataclass(frozen=True, kw_only=True)
class FoldWeights(GraphPass):
    """Make the result of a layout operator or a float Cast on a weight the weight itself.

    Planners look for weights right at the node that uses them. The new weight is computed when it
    is read, so a model larger than memory passes through.

    Before: ``y = MatMul(x, Transpose<perm=[1, 0]>(W))`` with ``W`` an initializer.
    After:  ``y = MatMul(x, W')``.
    Visits: the main graph. Leaves: results of unknown shape, and graph outputs.
    """

    name: ClassVar[str] = "fold-weights"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED, Fact.WORKING_OPSET})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Fold in graph order, so that chains fold in one sweep."""
        modified = False
        for node in list(model.graph):
            source = node.inputs[0] if node.inputs else None
            move = None if source is None or node.domain else _move(node)
            if move is None or source is None or not _is_weight(source):
                continue
            if node.outputs[0].is_graph_output():
                self.refuse("its result is a graph output")
                continue
            _fold(node, source, move)
            modified = True
        return modified


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _move(node: ir.Node) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return what the node does to its first input, or None if it is not a layout operator."""
    result = node.outputs[0]
    if is_op(node, "Cast"):
        source = node.inputs[0]
        if source is None or result.dtype is None or not {source.dtype, result.dtype} <= _FLOATS:
            return None
        dtype = result.dtype.numpy()
        return lambda array: array.astype(dtype)
    if is_op(node, "Transpose"):
        perm = node.attributes.get_ints("perm", None)
        return lambda array: array.transpose(perm)
    if is_op(node, "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        if any(constant(v) is None for v in node.inputs[1:] if v is not None):
            return None
        shape = _static(result.shape)
        return None if shape is None else lambda array: array.reshape(shape)
    return None


def _static(shape: ir.Shape | None) -> tuple[int, ...] | None:
    if shape is None or not shape.is_static():
        return None
    return tuple(int(d) for d in shape.numpy())


def _fold(node: ir.Node, source: ir.Value, move: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor, result, graph = source.const_value, node.outputs[0], node.graph
    assert tensor is not None and graph is not None and result.name  # noqa: S101, PT018
    # The shape follows from an array that has no memory: one element, seen everywhere.
    shape = _static(result.shape) or move(np.broadcast_to(np.int8(0), tensor.shape.numpy())).shape
    dtype = result.dtype or tensor.dtype
    name, result.name = result.name, None
    folded = lazy_tensor(name, dtype, shape, lambda: move(tensor.numpy()))
    result.replace_all_uses_with(add_initializer(graph, folded))
    remove_dead([node])
