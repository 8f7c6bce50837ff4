"""Pass: simplify nodes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qcompile.graph.edit import changes
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_nodes, constant, is_op, producer

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRule


@dataclass(frozen=True, kw_only=True)
class SimplifyNodes(GraphPass):
    """Drop nodes that do nothing and merge pairs that are one: onnxscript's general rules.

    An AveragePool without padding loses the attribute that counts it, which NNAPI refuses.
    The rules take a while to import and 25 MB, so that happens only where one may match.

    Before: ``Mul(x, 1)``, ``Cast(Cast(x))``, ``Transpose(Transpose(x))``, ``Reshape(x, computed)``,
    ``AveragePool<count_include_pad=1>(x)``.
    After:  ``x``, ``Cast(x)``, ``Transpose(x)`` or ``x``, ``Reshape(x, [0, -1])``,
    ``AveragePool(x)``.
    Visits: the main graph and subgraphs.
    """

    name: ClassVar[str] = "simplify-nodes"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED, Fact.WORKING_OPSET})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Apply the rules."""
        pools = [node for node, _ in all_nodes(model) if counts_nothing(node)]
        for node in pools:
            del node.attributes["count_include_pad"]
        return self._simplified(model) or bool(pools)

    def _simplified(self, model: ir.Model) -> bool:
        if not any(may_match(node) for node, _ in all_nodes(model)):
            return changes(model, RemoveUnusedNodesPass())
        from onnxscript.rewriter import RewritePass

        return changes(model, RewritePass(rules()), RemoveUnusedNodesPass())


@cache
def rules() -> tuple["RewriteRule", ...]:
    """Return the rules, in the order in which they are tried."""
    from onnxscript.rewriter.rules.common import (
        _basic_rules,
        _collapse_slices,
        _materialize_reshape_shape,
        _no_op,
        _remove_optional_bias,
    )

    # Left out, with the reason: fuse_relus_clips is wrong where a Clip has min above max, and like
    # min_max_to_clip names new constants after the input, so that two Clips of one value collide;
    # broadcast_to_matmul undoes the 2-D form that integer kernels want; slice_split has a pattern
    # of two outputs, which the rewriter looks for in a time that grows with the square of the
    # nodes.
    basic = _basic_rules.basic_optimization_rules()
    return (
        *_no_op.rules,
        *_collapse_slices.rules,
        *_materialize_reshape_shape.rules,
        *(rule for rule in basic if rule is not _basic_rules.slice_split_rule),
        *_remove_optional_bias.rules,
    )


def counts_nothing(node: ir.Node) -> bool:
    """Say whether an AveragePool counts a padding that it does not have.

    With ``ceil_mode`` the last window may reach past the end, where versions do not agree.
    """
    if not is_op(node, "AveragePool") or not node.attributes.get_int("count_include_pad", 0):
        return False
    padded = any(node.attributes.get_ints("pads", ()))
    fixed = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return fixed and not padded and not node.attributes.get_int("ceil_mode", 0)


def may_match(node: ir.Node) -> bool:
    """Say whether a rule may match at the node; True where that takes a closer look."""
    asked = None if node.domain else MATCHING.get(node.op_type)
    return asked is not None and asked(node)


def _always(_node: ir.Node) -> bool:
    return True


def _with_scalar(node: ir.Node) -> bool:
    known = (ir.convenience.get_const_tensor(v) for v in node.inputs if v is not None)
    return any(tensor is not None and tensor.size == 1 for tensor in known)


def _with_zero_bias(node: ir.Node) -> bool:
    index = 8 if node.op_type == "QLinearConv" else 2
    bias = constant(node.inputs[index]) if len(node.inputs) > index else None
    return bias is not None and not bias.any()


def _cast(node: ir.Node) -> bool:
    source = node.inputs[0]
    same = source is not None and source.dtype == node.attributes["to"].as_int()
    return same or producer(source, "Cast") is not None


def _slice(node: ir.Node) -> bool:
    steps = constant(node.inputs[4]) if len(node.inputs) == 5 else None
    return len(node.inputs) == 5 and (steps is None or bool((steps == 1).all()))


def _reshape(node: ir.Node) -> bool:
    if producer(node.inputs[0], "Reshape", "Squeeze") is not None:
        return True
    shape = node.outputs[0].shape
    if shape is None or constant(node.inputs[1]) is not None:
        return False
    return sum(not isinstance(size, int) for size in shape) <= 1


def _transpose(node: ir.Node) -> bool:
    order = list(node.attributes.get_ints("perm", ()))
    return order == sorted(order) or producer(node.inputs[0], "Transpose") is not None


def _unsqueeze(node: ir.Node) -> bool:
    return producer(node.inputs[0], "Unsqueeze") is not None


MATCHING: dict[str, Callable[[ir.Node], bool]] = {
    "Add": _with_scalar,
    "Cast": _cast,
    "Conv": _with_zero_bias,
    "ConvTranspose": _with_zero_bias,
    "Div": _with_scalar,
    "Dropout": _always,
    "Expand": _always,
    "Flatten": _always,
    "Gemm": _with_zero_bias,
    "Mul": _with_scalar,
    "QLinearConv": _with_zero_bias,
    "Reshape": _reshape,
    "Slice": _slice,
    "Sub": _with_scalar,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""The operators at which rules match, and what must hold there for one to."""
