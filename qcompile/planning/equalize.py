"""Which channels between layers are equalized, and by what."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.graph.bias_shift import bias_of
from qcompile.graph.channels import ChannelDivider, channel_scale, channels_of, is_layer
from qcompile.graph.division import KeepsBasis
from qcompile.graph.walk import consumers, is_constant, is_op
from qcompile.numerics.equalization import LayerRanges, Pair, equalization
from qcompile.remedies import Rescaled


@dataclass(frozen=True)
class _Between:
    """A value between layers: what makes it, what reads it, the axis of its channels."""

    value: ir.Value
    axis: int
    first: ir.Node
    readers: tuple[ir.Node, ...]


def equalized(model: ir.Model, nodes: Collection[str]) -> tuple[dict[str, Rescaled], Counter[str]]:
    """Choose the scales of cross-layer equalization (arXiv:1906.04721); no data is needed.

    A pair is a Conv, MatMul or Gemm and all that read what it makes, through Relu and its like,
    poolings and reshapes; all readers must be such layers. All pairs are equalized together, until
    none changes.

    Args:
        model: The lowered graph.
        nodes: The nodes that compute in int8; a pair counts if one of its readers is among them.

    Returns:
        Value to scale, and how many values between layers were left alone, by reason.
    """
    refused: Counter[str] = Counter()
    divider = ChannelDivider(model)
    found: list[_Between] = []
    for value, readers in _values_read(model, nodes):
        try:
            found.append(_between(divider, value, readers))
        except KeepsBasis as reason:
            refused[str(reason)] += 1
    layers = list(dict.fromkeys(node for pair in found for node in (pair.first, *pair.readers)))
    number = {node: index for index, node in enumerate(layers)}
    pairs = [Pair(number[p.first], tuple(number[n] for n in p.readers)) for p in found]
    scales = equalization([_ranges(node) for node in layers], pairs)
    return {
        str(pair.value.name): Rescaled(
            remedy="equalize", axis=pair.axis, scale=[float(s) for s in scale.astype(np.float32)]
        )
        for pair, scale in zip(found, scales, strict=True)
        if not np.allclose(scale, 1.0)
    }, refused


def _values_read(
    model: ir.Model, nodes: Collection[str]
) -> list[tuple[ir.Value, tuple[ir.Node, ...]]]:
    """Return what the named layers read, each with all its readers, in graph order."""
    values = [
        node.inputs[0]
        for node in model.graph
        if node.name in nodes and _is_layer(node) and node.inputs[0] is not None
    ]
    return [
        (value, tuple(dict.fromkeys(node for node, _ in consumers(value))))
        for value in dict.fromkeys(values)
        if value.producer() is not None
    ]


def _is_layer(node: ir.Node) -> bool:
    return is_layer(node) or (is_op(node, "Conv") and is_constant(node.inputs[1]))


def _between(divider: ChannelDivider, value: ir.Value, readers: tuple[ir.Node, ...]) -> _Between:
    """Return a value's layers.

    Raises:
        KeepsBasis: No layer makes it, or others read it.
    """
    if not all(_is_layer(node) for node in readers):
        raise KeepsBasis("others than layers read the value")
    axis = 1 if is_op(readers[0], "Conv") else -1
    channels = channels_of(value, axis)
    if channels is None:
        raise KeepsBasis("its number of channels is not known")
    edits = divider.rescale(value, channel_scale(value, np.ones(channels), axis))
    makers = [edit.node for edit in edits if edit.node not in readers and edit.index == 1]
    if len(makers) != 1 or not _is_layer(makers[0]):
        raise KeepsBasis("no layer alone makes the value")
    return _Between(value, axis, makers[0], readers)


def _ranges(node: ir.Node) -> LayerRanges:
    """Return the ranges of a layer; its largest bias counts as much as its largest weight."""
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None  # noqa: S101, PT018 - a layer
    values = np.abs(weight.const_value.numpy()).astype(np.float64)
    groups = 1
    if is_op(node, "Conv"):
        groups = node.attributes.get_int("group", 1)
        values = values.reshape(*values.shape[:2], -1).max(axis=2)
    elif not node.attributes.get_int("transB", 0):
        values = values.T
    biases = np.abs(bias_of(node))
    largest = biases.max(initial=0.0)
    unit = values.max(initial=0.0) / largest if largest else 0.0
    return LayerRanges(values, biases * unit, groups)
