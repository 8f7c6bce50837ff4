"""Products with int4 weights that TensorRT for RTX would compute on unpacked floats."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_op, producer
from qcompile.passes.hold_floats import hold

_MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True, kw_only=True)
class HoldCodes(GraphPass):
    """Add 0 to what int4 weights are multiplied with, where it comes from a Transpose.

    Before: ``t = Transpose(a)``, ``r = Reshape(t)``, ``y = MatMul(r, DequantizeLinear(codes, s))``.
    After:  the same with ``r.held = Add(r, 0)``, which the MatMul reads.

    So attention hands its heads to the output projection. Where two activations are multiplied
    before the Transpose, TensorRT for RTX 1.7.1 takes the move into the second product, which then
    is no longer a kernel on codes: its weights are unpacked by another one in each run. The Add
    keeps the move in a kernel of its own, which computes the Add; an Identity or a product with 1
    does not (tests/passes/test_hold_codes.py).
    Visits: the main graph. Leaves: nodes that read no codes, or what no Transpose has moved.
    """

    name: ClassVar[str] = "hold-codes"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Find the products, then put an Add in front of each."""
        found = [node for node in model.graph if _reads_codes(node) and _is_moved(node.inputs[0])]
        hold(model, found)
        return bool(found)


def _reads_codes(node: ir.Node) -> bool:
    """Return whether a product's weights are dequantized from int4."""
    if not is_op(node, "Gemm", "MatMul"):
        return False
    maker = producer(node.inputs[1], "DequantizeLinear")
    codes = maker.inputs[0] if maker is not None else None
    return codes is not None and codes.dtype == ir.DataType.INT4


def _is_moved(value: ir.Value | None) -> bool:
    """Return whether a Transpose is among the nodes that do nothing but move a value."""
    while (maker := producer(value, *_MOVES)) is not None:
        if maker.op_type == "Transpose":
            return True
        value = maker.inputs[0]
    return False
