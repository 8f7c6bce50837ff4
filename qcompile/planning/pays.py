"""Leaves in float what int8 would not speed up: little arithmetic between large float tensors.

A tensor that passes between float and codes costs a QuantizeLinear or DequantizeLinear over all its
elements. Inside an int8 region nothing crosses and int8 always pays; a depthwise convolution with a
float activation function on both sides crosses twice for nine multiply-adds an element.
"""

import math
from dataclasses import replace

import onnx_ir as ir

from qcompile.graph.walk import consumers, only_consumer
from qcompile.graph.work import multiply_adds
from qcompile.planning.select import Selection, select
from qcompile.planning.wishes import Wishes
from qcompile.targets.target import Output, Target


def select_paying(model: ir.Model, target: Target, scheme: str, wishes: Wishes) -> Selection:
    """Select nodes, and again without those that do not pay, until all do.

    Args:
        model: The lowered graph.
        target: What the engine can run; its ``pays_from`` is the limit.
        scheme: int8 or int8-dynamic.
        wishes: What stays in float anyway.
    """
    selection = select(model, target, scheme, wishes)
    while scheme == "int8":
        poor = {
            node.name or "": reason
            for node in model.graph
            if (reason := _why_poor(node, selection, target)) is not None
        }
        if not poor:
            break
        wishes = replace(wishes, nodes={**poor, **wishes.nodes})
        selection = select(model, target, scheme, wishes)
    return selection


def _why_poor(node: ir.Node, selection: Selection, target: Target) -> str | None:
    entry = selection.nodes[node.name or ""]
    rule = target.static.get(node.op_type)
    if entry.precision != "int8" or rule is None or rule.weight is None:
        return None
    crossing = _crossing_in(node.inputs[0], selection)
    if rule.output is Output.CODES:
        crossing += _crossing_out(node, selection)
    if not crossing:
        return None
    ratio = multiply_adds(node) / crossing
    if ratio >= target.pays_from:
        return None
    return (
        f"int8 would not pay: {ratio:.3g} multiply-adds for each element that is rounded or "
        f"converted back for it (it pays from {target.pays_from:g})"
    )


def float_work(node: ir.Node, selection: Selection, target: Target) -> float:
    """Return what an int8 node would cost in float, in multiply-adds.

    Its own, and those that the conversions are worth which its int8 neighbours then need.
    """
    extra = 0.0
    data = node.inputs[0]
    if data is not None and selection.is_int8(data.producer()):
        extra += _elements(data)
    value = _end(node, selection)
    if any(selection.is_int8(reader) for reader, _ in consumers(value)):
        extra += _elements(value)
    return multiply_adds(node) + target.pays_from * extra


def _crossing_in(value: ir.Value | None, selection: Selection) -> float:
    """Return the elements that are rounded for one reader, shared with the other int8 readers."""
    if value is None or selection.is_int8(value.producer()):
        return 0.0
    readers = sum(selection.is_int8(node) for node, _ in consumers(value))
    return _elements(value) / max(readers, 1)


def _crossing_out(node: ir.Node, selection: Selection) -> float:
    """Return the elements that are converted back because something reads them as float."""
    value = _end(node, selection)
    read_as_float = value.is_graph_output() or any(
        not selection.is_int8(reader) for reader, _ in consumers(value)
    )
    return _elements(value) if read_as_float else 0.0


def _end(node: ir.Node, selection: Selection) -> ir.Value:
    """Return the value that carries a node's result: behind a Relu or Clip that it absorbs."""
    value = node.outputs[0]
    reader = only_consumer(value)
    if reader is not None and (reader.name or "") in selection.absorbed:
        return reader.outputs[0]
    return value


def _elements(value: ir.Value) -> float:
    """Return a value's elements; a dynamic dimension counts as one, as in ``multiply_adds``."""
    if value.shape is None:
        return 0.0
    return float(math.prod(dim for dim in value.shape if isinstance(dim, int)))
