"""A number for each channel taken off a value in the bias before it, given back in those behind."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.graph.channels import channels_of, expanded_prelu, is_layer
from qcompile.graph.division import input_of
from qcompile.graph.walk import constant, consumers, is_constant, is_op, only_consumer


class KeepsMean(Exception):  # noqa: N818 - a reason
    """A value whose mean cannot be moved; the message says why."""


@dataclass(frozen=True)
class Shift:
    """A value behind a Relu, which a shift of the bias before it moves.

    Attributes:
        value: What the Relu makes, ``(N, C, ...)``.
        first: The Conv or Gemm before the Relu, whose bias takes the shift.
        readers: The Conv and Gemm nodes that read the value; their biases give it back.
    """

    value: ir.Value
    first: ir.Node
    readers: tuple[ir.Node, ...]

    @property
    def channels(self) -> int:
        """Number of channels of the value."""
        return _outputs(self.first)


def find_shift(value: ir.Value) -> Shift:
    """Return what moves with a value, if anything does.

    ``Relu(p) - c`` is ``Relu(p - c)`` wherever p is at least c (arXiv:1906.04721, section 4.1.3).
    A reader that pads with zeros would read zeros where it ought to read -c: it is refused.

    Raises:
        KeepsMean: Nothing does; says why.
    """
    relu = value.producer()
    if not is_op(relu, "Relu") or relu.inputs[0] is None:
        written = relu is not None and expanded_prelu(relu) is not None
        maker = "PRelu" if written else relu.op_type if relu is not None else "no node"
        raise KeepsMean(f"{maker} makes it: a Relu alone passes a shift on")
    first = relu.inputs[0].producer()
    if first is None or not _has_vector_bias(first) or only_consumer(relu.inputs[0]) is not relu:
        raise KeepsMean("no Conv or Gemm alone makes what the Relu reads")
    if value.is_graph_output():
        raise KeepsMean("the value is an output of the model")
    for node, index in consumers(value):
        if index != 0 or node.graph is not relu.graph or not _has_vector_bias(node):
            raise KeepsMean("others than layers with a bias read the value")
        if is_op(node, "Conv") and _pads(node):
            raise KeepsMean("a Conv that reads it pads it with zeros")
    if channels_of(value, 1) != _outputs(first):
        raise KeepsMean("its channels are not on axis 1")
    return Shift(value, first, tuple(dict.fromkeys(node for node, _ in consumers(value))))


def returned(node: ir.Node, shift: np.ndarray) -> np.ndarray:
    """Return what a reader makes of a shift ``(C,)``: for each of its outputs, float64 ``(M,)``."""
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None  # noqa: S101, PT018 - a layer
    values = weight.const_value.numpy().astype(np.float64)
    if is_op(node, "Gemm"):
        made: np.ndarray = (
            values @ shift if node.attributes.get_int("transB", 0) else shift @ values
        )
        return made
    groups = node.attributes.get_int("group", 1)
    by_group = values.reshape(groups, -1, *values.shape[1:2], int(np.prod(values.shape[2:])))
    summed: np.ndarray = np.einsum("gmck,gc->gm", by_group, shift.reshape(groups, -1))
    return summed.reshape(-1)


def bias_of(node: ir.Node) -> np.ndarray:
    """Return a layer's bias, float64 ``(M,)``; zeros where it has none that is constant and so."""
    value, count = input_of(node, 2), _outputs(node)
    array = constant(value, max_elements=count)
    if array is None or array.size not in (1, count):
        return np.zeros(count)
    return np.broadcast_to(array.astype(np.float64).reshape(-1), count)


def _outputs(node: ir.Node) -> int:
    """Return the number of output channels of a Conv or Gemm."""
    shape = _shape(node)
    axis = 0 if is_op(node, "Conv") or node.attributes.get_int("transB") else 1
    return int(shape[axis])


def _shape(node: ir.Node) -> list[int]:
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None  # noqa: S101, PT018 - a layer
    return list(weight.const_value.shape.numpy())


def _has_vector_bias(node: ir.Node) -> bool:
    """Say whether a node is a Conv or plain Gemm whose bias is a constant by output channel."""
    bias = input_of(node, 2)
    gemm = is_op(node, "Gemm") and is_layer(node)
    if not (is_op(node, "Conv") and is_constant(node.inputs[1])) and not gemm:
        return False
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if bias is None:
        return plain
    return plain and is_constant(bias) and bias.shape is not None and len(bias.shape) == 1


def _pads(node: ir.Node) -> bool:
    pads = node.attributes.get_ints("pads", [])
    return any(pads) or node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
