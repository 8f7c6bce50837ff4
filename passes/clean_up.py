"""Pass: clean up."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from qcompile.graph.edit import changes
from qcompile.graph.protocol import Effect, GraphPass


@dataclass(frozen=True, kw_only=True)
class CleanUp(GraphPass):
    """Leave one copy of everything, and nothing that is not used.

    Constant nodes become initializers; repeated small initializers, repeated nodes,
    dead nodes, unused functions and opsets go. All of it is onnx_ir's.

    Before: ``a = Relu(x); b = Relu(x); y = Add(a, b)``.
    After:  ``a = Relu(x); y = Add(a, a)``.
    Visits: the main graph; constants and dead nodes also in subgraphs.
    """

    name: ClassVar[str] = "clean-up"
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Run onnx_ir's clean-ups."""
        return changes(
            model,
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            DeduplicateInitializersPass(),
            CommonSubexpressionEliminationPass(),
            RemoveUnusedNodesPass(),
            RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            RemoveUnusedOpsetsPass(),
        )
