"""What the weighted operators multiply: the codes behind each operand, and what lies between."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.graph.walk import all_nodes, is_op
from qcompile.lint.qdq import code_type, is_dequantize, is_weight, rank, shape

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
PRODUCTS = ("MatMul", "Gemm")

# A DQ moves forward over these: codes are moved as well as real numbers are.
_COMMUTING = (
    *("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "MaxPool"),
    *("Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Concat"),
)
_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Operand:
    """One of the two factors of a weighted node.

    Attributes:
        value: What the node reads.
        dequantize: The DQ behind it, if only moves lie between: the factor is quantized.
        moves: Those, from the DQ to the node.
        constant: Whether it is the same in every run.
    """

    value: ir.Value
    dequantize: ir.Node | None
    moves: tuple[ir.Node, ...]
    constant: bool

    @property
    def codes(self) -> ir.DataType | None:
        """Type of the codes, None where it is not quantized or the type is not known."""
        return None if self.dequantize is None else code_type(self.dequantize)


@dataclass(frozen=True)
class Weighted:
    """A Conv, ConvTranspose, MatMul or Gemm.

    Attributes:
        node: The operator.
        data: The factor that changes from run to run.
        weight: The constant factor; the second where none is constant.
        index: Which input the weight is.
    """

    node: ir.Node
    data: Operand
    weight: Operand
    index: int

    @property
    def is_product(self) -> bool:
        """Whether it is a MatMul or Gemm."""
        return self.node.op_type in PRODUCTS

    @property
    def output_axis(self) -> int | None:
        """Axis of the weight that counts output channels; None where its rank is not known."""
        node, first = self.node, self.index == 0
        if not self.is_product:
            return int(node.op_type == "ConvTranspose")
        if node.op_type == "Gemm":
            turned = node.attributes.get_int("transA" if first else "transB", 0)
            return turned if first else 1 - turned
        dims = rank(self.weight.value)
        return None if dims is None else dims - 2 + self.index

    @property
    def sum_axis(self) -> int | None:
        """Axis of the weight of a product that the sum runs over; None where not known."""
        dims, other = rank(self.weight.value), self.output_axis
        return None if dims is None or other is None or dims < 2 else 2 * dims - 3 - other


def weighted_nodes(model: ir.Model) -> Iterator[Weighted]:
    """Yield all weighted nodes, subgraphs included, that do not multiply two constants."""
    origins = dequantized(model)
    for node, _ in all_nodes(model):
        if not is_op(node, *WEIGHTED) or len(node.inputs) < 2:
            continue
        left, right = node.inputs[0], node.inputs[1]
        if left is None or right is None:
            continue
        first, second = operand(left, origins), operand(right, origins)
        if not first.constant:
            yield Weighted(node, first, second, 1)
        elif not second.constant:
            yield Weighted(node, second, first, 0)


def dequantized(model: ir.Model) -> dict[ir.Value, ir.Node]:
    """Return all values that are moved codes, each with the DQ that it comes from.

    Where codes of several DQs meet (Concat) it is that of the first input.
    """
    origins: dict[ir.Value, ir.Node] = {}
    for node, _ in all_nodes(model):
        if is_dequantize(node):
            origins[node.outputs[0]] = node
        elif is_op(node, *_COMMUTING):
            sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            found = [origins.get(value) for value in sources if value is not None]
            if found and found[0] is not None and None not in found:
                origins |= dict.fromkeys(node.outputs, found[0])
    return origins


def operand(value: ir.Value, origins: Mapping[ir.Value, ir.Node]) -> Operand:
    """Return what is known of a factor; ``origins`` are those of ``dequantized``."""
    dequantize = origins.get(value)
    moves: list[ir.Node] = []
    node = value.producer()
    while dequantize is not None and node is not None and node is not dequantize:
        moves.append(node)
        before = node.inputs[0]
        node = None if before is None else before.producer()
    return Operand(value, dequantize, tuple(reversed(moves)), is_weight(value))


def track_axis(axis: int, moves: tuple[ir.Node, ...]) -> tuple[int | None, ir.Node | None]:
    """Follow an axis through Identity, Cast, Transpose and reshaping nodes.

    Returns:
        The axis behind all of them and None; or None and the node that merges or splits the axis;
        or None twice, where a shape is not known.
    """
    for move in moves:
        if move.op_type == "Transpose":
            count = rank(move.inputs[0])
            if count is None:
                return None, None
            order = move.attributes.get_ints("perm", range(count)[::-1])
            if axis not in order:
                return None, None
            axis = order.index(axis)
        elif move.op_type in _RESHAPING:
            before, after = shape(move.inputs[0]), shape(move.outputs[0])
            if before is None or after is None or axis >= len(before):
                return None, None
            found = _same_axis(axis, before, after)
            if found is None:
                return None, move
            axis = found
        elif move.op_type not in {"Identity", "Cast"}:
            return None, None
    return axis, None


def _same_axis(axis: int, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Return the axis of the new shape that counts what the old one counted."""
    ahead = _volume(before[:axis])
    fitting = (
        i for i, size in enumerate(after) if size == before[axis] and _volume(after[:i]) == ahead
    )
    return next(fitting, None)


def _volume(dims: tuple[int, ...]) -> int:
    volume = 1
    for dim in dims:
        volume *= dim
    return volume


def reshapes(move: ir.Node) -> bool:
    """Return whether a node gives its data another shape, as far as that is known."""
    return is_op(move, *_RESHAPING) and shape(move.inputs[0]) != shape(move.outputs[0])
