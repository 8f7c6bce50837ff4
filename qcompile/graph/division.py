"""A value divided by a number for each channel, by dividing the constants that make it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant, add_initializer, drop_unread, lazy_tensor
from qcompile.graph.walk import constant, is_constant, only_consumer

Scale = npt.NDArray[np.floating]
"""Positive numbers that a value is divided by, broadcast to its shape; no leading axis is 1."""

_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Operator to the inputs that scale and shift what it normalized."""

_HOMOGENEOUS = ("Relu", "LeakyRelu")
"""Operators with f(x / s) = f(x) / s for positive s."""


class KeepsBasis(Exception):  # noqa: N818 - a reason
    """A value that cannot be divided by changing constants; the message says why."""


@dataclass(frozen=True)
class Edit:
    """A change of one constant input of a node.

    Attributes:
        node: The node.
        index: Of the input.
        change: Does it; returns whether the graph changed.
    """

    node: ir.Node
    index: int
    change: Callable[[], bool]


class Divider:
    """Finds the edits that divide a value by a scale.

    Constants can take a division: scale and shift of a normalization, the constants of Mul and Add,
    the rows and the bias of a linear layer, also through operators that hand a positive factor on.
    """

    word = "divided"
    """What the name of a new constant says of it."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = Names(model)

    def divide(self, value: ir.Value, scale: Scale) -> list[Edit]:
        """Return the edits of constants that divide a value whose readers all expect it.

        Raises:
            KeepsBasis: There are none.
        """
        node = value.producer()
        if node is None or node.graph is not self.graph or value is not node.outputs[0]:
            raise KeepsBasis("no node of the graph makes the value")
        if node.domain not in ("", "com.microsoft"):
            raise KeepsBasis(f"{node.domain}.{node.op_type} makes it")
        return self.through(node, scale)

    def through(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Return the edits at a node, or before it, that divide what it makes.

        Raises:
            KeepsBasis: There are none.
        """
        if node.op_type in _NORMS:
            shifted = [i for i in _NORMS[node.op_type] if input_of(node, i) is not None]
            return [self.constant(node, index, scale) for index in shifted]
        if node.op_type in ("MatMul", "Gemm"):
            return self.linear(node, scale)
        if node.op_type == "Mul":
            return self._factor(node, scale)
        if node.op_type == "Add":
            return self._terms(node, scale)
        if node.op_type in _HOMOGENEOUS:
            return self.operand(node, 0, scale)
        raise KeepsBasis(f"{node.op_type} makes it")

    def linear(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Return the edits of a MatMul or Gemm."""
        bias = self.bias(node, scale)
        return [self.rows(node, scale), *bias]

    def bias(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Return the edit of a Gemm's third input, if it has one."""
        return [self.constant(node, 2, scale)] if input_of(node, 2) is not None else []

    def operand(self, node: ir.Node, index: int, scale: Scale) -> list[Edit]:
        """Return the edits that divide one input of a node, constant or not."""
        value = input_of(node, index)
        if value is None or is_constant(value):
            return [self.constant(node, index, scale)]
        if only_consumer(value) is not node:
            raise KeepsBasis("others read a value before it")
        return self.divide(value, scale)

    def _factor(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Return the edits of the first factor that can be divided."""
        reasons = []
        for index in (1, 0):
            try:
                return self.operand(node, index, scale)
            except KeepsBasis as reason:
                reasons.append(str(reason))
        raise KeepsBasis(reasons[0])

    def _terms(self, node: ir.Node, scale: Scale) -> list[Edit]:
        if not any(is_constant(value) for value in node.inputs):
            raise KeepsBasis("a sum of values makes it")
        return [edit for index in (0, 1) for edit in self.operand(node, index, scale)]

    def rows(self, node: ir.Node, scale: Scale) -> Edit:
        """Divide a linear layer in float: the rows of its weight."""
        shape = self.float_weight(node).shape.numpy()
        axis = 0 if node.attributes.get_int("transB", 0) else -1
        if len(shape) != 2 or scale.shape != (shape[axis],):
            raise KeepsBasis("a product makes it that has no matrix of weights")
        by_row = scale[:, None] if axis == 0 else scale
        return self.weight(node, lambda values: values / by_row)

    def float_weight(self, node: ir.Node) -> ir.TensorProtocol:
        """Return the constant weight of a node, not read.

        Raises:
            KeepsBasis: It has none in float32.
        """
        weight = node.inputs[1]
        source = None if weight is None or not is_constant(weight) else weight.const_value
        if source is None or source.dtype is not ir.DataType.FLOAT:
            raise KeepsBasis("a product makes it that has no weight in float32")
        return source

    def weight(self, node: ir.Node, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
        """Return the edit of a weight in float32; it is computed each time that it is read."""

        def edit() -> bool:
            source = self.float_weight(node)  # as earlier edits have left it
            name = self.names.fresh(_named(node.inputs[1]), self.word)
            shape = source.shape.numpy()
            tensor = lazy_tensor(name, source.dtype, shape, lambda: change(source.numpy()))
            return replace_constant(node, 1, add_initializer(self.graph, tensor))

        return Edit(node, 1, edit)

    def constant(self, node: ir.Node, index: int, scale: Scale) -> Edit:
        """Divide a constant that has a number for each channel.

        Raises:
            KeepsBasis: It has not, or the result would leave its type.
        """
        value = input_of(node, index)
        array = constant(value, max_elements=scale.size)
        if value is None or array is None or not _covers(array, scale):
            raise KeepsBasis("what scales it before is no constant with a number a column")
        with np.errstate(over="ignore"):
            divided = (array.astype(np.float64) / scale).astype(array.dtype)
        if not np.isfinite(divided).all():
            raise KeepsBasis(f"a constant before it would leave {array.dtype}")

        def edit() -> bool:
            name = self.names.fresh(value, self.word)
            return replace_constant(node, index, add_constant(self.graph, name, divided))

        return Edit(node, index, edit)

    def insert_mul(self, x: ir.Value, scale: Scale, readers: Sequence[ir.Node]) -> bool:
        """Divide what layers take as their first input by a node of its own."""
        dtype = _named(readers[0].inputs[1]).dtype
        assert dtype is not None  # noqa: S101 - of a weight
        inverse = (1 / scale.astype(np.float64)).astype(dtype.numpy())
        factor = add_constant(self.graph, self.names.fresh(x, "inverse_scale"), inverse)
        node = ir.node("Mul", [x, factor], name=self.names.fresh(x, "Mul"))
        node.outputs[0].name = self.names.fresh(x, "scaled")
        node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
        self.graph.insert_before(readers[0], node)
        for reader in readers:
            reader.replace_input_with(0, node.outputs[0])
        return True


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input of a node, or None where it is omitted."""
    return node.inputs[index] if index < len(node.inputs) else None


def replace_constant(node: ir.Node, index: int, new: ir.Value) -> bool:
    """Let a node read another constant; the old one goes if nobody reads it."""
    old = node.inputs[index]
    node.replace_input_with(index, new)
    if old is not None:
        drop_unread(old)
    return True


def _named(value: ir.Value | None) -> ir.Value:
    assert value is not None  # noqa: S101 - a weight
    return value


def _covers(array: np.ndarray, scale: Scale) -> bool:
    """Say whether a constant has an element for each number of a scale."""
    try:
        return np.broadcast_shapes(array.shape, scale.shape) == array.shape
    except ValueError:
        return False
