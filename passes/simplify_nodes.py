"""Pass: simplify nodes."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    _basic_rules,
    _collapse_slices,
    _materialize_reshape_shape,
    _no_op,
    _remove_optional_bias,
)

from qcompile.graph.edit import changes
from qcompile.graph.protocol import Effect, Fact, GraphPass

# Left out, with the reason: fuse_relus_clips is wrong where a Clip has min above max, and like
# min_max_to_clip names new constants after the input, so that two Clips of one value collide;
# broadcast_to_matmul undoes the 2-D form that integer kernels want; slice_split has a pattern of
# two outputs, which the rewriter looks for in a time that grows with the square of the nodes.
_RULES = (
    *_no_op.rules,
    *_collapse_slices.rules,
    *_materialize_reshape_shape.rules,
    *(r for r in _basic_rules.basic_optimization_rules() if r is not _basic_rules.slice_split_rule),
    *_remove_optional_bias.rules,
)


@dataclass(frozen=True, kw_only=True)
class SimplifyNodes(GraphPass):
    """Drop nodes that do nothing and merge pairs that are one: onnxscript's general rules.

    Before: ``Mul(x, 1)``, ``Cast(Cast(x))``, ``Transpose(Transpose(x))``, ``Reshape(x, computed)``.
    After:  ``x``, ``Cast(x)``, ``Transpose(x)`` or ``x``, ``Reshape(x, [0, -1])``.
    Visits: the main graph and subgraphs.
    """

    name: ClassVar[str] = "simplify-nodes"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED, Fact.WORKING_OPSET})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Apply the rules."""
        return changes(model, RewritePass(_RULES), RemoveUnusedNodesPass())
