"""Nodes in float32 that TensorRT would compute in half all the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant
from qcompile.graph.halves import HALVES
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import consumers, is_constant, is_op

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_HALVES = tuple(half.dtype for half in HALVES.values())


@dataclass(frozen=True, kw_only=True)
class HoldFloats(GraphPass):
    """Add 0 between a Cast from a half type and the only float32 node before the next half.

    Before: ``a = Cast<FLOAT>(x)``, ``b = Conv(a, w)``, ``y = Cast<FLOAT16>(b)``.
    After:  the same with ``a.held = Add(a, 0)``, which the Conv reads.

    TensorRT takes a product that stands alone between two Casts into a kernel of the half type,
    weights rounded. An Add of 0 in between, or a second node in float32, prevents that; an Identity
    or a product with 1 does not (TensorRT for RTX 1.7.1, tests/passes/test_halves_rtx.py). The Add
    shares the kernel of the Cast.
    Visits: the main graph. Leaves: products of two activations.
    """

    name: ClassVar[str] = "hold-floats"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Find the products that stand alone, then put an Add in front of each."""
        found = [node for node in model.graph if _is_alone(node)]
        hold(model, found)
        return bool(found)


def hold(model: ir.Model, nodes: Sequence[ir.Node]) -> None:
    """Let each of these nodes of the main graph read its first input plus 0, of the same type."""
    names = Names(model)
    for node in nodes:
        value = node.inputs[0]
        assert value is not None and value.dtype is not None  # noqa: S101, PT018 - the callers saw it
        number = np.zeros((), value.dtype.numpy())
        zero = add_constant(model.graph, names.fresh(node, "zero"), number)
        add = ir.node("Add", [value, zero], name=names.fresh(node, "held"))
        held = add.outputs[0]
        held.name = names.fresh(value, "held")
        held.type, held.shape = value.type, value.shape
        model.graph.insert_before(node, add)
        node.replace_input_with(0, held)


def _is_alone(node: ir.Node) -> bool:
    """Return whether a product has Casts from and to a half type on both sides."""
    if not is_op(node, *_WEIGHTED) or not is_constant(node.inputs[1]):
        return False
    source = node.inputs[0]
    maker = source.producer() if source is not None else None
    if maker is None or not is_op(maker, "Cast") or maker.inputs[0] is None:
        return False
    readers = [use for use, _ in consumers(node.outputs[0])]
    to_half = (is_op(use, "Cast") and use.outputs[0].dtype in _HALVES for use in readers)
    widens = maker.inputs[0].dtype in _HALVES and node.outputs[0].dtype == ir.DataType.FLOAT
    alone = bool(readers) and not node.outputs[0].is_graph_output()
    return widens and alone and all(to_half)
