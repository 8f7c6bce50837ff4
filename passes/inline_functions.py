"""Pass: inline functions."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass

from qcompile.graph.edit import changes
from qcompile.graph.protocol import Effect, Fact, GraphPass


@dataclass(frozen=True, kw_only=True)
class InlineFunctions(GraphPass):
    """Replace each call of a model-local function by the function's body.

    Before: ``y = local.Block(x)`` with ``Block`` among the model's functions.
    After:  the nodes of ``Block``.
    Visits: the main graph, subgraphs and functions.
    """

    name: ClassVar[str] = "inline-functions"
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Inline; the functions and their opset go."""
        if not model.functions:
            return False
        return changes(model, InlinePass(), RemoveUnusedOpsetsPass())
