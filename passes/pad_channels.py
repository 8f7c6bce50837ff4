"""Pass: pad channels."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant, lazy_tensor
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.quantized_conv import (
    CHANNELS_MULTIPLE,
    QuantizedConv,
    describe,
    quantized_conv,
)

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
        convs = [conv for node in model.graph if (conv := quantized_conv(node)) is not None]
        found = [conv for conv in convs if self._pays(conv)]
        names = Names(model)
        for conv in found:
            _pad(conv, names)
        return bool(found)

    def _pays(self, conv: QuantizedConv) -> bool:
        if not conv.odd_channels():
            return False
        if not conv.fitting_kernels():
            self.refuse("its number of kernels is not one that the faster kernel takes")
            return False
        if math.prod(conv.output_space() or (0,)) < _LEAST_POSITIONS:
            self.refuse("it has too few positions, or an unknown number")
            return False
        return True


def _pad(conv: QuantizedConv, names: Names) -> None:
    graph, codes, tensor = conv.node.graph, conv.codes, conv.tensor
    assert graph is not None  # noqa: S101 - it was found there
    count, channels, *kernel = tensor.shape.numpy()
    wider = channels + -channels % CHANNELS_MULTIPLE
    amounts = np.zeros((2, 2 + len(kernel)), np.int64)
    amounts[1, 1] = wider - channels

    pads = add_constant(graph, names.fresh(codes, "pads"), amounts.reshape(-1))
    pad = ir.node("Pad", [codes, pads, conv.data.inputs[2]], name=names.fresh(codes, "Pad"))
    batch, _, *space = tuple(codes.shape or (None, None))
    describe(pad.outputs[0], names.fresh(codes, "padded"), codes, [batch, wider, *space])
    graph.insert_before(conv.node, pad)

    # What stands in the new channels of the weights does not matter: it meets zeros.
    label, shape = names.fresh(conv.kernels, "padded"), [count, wider, *kernel]
    padded = lazy_tensor(label, tensor.dtype, shape, lambda: np.pad(tensor.numpy(), amounts.T))
    conv.rewire(pad.outputs[0], padded, "padded", names)
