"""Where the bias of a weighted node is added: in it, or in the Add behind it."""

from dataclasses import dataclass

import onnx_ir as ir

from qcompile.graph.edit import Names
from qcompile.graph.walk import is_constant, is_op, only_consumer


class NoBias(Exception):  # noqa: N818 - a reason
    """A node to which no bias can be added; the message says why."""


@dataclass(frozen=True)
class BiasPlace:
    """A constant for each output channel, and who adds it.

    Attributes:
        node: The weighted node, or the Add behind a MatMul.
        index: Of the input that is the bias.
        bias: A constant; None where the node has none yet.
        axis: Of the channels in what the node makes.
        channels: Their number.
    """

    node: ir.Node
    index: int
    bias: ir.Value | None
    axis: int
    channels: int

    @property
    def output(self) -> ir.Value:
        """What has the bias in it."""
        return self.node.outputs[0]

    def fresh_name(self, names: Names) -> str:
        """Return the name of a constant that takes the bias's place."""
        old = self.bias
        return names.fresh(self.node, "bias") if old is None else names.fresh(old, "corrected")


def bias_place(node: ir.Node) -> BiasPlace:
    """Return where the bias of a Conv, Gemm or MatMul with a constant weight is added.

    Raises:
        NoBias: There is no such place; says why.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if not is_op(node, "Conv", "Gemm", "MatMul") or weight is None or not is_constant(weight):
        raise NoBias("it has no constant weight")
    if weight.shape is None or not weight.shape.is_static():
        raise NoBias("its weight has no fixed shape")
    shape = [int(d) for d in weight.shape.numpy()]
    if is_op(node, "MatMul"):
        return _behind(node, shape[-1])
    rows = is_op(node, "Conv") or bool(node.attributes.get_int("transB", 0))
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise NoBias("it scales its bias or its product")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    channels = shape[0 if rows else 1]
    return BiasPlace(node, 2, _checked(bias, channels), 1, channels)


def _behind(node: ir.Node, channels: int) -> BiasPlace:
    add = only_consumer(node.outputs[0])
    if not is_op(add, "Add"):
        raise NoBias("no Add alone reads the product, so it has no bias")
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    return BiasPlace(add, index, _checked(add.inputs[index], channels), -1, channels)


def _checked(bias: ir.Value | None, channels: int) -> ir.Value | None:
    """Return the bias if it is one number for each channel."""
    if bias is None:
        return None
    if not bias.is_initializer() or not is_constant(bias) or bias.is_graph_output():
        raise NoBias("what it adds is no constant of the file")
    *lead, last = [1, *(bias.shape.numpy() if bias.shape is not None else (0,))]
    if last != channels or any(d != 1 for d in lead):
        raise NoBias("what it adds is not one number for each channel")
    return bias
