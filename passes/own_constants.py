"""One constant for each role: codes of a bias belong to one node, those of a weight to one axis."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_initializer, lazy_tensor
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_constant, is_op

Role = tuple[str, str | int]


@dataclass(frozen=True, kw_only=True)
class OwnConstants(GraphPass):
    """Give a shared constant to each of its roles, and a Gemm bias one number a column.

    Before: ``Gemm(x, v, b)`` and ``Gemm(z, w, b)``.
    After:  the second reads ``b.own``, a copy.

    The codes of a bias have the scale of its node's input times that of its weight: with those of
    another node, ONNX Runtime drops the int8 kernel of a Conv and computes a wrong Gemm. The scales
    of a weight lie along one axis; an operand of Add, Mul or Concat has a single one.
    Visits: the main graph. Leaves: a Gemm bias that differs from row to row.
    """

    name: ClassVar[str] = "own-constants"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Find the roles of each constant, then copy it for all but the first."""
        names = Names(model)
        roles: dict[ir.Value, dict[Role, list[tuple[ir.Node, int]]]] = {}
        for value, role, node, index in _roles(model.graph):
            roles.setdefault(value, {}).setdefault(role, []).append((node, index))
        changed = False
        for value, uses in roles.items():
            for number, places in enumerate(uses.values()):
                shape = self._shape(value, *places[0])
                if number == 0 and shape == value.shape:
                    continue
                own = _copy(model.graph, value, shape, names.fresh(value, "own"))
                for node, index in places:
                    node.replace_input_with(index, own)
                changed = True
            if not value.uses() and not value.is_graph_output():
                del model.graph.initializers[str(value.name)]
        return changed

    def _shape(self, value: ir.Value, node: ir.Node, index: int) -> ir.Shape:
        """Return the shape that a constant needs in its role."""
        shape, weight = value.shape, node.inputs[1] if len(node.inputs) > 1 else None
        assert shape is not None  # noqa: S101 - initializers have shapes
        if index != 2 or not is_op(node, "Gemm") or weight is None or weight.shape is None:
            return shape
        columns = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
        *lead, width = tuple(shape) or (1,)
        if any(d != 1 for d in lead):
            self.refuse("its bias differs from row to row")
            return shape
        return ir.Shape([columns]) if width in {1, columns} else shape


def _roles(graph: ir.Graph) -> Iterator[tuple[ir.Value, Role, ir.Node, int]]:
    """Yield each use of an initializer that may become codes."""
    for node in graph:
        for index, value in enumerate(node.inputs):
            role = _role(node, index)
            if role and value is not None and value.is_initializer() and is_constant(value):
                yield value, role, node, index


def _role(node: ir.Node, index: int) -> Role | None:
    if is_op(node, "Add", "Mul", "Concat"):
        return "operand", ""
    if is_op(node, "Conv", "Gemm", "LayerNormalization", "InstanceNormalization") and index == 2:
        return "bias", node.name or ""
    if is_op(node, "Conv", "MatMul", "Gemm") and index == 1:
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        return "weight", 0 if node.op_type == "Conv" or transposed else 1
    return None


def _copy(graph: ir.Graph, value: ir.Value, shape: ir.Shape, name: str) -> ir.Value:
    source = value.const_value
    assert source is not None  # noqa: S101 - it is constant

    def compute() -> np.ndarray:
        values = source.numpy()
        return np.broadcast_to(values.reshape(-1), shape.numpy()) if values.size == 1 else values

    return add_initializer(graph, lazy_tensor(name, source.dtype, shape.numpy(), compute))
