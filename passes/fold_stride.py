"""Pass: fold stride."""

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
    space_of,
)

_MOST_GROWTH = 1.1
"""Multiply-adds over those with padded channels up to which fewer, wider taps pay (measured).

On pictures, 7 by 7: 0.98, the Conv takes 0.7 of the time; 5 by 5: 1.08, 0.75 of the time; 3 by 3:
1.33, and where buffers come to lie in memory makes a larger difference.
"""

_LEAST_WORK = 2e6
"""Multiply-adds of a sample from which the faster Conv pays for the moves before it (measured)."""


@dataclass(frozen=True, kw_only=True)
class FoldStride(GraphPass):
    """Turn the stride of an int8 Conv on a picture into channels.

    ONNX Runtime's indirect convolution on x86 takes channels in fours and looks up an address for
    each tap of the kernel. A stride of s reads blocks of s by s pixels: as channels of one pixel
    they are 4 C or more, and the taps become fewer by s squared. Kernels and pictures that do not
    begin and end with a block get zeros there, so the sums of the codes are the same.

    Before: ``y = Conv(DQ(c), DQ(w))``, strides s, c uint8 (N, C, H, W), w (M, C, kH, kW).
    After:  ``y = Conv(DQ(blocks), DQ(w.folded))``, strides 1, blocks (N, s C s, H/s, W/s), a
    SpaceToDepth of c in Reshape and Transpose, for which ONNX Runtime has uint8 in all versions.
    Visits: the main graph. Leaves: channels by the four, groups, dilations, unequal strides,
    unknown sizes, a last row that no kernel reads, little arithmetic, kernels that would grow too
    much.
    """

    name: ClassVar[str] = "fold-stride"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find every such Conv, then fold each."""
        convs = [conv for node in model.graph if (conv := quantized_conv(node)) is not None]
        found = [(conv, fold) for conv in convs if (fold := self._fold(conv)) is not None]
        names = Names(model)
        for conv, fold in found:
            _rewrite(conv, fold, names)
        return bool(found)

    def _fold(self, conv: QuantizedConv) -> "_Fold | None":
        strides = conv.node.attributes.get_ints("strides", [1])
        if not conv.odd_channels() or max(strides) == 1:
            return None
        if len(strides) != 2 or strides[0] != strides[1]:
            self.refuse("it has not two equal strides")
        elif (conv.channels * strides[0] ** 2) % CHANNELS_MULTIPLE or not conv.fitting_kernels():
            self.refuse("its number of channels or kernels is not one that the faster kernel takes")
        elif not _plain(conv.node):
            self.refuse("it has dilations, or pads by rule")
        elif (fold := _fold_of(conv, strides[0])) is None:
            self.refuse("its input is of unknown size")
        elif min(fold.pads) < 0:
            self.refuse("its last row or column is read by no kernel")
        elif conv.tensor.size * math.prod(conv.output_space() or ()) < _LEAST_WORK:
            self.refuse("it has too little arithmetic")
        elif fold.growth > _MOST_GROWTH:
            self.refuse("its kernels would grow too much")
        else:
            return fold
        return None


@dataclass(frozen=True)
class _Fold:
    """How a kernel stands in blocks of pixels.

    Attributes:
        block: Pixels of a block on each side: the stride.
        before: Rows and columns of zeros before the kernel's first.
        kernel: Size of the kernel in blocks.
        after: Rows and columns of zeros behind the input's last.
        pads: Of the Conv, in blocks: top, left, bottom, right.
        growth: Multiply-adds, over those with channels padded to a multiple of four.
    """

    block: int
    before: tuple[int, ...]
    kernel: tuple[int, ...]
    after: tuple[int, ...]
    pads: tuple[int, ...]
    growth: float


def _plain(node: ir.Node) -> bool:
    dilations = node.attributes.get_ints("dilations", [1])
    return max(dilations) == 1 and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def _fold_of(conv: QuantizedConv, block: int) -> _Fold | None:
    inputs, outputs = space_of(conv.codes), conv.output_space()
    if inputs is None or outputs is None:
        return None
    size = tuple(conv.tensor.shape.numpy()[2:])
    pads = conv.node.attributes.get_ints("pads", [0, 0, 0, 0])[:2]
    before = tuple(-pad % block for pad in pads)
    after = tuple(-rows % block for rows in inputs)
    kernel = tuple(-(-(k + zeros) // block) for k, zeros in zip(size, before, strict=True))
    begin = [(pad + zeros) // block for pad, zeros in zip(pads, before, strict=True)]
    # What the last output reads behind the input.
    end = [
        out - 1 + k - -(-rows // block) - first
        for out, k, rows, first in zip(outputs, kernel, inputs, begin, strict=True)
    ]
    padded = conv.channels + -conv.channels % CHANNELS_MULTIPLE
    growth = conv.channels * block**2 * math.prod(kernel) / (padded * math.prod(size))
    return _Fold(block, before, kernel, after, (*begin, *end), growth)


def _rewrite(conv: QuantizedConv, fold: _Fold, names: Names) -> None:
    node, tensor = conv.node, conv.tensor
    blocks = _in_blocks(conv, fold, names)
    shape = [conv.count, conv.channels * fold.block**2, *fold.kernel]
    label = names.fresh(conv.kernels, "folded")
    folded = lazy_tensor(label, tensor.dtype, shape, lambda: _folded(tensor.numpy(), fold))
    conv.rewire(blocks, folded, "folded", names)
    node.attributes.add(ir.AttrInt64s("strides", [1, 1]))
    node.attributes.add(ir.AttrInt64s("pads", fold.pads))
    if "kernel_shape" in node.attributes:
        node.attributes.add(ir.AttrInt64s("kernel_shape", fold.kernel))


def _in_blocks(conv: QuantizedConv, fold: _Fold, names: Names) -> ir.Value:
    """Add the nodes that turn blocks of codes into channels; return those codes."""
    graph, codes, side = conv.node.graph, conv.codes, fold.block
    assert graph is not None  # noqa: S101 - it was found there
    sizes = [size + more for size, more in zip(space_of(codes) or (), fold.after, strict=True)]
    shape: list[int | ir.SymbolicDim | None] = [*(codes.shape or ())]

    def add(op: str, inputs: list[ir.Value | None], **attributes: list[int]) -> ir.Value:
        name = names.fresh(codes, op)
        node = ir.node(op, inputs, attributes=attributes, name=name)
        describe(node.outputs[0], names.fresh(codes, op.lower()), codes, shape)
        graph.insert_before(conv.node, node)
        return node.outputs[0]

    value = codes
    if any(fold.after):
        amounts = np.array([0, 0, 0, 0, 0, 0, *fold.after], np.int64)
        shape[2:] = sizes
        pads = add_constant(graph, names.fresh(codes, "pads"), amounts)
        value = add("Pad", [codes, pads, conv.data.inputs[2]])
    channels, height, width = conv.channels, sizes[0] // side, sizes[1] // side
    # Rows first, then columns: each is one axis moved, which has a fast kernel. The last Transpose
    # meets its inverse, for the int8 Conv takes channels last.
    for split, order in (
        ([channels, height, side, sizes[1]], [0, 1, 3, 2, 4]),
        ([channels * side, height, sizes[1]], [0, 2, 3, 1]),
        ([height, width, side * channels * side], [0, 3, 1, 2]),
    ):
        shape[1:] = split
        target = add_constant(graph, names.fresh(codes, "shape"), np.array([0, *split], np.int64))
        value = add("Reshape", [value, target])
        shape[:] = [shape[axis] for axis in order]
        value = add("Transpose", [value], perm=order)
    return value


def _folded(kernels: np.ndarray, fold: _Fold) -> np.ndarray:
    """Return kernels of blocks: int8 (M, C, kH, kW) to (M, s C s, rows, columns).

    Channels are in the order of the codes: column in the block, channel, row in the block.
    """
    count, channels, height, width = kernels.shape
    (rows, columns), side = fold.kernel, fold.block
    top, left = fold.before
    whole = np.zeros((count, channels, rows * side, columns * side), kernels.dtype)
    whole[:, :, top : top + height, left : left + width] = kernels
    parts = whole.reshape(count, channels, rows, side, columns, side).transpose(0, 5, 1, 3, 2, 4)
    return parts.reshape(count, side * channels * side, rows, columns)
