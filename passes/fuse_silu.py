"""x * Sigmoid(x) as one operator."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.graph.edit import Names, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_op, only_consumer

CONTRIB = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class FuseSilu(GraphPass):
    """Join a written-out SiLU (Ramachandran et al. 2017, arXiv:1710.05941) for ONNX Runtime.

    Before: ``y = Mul(x, Sigmoid(x))``.
    After:  ``y = com.microsoft::QuickGelu(x, alpha=1)``.

    One operator has one reader of x: two would each get their own dequantized copy, and ONNX
    Runtime no longer fuses them; between int8 convolutions it also rounds once instead of twice.
    Visits: the main graph. Leaves: a Sigmoid with other readers.
    """

    name: ClassVar[str] = "fuse-silu"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find every pair, then replace each."""
        names = Names(model)
        found = [(node, gate) for node in model.graph if (gate := self._gate(node)) is not None]
        for node, gate in found:
            joined = ir.node(
                "QuickGelu",
                [gate.inputs[0]],
                attributes={"alpha": 1.0},
                domain=CONTRIB,
                name=names.fresh(node, "QuickGelu"),
            )
            model.graph.insert_after(node, joined)
            take_over(joined.outputs[0], node.outputs[0])
            model.graph.remove([node, gate], safe=True)
        if found:
            model.opset_imports.setdefault(CONTRIB, 1)
        return bool(found)

    def _gate(self, node: ir.Node) -> ir.Node | None:
        """Return the Sigmoid that gates its own input in this Mul."""
        if not is_op(node, "Mul") or node.outputs[0].dtype != ir.DataType.FLOAT:
            return None
        for gated, other in (node.inputs, reversed(node.inputs)):
            producer = gated.producer() if gated is not None else None
            if producer is not None and is_op(producer, "Sigmoid") and producer.inputs[0] is other:
                if only_consumer(producer.outputs[0]) is node:
                    return producer
                self.refuse("its Sigmoid has other readers")
        return None
