"""Pass: fold constants."""

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qcompile.graph.edit import changes
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, consumers, is_constant, is_op, subgraphs
from qcompile.passes.compute_integers import compute_integers
from qcompile.passes.infer_shapes import InferShapes

# These only move elements: fold-weights does them without reading the weight.
_LAYOUT = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"}

# What the folder never computes.
_KEPT = ("Constant", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")

# What the folder resolves although it reads more than constants. Of others see _resolves.
_RESOLVED = (
    "Abs",
    "CastLike",
    "ConcatFromSequence",
    "Dropout",
    "Expand",
    "Identity",
    "SequenceAt",
    "SequenceConstruct",
    "Size",
    "SplitToSequence",
)


@dataclass(frozen=True, kw_only=True)
class FoldConstants(GraphPass):
    """Compute what depends on nothing but constants; onnxscript's folder with our limits.

    It also resolves shape computations where the shape is known, and an If whose condition is.
    Large tensors are not read: layout operators on weights are the work of fold-weights. The folder
    takes a while to import and 25 MB: the paddings that exporters leave as nodes are computed
    without it, and it is called only where more may be left to do.

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
        modified = compute_integers(model)
        if modified:
            InferShapes()(model)
        known = not any(self._may_fold(node) for node in model.graph)
        return (changes(model, RemoveUnusedNodesPass()) if known else self._fold(model)) or modified

    def _may_fold(self, node: ir.Node) -> bool:
        """Say whether there is anything about the node for the folder; True where unsure."""
        if subgraphs(node) or is_op(node, *_RESOLVED) or _resolves(node):
            return True
        known = all(is_constant(value) for value in node.inputs if value is not None)
        return known and not is_op(node, *_KEPT) and self._should_fold(node) is not False

    def _fold(self, model: ir.Model) -> bool:
        from onnxscript.optimizer._constant_folding import FoldConstantsPass

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


def _resolves(node: ir.Node) -> bool:
    """Say whether the folder can replace a node that reads more than constants; True if unsure."""
    if is_op(node, "Concat"):
        axis = node.attributes.get_int("axis", 0)
        return len(node.inputs) == 1 or any(0 in _sizes(value, axis) for value in node.inputs)
    first = node.inputs[0] if node.inputs else None
    if first is None or not is_op(node, "Cast", "Reshape", "Shape"):
        return False
    if is_op(node, "Cast"):
        return first.dtype is None or first.dtype == node.attributes["to"].as_int()
    if is_op(node, "Reshape"):
        target = constant(node.inputs[1], max_elements=64)
        return target is not None and _sizes(first) == target.tolist()
    ends_in_gather = all(_takes_one_size(reader) for reader, _ in consumers(node.outputs[0]))
    return not ends_in_gather or all(isinstance(size, int) for size in _sizes(first))


def _sizes(value: ir.Value | None, axis: int | None = None) -> list[int | ir.SymbolicDim]:
    """Return the sizes of a value, of one axis or of all, so far as they are known."""
    sizes = [] if value is None or value.shape is None else list(value.shape)
    return sizes if axis is None else sizes[axis:][:1]


def _takes_one_size(reader: ir.Node) -> bool:
    """Say whether a reader of a shape makes a scalar of it, which the folder does not follow."""
    index = constant(reader.inputs[1]) if is_op(reader, "Gather") else None
    return index is not None and index.ndim == 0
