"""What a graph in half precision computes, for a runtime without kernels in that type."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_cast, lazy_tensor
from qcompile.graph.halves import HALVES, MOVES
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_nodes, is_op, subgraphs

TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "precision", "softmax_precision")
"""Attributes that name the type of a result, or the one that is computed in."""


@dataclass(frozen=True, kw_only=True)
class RoundFloats(GraphPass):
    """Compute in float32 with the numbers of a half type: for simulation, not for engines.

    Before: ``y = Relu(x)`` in bfloat16.
    After:  ``y.raw = Relu(x)``, ``y.bfloat16 = Cast<BFLOAT16>(y.raw)``, ``y = Cast<FLOAT>(...)``,
    with ``x`` and ``y`` float32.

    Every value of the half type becomes float32 and holds the same number: the result of each
    operator is rounded, data movement needs no rounding. What the operator does inside is float32,
    as on a device that accumulates in float32. Inputs and outputs of the graph keep their types.
    Visits: the main graph. Leaves: graphs in which an If, Loop or Scan reads or makes such values.
    """

    name: ClassVar[str] = "round-floats"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    dtype: str = "bfloat16"

    def rewrite(self, model: ir.Model) -> bool:
        """Find all values of the type, then give each its float32 form."""
        half = HALVES[self.dtype].dtype
        graph = model.graph
        if any(
            _touches(node, half) for node, owner in all_nodes(model) if owner or subgraphs(node)
        ):
            self.refuse(f"a body reads or makes {self.dtype}")
            return False
        values = [*graph.inputs, *(out for node in graph for out in node.outputs)]
        found = [v for v in values if v.dtype == half and not _is_between_casts(v)]
        constants = [v for v in graph.initializers.values() if v.dtype == half]
        constants = [v for v in constants if not v.is_graph_input()]
        writer = _Writer(model, half)
        for value in constants:
            widen_constant(value)
        for value in found:
            writer.widen(value)
        return bool(found or constants)


class _Writer:
    def __init__(self, model: ir.Model, half: ir.DataType) -> None:
        self.graph, self.half = model.graph, half
        self.names = Names(model)

    def widen(self, value: ir.Value) -> None:
        """Let the readers of a value see its numbers as float32."""
        maker, readers = value.producer(), list(value.uses())
        exported = maker is not None and value.is_graph_output()
        if maker is not None and not is_op(maker, "Cast"):  # a Cast rounds, and stays
            widen_attributes(maker, (self.half,))
        if not value.name or (is_op(maker, *MOVES) and not exported):  # left out, or moved
            value.type = ir.TensorType(ir.DataType.FLOAT)
            return
        rounded = value
        if maker is not None and not is_op(maker, "Cast"):
            rounded = self._round(value, exported=exported)
        if not readers:
            return
        wide = self._cast(rounded, ir.DataType.FLOAT, self.names.fresh(rounded, "float32"))
        if rounded is not value and not exported:
            name, rounded.name = rounded.name, self.names.fresh(rounded, str(self.half).lower())
            wide.name = name
        for node, index in readers:
            node.replace_input_with(index, wide)

    def _round(self, value: ir.Value, *, exported: bool) -> ir.Value:
        """Return the rounded result of an operator, under its name; the exact one is ``.raw``."""
        name, raw = str(value.name), self.names.fresh(value, "raw")
        value.name, value.type = raw, ir.TensorType(ir.DataType.FLOAT)
        rounded = self._cast(value, self.half, name)
        for index, output in enumerate(self.graph.outputs):
            if exported and output is value:
                self.graph.outputs[index] = rounded
        return rounded

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return add_cast(self.graph, value, dtype, self.names.fresh(value, "Cast"), name)


def widen_attributes(node: ir.Node, halves: Collection[ir.DataType]) -> None:
    """Turn the attributes that name one of these half types to float32."""
    for name in TYPE_ATTRIBUTES:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value in halves:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    if is_op(node, "ConstantOfShape", "Constant") and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype in halves:
            wide = ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", wide)


def widen_constant(value: ir.Value) -> None:
    """Let an initializer hold the same numbers as float32, computed when they are read."""
    tensor = value.const_value
    if tensor is None:  # of a body, it may be an input without one
        return

    def compute() -> np.ndarray:
        return tensor.numpy().astype(np.float32)

    shape = tensor.shape.numpy()
    value.const_value = lazy_tensor(str(value.name), ir.DataType.FLOAT, shape, compute)
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _touches(node: ir.Node, half: ir.DataType) -> bool:
    return any(v is not None and v.dtype == half for v in (*node.inputs, *node.outputs))


def _is_between_casts(value: ir.Value) -> bool:
    """Return whether a value is what this pass writes: rounded, and read as float32 alone."""
    maker = value.producer()
    wide = all(
        is_op(use.node, "Cast") and use.node.attributes.get_int("to") == ir.DataType.FLOAT
        for use in value.uses()
    )
    return wide and (maker is None or is_op(maker, "Cast"))
