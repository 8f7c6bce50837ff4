"""Pass: infer shapes."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.graph.edit import changes
from qcompile.graph.protocol import Effect, Fact, GraphPass


@dataclass(frozen=True, kw_only=True)
class InferShapes(GraphPass):
    """Write down the type of every value, and its shape as far as onnx can tell.

    Symbolic dimensions stay symbolic. What the model declares of its inputs and outputs stays.

    Before: ``y: ? = Relu(x: float[N, 8])``.
    After:  ``y: float[N, 8] = Relu(x: float[N, 8])``.
    Visits: the main graph and subgraphs.
    """

    name: ClassVar[str] = "infer-shapes"
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Run the inference of onnx, without the values of large weights."""
        infer = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
        return changes(model, infer)
