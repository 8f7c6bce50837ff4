"""Pass: fuse linear."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_initializer, lazy_tensor, remove_dead, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_constant, is_op, only_consumer

_FLOATS = {ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}


@dataclass(frozen=True, kw_only=True)
class FuseLinear(GraphPass):
    """Join a MatMul of matrices and the Add of its bias.

    ONNX Runtime does the same when it loads a model, but on an int8 MatMul too, and then the bias
    is float and no integer kernel takes it. A Gemm in the file has its bias rounded to int32.

    Before: ``y = Add(MatMul(x, W), b)``, x and W matrices, W and b constant, b one row.
    After:  ``y = Gemm(x, W, b)``; b has shape (N) and no other reader.
    Visits: the main graph. Leaves: x of any other rank, which ``flatten-tokens`` turns to matrices.
    """

    name: ClassVar[str] = "fuse-linear"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find every pair, then join each."""
        found = [(node, add, bias) for node in model.graph for add, bias in self._biased(node)]
        names = Names(model)
        for node, add, bias in found:
            _fuse(node, add, bias, names)
        return bool(found)

    def _biased(self, node: ir.Node) -> list[tuple[ir.Node, ir.Value]]:
        """Return the Add behind a MatMul with its bias, if it is a linear layer."""
        add = only_consumer(node.outputs[0]) if is_op(node, "MatMul") else None
        if not is_op(add, "Add") or not is_constant(node.inputs[1]):
            return []
        bias = next((v for v in add.inputs if v is not None and v is not node.outputs[0]), None)
        if bias is None or not is_constant(bias):
            return []
        if any(v is None or v.shape is None or len(v.shape) != 2 for v in node.inputs):
            self.refuse("its input is not a matrix")
            return []
        if node.outputs[0].dtype not in _FLOATS:
            self.refuse("its type has no Gemm")
            return []
        if not _is_row(bias, node.inputs[1]):
            self.refuse("what is added differs from row to row")
            return []
        return [(add, bias)]


def _is_row(bias: ir.Value, weight: ir.Value | None) -> bool:
    if bias.shape is None or weight is None or weight.shape is None:
        return False
    *lead, width = tuple(bias.shape) or (1,)
    return len(lead) < 2 and all(d == 1 for d in lead) and width in {1, weight.shape[1]}


def _fuse(matmul: ir.Node, add: ir.Node, bias: ir.Value, names: Names) -> None:
    weight, graph = matmul.inputs[1], add.graph
    assert weight is not None and weight.shape is not None and graph is not None  # noqa: S101, PT018
    columns = weight.shape.numpy()[1]
    if len(bias.uses()) > 1 or bias.is_graph_output() or tuple(bias.shape or ()) != (columns,):
        bias = _own_row(graph, bias, columns, names.fresh(add.outputs[0], "bias"))
    inputs = [matmul.inputs[0], weight, bias]
    gemm = ir.node("Gemm", inputs, name=names.fresh(matmul, "gemm"))
    graph.insert_before(add, gemm)
    take_over(gemm.outputs[0], add.outputs[0])
    remove_dead([matmul, add])


def _own_row(graph: ir.Graph, bias: ir.Value, columns: int, name: str) -> ir.Value:
    """Return a copy of a bias as (N): the codes of a bias belong to one weight."""
    tensor = ir.convenience.get_const_tensor(bias)
    assert tensor is not None  # noqa: S101 - it is constant

    def compute() -> np.ndarray:
        return np.broadcast_to(tensor.numpy().reshape(-1), (columns,))

    return add_initializer(graph, lazy_tensor(name, tensor.dtype, [columns], compute))
