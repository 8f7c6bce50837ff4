"""Pass: fuse linear."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.graph.edit import Names, remove_dead, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_constant, is_op, only_consumer

_FLOATS = {ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}


@dataclass(frozen=True, kw_only=True)
class FuseLinear(GraphPass):
    """Join a MatMul of matrices and the Add of its bias.

    ONNX Runtime does the same when it loads a model, but on an int8 MatMul too, and then the bias
    is float and no integer kernel takes it. A Gemm in the file has its bias rounded to int32.

    Before: ``y = Add(MatMul(x, W), b)``, x and W matrices, W and b constant, b one row.
    After:  ``y = Gemm(x, W, b)``.
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
    gemm = ir.node("Gemm", [*matmul.inputs, bias], name=names.fresh(matmul, "gemm"))
    matmul.graph.insert_before(add, gemm)  # type: ignore[union-attr]
    take_over(gemm.outputs[0], add.outputs[0])
    remove_dead([matmul, add])
