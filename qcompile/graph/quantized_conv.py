"""A Conv between dequantized codes and dequantized kernels, and how it gets others of both."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.graph.edit import Names, add_initializer, remove_dead
from qcompile.graph.walk import is_constant, is_op, producer

LEAST_KERNELS = 16
KERNELS_MULTIPLE = 8
CHANNELS_MULTIPLE = 4
"""What ONNX Runtime's indirect convolution takes on every x86: fewer, or others, are slower."""


@dataclass(frozen=True)
class QuantizedConv:
    """A Conv of uint8 codes, which only x86 gets, and constant kernels: both dequantized.

    Attributes:
        node: The Conv, ``(N, C, ...) -> (N, M, ...)``.
        data: DequantizeLinear of the codes.
        weight: DequantizeLinear of the kernels.
        codes: ``(N, C, ...)``.
        kernels: ``(M, C / group, ...)``, codes too.
        tensor: Their values.
    """

    node: ir.Node
    data: ir.Node
    weight: ir.Node
    codes: ir.Value
    kernels: ir.Value
    tensor: ir.TensorProtocol

    @property
    def count(self) -> int:
        """Number of kernels, M."""
        return int(self.tensor.shape.numpy()[0])

    @property
    def channels(self) -> int:
        """Number of input channels that each kernel has."""
        return int(self.tensor.shape.numpy()[1])

    def odd_channels(self) -> bool:
        """Say whether it is dense and has input channels that the faster kernel does not take."""
        dense = self.node.attributes.get_int("group", 1) == 1
        return dense and self.channels % CHANNELS_MULTIPLE != 0

    def fitting_kernels(self) -> bool:
        """Say whether its number of kernels is one that the faster kernel takes."""
        return self.count >= LEAST_KERNELS and self.count % KERNELS_MULTIPLE == 0

    def output_space(self) -> tuple[int, ...] | None:
        """Return the spatial sizes of the output, or None where one is not known."""
        return space_of(self.node.outputs[0])

    def rewire(self, codes: ir.Value, kernels: ir.TensorProtocol, what: str, names: Names) -> None:
        """Let the Conv read other codes, on the same grid, and other kernels."""
        graph = self.node.graph
        assert graph is not None  # noqa: S101 - it was found there
        weights = add_initializer(graph, kernels)
        for index, (old, source) in enumerate(((self.data, codes), (self.weight, weights))):
            real = old.outputs[0]
            new = ir.node(
                "DequantizeLinear",
                [source, *old.inputs[1:]],
                attributes=dict(old.attributes),
                name=names.fresh(real, f"{what}.DequantizeLinear"),
            )
            describe(new.outputs[0], names.fresh(real, what), real, source.shape)
            graph.insert_before(self.node, new)
            self.node.replace_input_with(index, new.outputs[0])
        remove_dead([self.data, self.weight])


def quantized_conv(node: ir.Node) -> QuantizedConv | None:
    """Return the parts of a Conv that reads uint8 codes and constant kernels, else None."""
    if not is_op(node, "Conv"):
        return None
    data, weight = (producer(node.inputs[i], "DequantizeLinear") for i in (0, 1))
    if data is None or weight is None or len(data.inputs) < 3 or len(weight.inputs) < 3:
        return None
    codes, kernels = data.inputs[0], weight.inputs[0]
    if codes is None or codes.dtype != ir.DataType.UINT8 or codes.shape is None:
        return None
    if kernels is None or not is_constant(kernels):
        return None
    tensor = ir.convenience.get_const_tensor(kernels)
    return None if tensor is None else QuantizedConv(node, data, weight, codes, kernels, tensor)


def space_of(value: ir.Value) -> tuple[int, ...] | None:
    """Return the sizes of a value behind batch and channels, or None where one is not known."""
    sizes = tuple(value.shape or (None,))[2:]
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if sizes and len(known) == len(sizes) else None


def describe(
    new: ir.Value, name: str, like: ir.Value, shape: Iterable[int | ir.SymbolicDim | None] | None
) -> None:
    """Give a new value a name, another one's type, and a shape."""
    new.name, new.type = name, like.type
    new.shape = None if shape is None else ir.Shape(shape)
