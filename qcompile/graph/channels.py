"""A value divided by a number for each channel, which the weights that read it take on."""

import numpy as np
import onnx_ir as ir

from qcompile.graph.division import Divider, Edit, KeepsBasis, Scale, input_of
from qcompile.graph.walk import consumers, is_constant, is_op, only_consumer, producer, scalar

_BY_CHANNEL = ("BatchNormalization", "InstanceNormalization")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_MOVED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")

BOUNDED = "Clip makes it: its bound would have to differ by channel"
OTHERS = "others read the same value"


class ChannelDivider(Divider):
    """Finds what divides a value by its channels, and what multiplies its readers.

    To what ``Divider`` knows it adds Conv, ConvTranspose and norms over channels; PRelu, also
    written out; operators that move channels (Reshape, Transpose), pool or pad them with zeros; and
    the product of two activations, which is divided in its second factor.
    """

    word = "rescaled"

    def rescale(self, value: ir.Value, scale: Scale) -> list[Edit]:
        """Return the edits that divide a value and multiply the weights of all its readers.

        Args:
            value: Read by products with constant weights, or by a Mul with a constant.
            scale: As ``channel_scale`` gives it.

        Raises:
            KeepsBasis: There are none; says why.
        """
        if value.is_graph_output():
            raise KeepsBasis("the value is an output of the model")
        readers = [self.multiplied(node, index, scale) for node, index in consumers(value)]
        if not readers:
            raise KeepsBasis("nobody reads the value")
        return [*self.divide(value, scale), *readers]

    def multiplied(self, node: ir.Node, index: int, scale: Scale) -> Edit:
        """Return the edit of a reader, so that it makes of the divided value what it made before.

        Raises:
            KeepsBasis: It has no constant that could take the factor.
        """
        if node.graph is not self.graph or node.domain:
            raise KeepsBasis(OTHERS)
        if node.op_type == "Mul" and is_constant(node.inputs[1 - index]):
            return self.constant(node, 1 - index, 1 / scale.astype(np.float64))
        if index == 0 and is_op(node, "Conv"):
            return self._kernels(node, scale)
        if index == 0 and is_layer(node):
            return self.columns(node, scale)
        raise KeepsBasis(OTHERS)

    def columns(self, node: ir.Node, scale: Scale) -> Edit:
        """Return the edit of a MatMul or Gemm that reads the divided value.

        Raises:
            KeepsBasis: Its weight does not fit the scale.
        """
        shape = self.float_weight(node).shape.numpy()
        axis = 1 if node.attributes.get_int("transB", 0) else 0
        if len(shape) != 2 or scale.shape != (shape[axis],):
            raise KeepsBasis("its channels are not the columns of the layer that reads it")
        factor = scale if axis == 1 else scale[:, None]
        return self.weight(node, lambda values: values * factor)

    def _kernels(self, node: ir.Node, scale: Scale) -> Edit:
        """Return the edit of a Conv that reads the divided value."""
        outputs, inputs, *kernel = self.float_weight(node).shape.numpy()
        groups = node.attributes.get_int("group", 1)
        if scale.shape != (groups * inputs, *[1] * len(kernel)):
            raise KeepsBasis("its channels are not those of the Conv that reads it")
        by_group = scale.reshape(groups, 1, inputs)
        factor = np.repeat(by_group, outputs // groups, axis=1)
        factor = factor.reshape(outputs, inputs, *[1] * len(kernel))
        return self.weight(node, lambda values: values * factor)

    def through(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Return the edits at a node, or before it, that divide what it makes."""
        if node.domain:
            return super().through(node, scale)
        if node.op_type in ("Conv", "ConvTranspose"):
            return self._convolution(node, scale)
        if node.op_type in _BY_CHANNEL:
            return [self.constant(node, index, _flat(node, scale)) for index in (1, 2)]
        if (x := expanded_prelu(node)) is not None:
            return self.divide(x, scale)
        if (before := _handed_on(node, scale)) is not None:
            return self.operand(node, *before)
        return super().through(node, scale)

    def _convolution(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Divide what a Conv or ConvTranspose makes: its kernels by output channel, its bias."""
        channels = _flat(node, scale)
        shape = self.float_weight(node).shape.numpy()
        groups = node.attributes.get_int("group", 1)
        ones = [1] * (len(shape) - 2)
        if node.op_type == "Conv":
            divisor = channels.reshape(-1, 1, *ones)
            count = shape[0]
        else:  # (C, M / groups, ...): the first axis goes by group
            divisor = channels.reshape(groups, 1, -1).repeat(shape[0] // groups, axis=1)
            divisor, count = divisor.reshape(shape[0], -1, *ones), groups * shape[1]
        if count != len(channels):
            raise KeepsBasis(f"the channels of a {node.op_type} are others")
        bias = [self.constant(node, 2, channels)] if input_of(node, 2) is not None else []
        return [self.weight(node, lambda values: values / divisor), *bias]


def channel_scale(value: ir.Value, scale: np.ndarray, axis: int) -> Scale:
    """Return numbers for each channel so that they broadcast to a value.

    Args:
        value: Of known rank.
        scale: ``(C,)``.
        axis: 1 or -1.
    """
    rank = _rank(value)
    behind = 0 if axis == -1 else max(rank - 1 - axis, 0)
    return scale.astype(np.float32).reshape(-1, *[1] * behind)


def channels_of(value: ir.Value, axis: int) -> int | None:
    """Return the number of channels of a value, or None where it is not known."""
    rank = _rank(value)
    if value.shape is None or not -rank <= axis < rank:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def is_layer(node: ir.Node) -> bool:
    """Say whether a node is a MatMul or Gemm with a constant matrix of weights."""
    weight = input_of(node, 1)
    return (
        is_op(node, "MatMul", "Gemm")
        and is_constant(weight)
        and _rank(weight) == 2
        and not node.attributes.get_int("transA", 0)
    )


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None or value.shape is None else len(value.shape)


def _flat(node: ir.Node, scale: Scale) -> Scale:
    """Return the numbers ``(C,)`` of a scale of axis 1."""
    rank = _rank(node.outputs[0])
    if rank < 2 or scale.ndim != rank - 1 or scale.size != scale.shape[0]:
        raise KeepsBasis(f"{node.op_type} makes it, in other channels")
    return scale.reshape(-1)


def _handed_on(node: ir.Node, scale: Scale) -> tuple[int, Scale] | None:
    """Return the input that a division of what a node makes passes on to, and by what."""
    if node.op_type == "PRelu":
        return 0, scale
    if node.op_type in _POOLS or _pads_zeros(node):
        _flat(node, scale)
        return 0, scale
    if node.op_type in _MOVED:
        return 0, _moved_back(node, scale)
    if node.op_type == "MatMul" and not is_constant(node.inputs[1]):
        ranks = {_rank(value) for value in (*node.inputs, node.outputs[0])}
        if len(ranks) > 1 or (scale.ndim > 1 and scale.shape[-2] > 1):
            raise KeepsBasis("a product of two values makes it, in other channels")
        return 1, scale
    if node.op_type == "Clip":
        raise KeepsBasis(BOUNDED)
    return None


def expanded_prelu(node: ir.Node) -> ir.Value | None:
    """Return x where a node is the last of ``Max(x, x * slope)`` or ``x + Min(x, 0) * slope``."""
    if not is_op(node, "Max", "Add") or len(node.inputs) != 2:
        return None
    for x, other in (node.inputs, reversed(node.inputs)):
        chain = [producer(other, "Mul")]
        inner = _varying(chain[0])
        if is_op(node, "Add"):
            chain.append(producer(inner, "Min"))
            low = chain[-1]
            inner = _varying(low) if low and any(_is_zero(v) for v in low.inputs) else None
        first = chain[-1]
        if x is None or inner is not x or x.is_graph_output() or first is None:
            continue
        alone = all(step is not None and only_consumer(step.outputs[0]) for step in chain)
        if alone and {reader for reader, _ in consumers(x)} == {node, first}:
            return x
    return None


def _varying(node: ir.Node | None) -> ir.Value | None:
    """Return the operand of a node of two that is not constant, where the other one is."""
    if node is None or len(node.inputs) != 2:
        return None
    operands = [v for v in node.inputs if not is_constant(v)]
    return operands[0] if len(operands) == 1 else None


def _is_zero(value: ir.Value | None) -> bool:
    return is_constant(value) and scalar(value) == 0.0


def _pads_zeros(node: ir.Node) -> bool:
    """Say whether a node is a Pad that adds zeros, and no channels."""
    if not is_op(node, "Pad") or node.attributes.get_string("mode", "constant") != "constant":
        return False
    value, axes = input_of(node, 2), input_of(node, 3)
    pads = node.inputs[1].const_value if node.inputs[1] is not None else None
    if axes is not None or pads is None or (value is not None and scalar(value) != 0.0):
        return False
    before, behind = np.split(pads.numpy(), 2)
    return not (before[1] or behind[1])


def _moved_back(node: ir.Node, scale: Scale) -> Scale:
    """Return the scale of what a Reshape or Transpose reads, from that of what it makes.

    The indices of the numbers are moved, so that equal numbers are told apart.
    """
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None:
        raise KeepsBasis(f"{node.op_type} makes it, of unknown shape")
    indices = np.arange(scale.size).reshape(scale.shape)
    dims, made = _static(x.shape), _static(y.shape)
    if any(n not in (1, size) for n, size in zip(scale.shape[::-1], made[::-1], strict=False)):
        raise KeepsBasis(f"{node.op_type} makes it: its channels cannot be followed")
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", list(reversed(range(len(made)))))
        whole = indices.reshape([1] * (len(made) - indices.ndim) + list(indices.shape))
        return _taken(scale, whole.transpose(np.argsort(order)))
    for count in range(scale.ndim, len(made) + 1):
        shape = made[len(made) - count :]
        taken = _suffix(dims, shape)
        if taken is not None:
            spread = np.broadcast_to(indices, shape).reshape(taken)
            return _taken(scale, _compressed(spread))
    raise KeepsBasis(f"{node.op_type} makes it: its channels cannot be followed")


def _static(shape: ir.Shape) -> list[int]:
    """Return the sizes of axes, 0 for one that is not known."""
    return [dim if isinstance(dim, int) else 0 for dim in shape]


def _suffix(dims: list[int], made: list[int]) -> list[int] | None:
    """Return the last of some sizes that hold as many elements as others, if all are known."""
    wanted = int(np.prod(made))
    for count in range(1, len(dims) + 1):
        last = dims[len(dims) - count :]
        if wanted and int(np.prod(last)) == wanted:
            return last
    return None


def _compressed(indices: np.ndarray) -> np.ndarray:
    """Return indices with one in place of equal ones along an axis."""
    for axis in range(indices.ndim):
        first = indices.take([0], axis=axis)
        if (indices == first).all():
            indices = first
    return indices


def _taken(scale: Scale, indices: np.ndarray) -> Scale:
    """Return the numbers at indices, without leading axes of 1; at least one axis is left."""
    while indices.ndim > 1 and indices.shape[0] == 1:
        indices = indices[0]
    taken: Scale = scale.reshape(-1)[indices]
    return taken
