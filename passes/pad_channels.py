"""Pass: pad channels."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant, add_initializer, lazy_tensor, remove_dead
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_constant, is_op, producer

_MULTIPLE = 4
_LEAST_KERNELS = 16
_KERNELS_MULTIPLE = 8
_LEAST_POSITIONS = 1024
"""Outputs of one kernel from which the faster kernel pays for the Pad (measured)."""


@dataclass(frozen=True, kw_only=True)
class PadChannels(GraphPass):
    """Give an int8 Conv input channels by the four, with a channel of zeros where one lacks.

    ONNX Runtime's indirect convolution on x86 takes channels in fours; another number, as the 3 of
    a picture, falls back to a matrix of patches. Padding the codes is exact: 0 times weight 0.

    Before: ``y = Conv(DQ(c), DQ(w))``, c uint8 (N, 3, H, W), w (M, 3, kH, kW).
    After:  ``y = Conv(DQ(Pad(c, zero_point)), DQ(w.padded))``, with 4 channels each.
    Visits: the main graph. Leaves: groups, few kernels or few positions, where it does not pay.
    """

    name: ClassVar[str] = "pad-channels"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find every such Conv, then pad each."""
        convs = [conv for node in model.graph if (conv := _int8_conv(node)) is not None]
        found = [conv for conv in convs if self._pays(conv)]
        names = Names(model)
        for conv in found:
            _pad(conv, names)
        return bool(found)

    def _pays(self, conv: "_Int8Conv") -> bool:
        if (
            conv.tensor.shape.numpy()[1] % _MULTIPLE == 0
            or conv.node.attributes.get_int("group", 1) != 1
        ):
            return False
        count = int(conv.tensor.shape.numpy()[0])
        if count < _LEAST_KERNELS or count % _KERNELS_MULTIPLE:
            self.refuse("its number of kernels is not one that the faster kernel takes")
            return False
        if _positions(conv.node.outputs[0]) < _LEAST_POSITIONS:
            self.refuse("it has too few positions, or an unknown number")
            return False
        return True


@dataclass(frozen=True)
class _Int8Conv:
    """A Conv of uint8 codes, which only x86 gets, and constant kernels: both dequantized."""

    node: ir.Node
    data: ir.Node
    weight: ir.Node
    codes: ir.Value
    kernels: ir.Value
    tensor: ir.TensorProtocol


def _int8_conv(node: ir.Node) -> _Int8Conv | None:
    if not is_op(node, "Conv"):
        return None
    data, weight = (producer(node.inputs[i], "DequantizeLinear") for i in (0, 1))
    if data is None or weight is None or len(data.inputs) < 3:
        return None
    codes, kernels = data.inputs[0], weight.inputs[0]
    if codes is None or codes.dtype != ir.DataType.UINT8 or codes.shape is None:
        return None
    if kernels is None or not is_constant(kernels) or len(weight.inputs) < 3:
        return None
    tensor = ir.convenience.get_const_tensor(kernels)
    return None if tensor is None else _Int8Conv(node, data, weight, codes, kernels, tensor)


def _positions(value: ir.Value) -> int:
    """Return the spatial positions of one sample; 0 where they are not known."""
    space = tuple(value.shape or ())[2:]
    sizes = [size for size in space if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(space) else 0


def _pad(conv: _Int8Conv, names: Names) -> None:
    graph, codes, tensor = conv.node.graph, conv.codes, conv.tensor
    assert graph is not None  # noqa: S101 - it was found there
    count, channels, *kernel = tensor.shape.numpy()
    wider = channels + -channels % _MULTIPLE
    amounts = np.zeros((2, 2 + len(kernel)), np.int64)
    amounts[1, 1] = wider - channels

    pads = add_constant(graph, names.fresh(codes, "pads"), amounts.reshape(-1))
    pad = ir.node("Pad", [codes, pads, conv.data.inputs[2]], name=names.fresh(codes, "Pad"))
    _describe(pad.outputs[0], names.fresh(codes, "padded"), codes, wider)
    graph.insert_before(conv.node, pad)

    # What stands in the new channels of the weights does not matter: it meets zeros.
    label, shape = names.fresh(conv.kernels, "padded"), [count, wider, *kernel]
    padded = lazy_tensor(label, tensor.dtype, shape, lambda: np.pad(tensor.numpy(), amounts.T))
    kernels = add_initializer(graph, padded)
    for index, (old, source) in enumerate(((conv.data, pad.outputs[0]), (conv.weight, kernels))):
        real = old.outputs[0]
        new = ir.node(
            "DequantizeLinear",
            [source, *old.inputs[1:]],
            attributes=dict(old.attributes),
            name=names.fresh(real, "padded.DequantizeLinear"),
        )
        _describe(new.outputs[0], names.fresh(real, "padded"), real, wider)
        graph.insert_before(conv.node, new)
        conv.node.replace_input_with(index, new.outputs[0])
    remove_dead([conv.data, conv.weight])


def _describe(new: ir.Value, name: str, old: ir.Value, channels: int) -> None:
    sizes = list(old.shape or ())
    sizes[1:2] = [channels]
    new.name, new.type, new.shape = name, old.type, ir.Shape(sizes)
