"""Pass: fold constants."""

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from qcompile.graph.edit import changes
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant

# These only move elements: fold-weights does them without reading the weight.
_LAYOUT = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"}


@dataclass(frozen=True, kw_only=True)
class FoldConstants(GraphPass):
    """Compute what depends on nothing but constants; onnxscript's folder with our limits.

    It also resolves shape computations where the shape is known, and an If whose condition is.
    Large tensors are not read: layout operators on weights are the work of fold-weights.

    Before: ``s = ConstantOfShape(4); p = Concat(k, s); y = Pad(x, p)``.
    After:  ``y = Pad(x, p)`` with ``p`` an initializer.
    Visits: the main graph and subgraphs.
    """

    name: ClassVar[str] = "fold-constants"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED, Fact.WORKING_OPSET})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    max_input_elements: int = 1 << 18
    max_output_elements: int = 1 << 18

    def rewrite(self, model: ir.Model) -> bool:
        """Fold until nothing is left: an If that is resolved may make further shapes known."""
        folder = FoldConstantsPass(
            shape_inference=True,
            input_size_limit=self.max_input_elements,
            output_size_limit=self.max_output_elements,
            should_fold=self._should_fold,
        )
        modified = False
        while changes(model, folder, RemoveUnusedNodesPass()):
            modified = True
        return modified

    def _should_fold(self, node: ir.Node) -> bool | None:
        if node.domain:
            return None
        if node.op_type == "ConstantOfShape":
            shape = constant(node.inputs[0], max_elements=64)
            return shape is not None and math.prod(shape.tolist()) <= self.max_output_elements
        if node.op_type in _LAYOUT:
            sizes = [v.const_value.size for v in node.inputs if v is not None and v.const_value]
            return False if max(sizes, default=0) > self.max_input_elements else None
        return None
