"""Leaves in float what int8 would not speed up: little arithmetic between large float tensors.

A tensor that passes between float and codes costs a QuantizeLinear or DequantizeLinear over all its
elements. Inside an int8 region nothing crosses and int8 always pays; a depthwise convolution with a
float activation function on both sides crosses twice for nine multiply-adds an element.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import replace

import onnx_ir as ir

from qcompile.graph.walk import consumers, is_constant, only_consumer
from qcompile.graph.work import multiply_adds
from qcompile.planning.forms import node_name
from qcompile.planning.region import Region
from qcompile.planning.select import Selection, select
from qcompile.planning.select_inputs import select_inputs
from qcompile.planning.wishes import Wishes
from qcompile.targets.target import Output, Placement, Target


def select_paying(model: ir.Model, target: Target, scheme: str, wishes: Wishes) -> Selection:
    """Select nodes without those that do not pay.

    In rounds, until all pay: those that do not turn to float together, and with each of them the
    conversions move to its neighbours.

    Args:
        model: The lowered graph.
        target: What the engine can run; its ``pays_from`` is the limit.
        scheme: int8 or int8-dynamic.
        wishes: What stays in float anyway.
    """
    if target.placement is Placement.INPUTS:
        return select_inputs(model, target, scheme, wishes)
    selection = select(model, target, scheme, wishes)
    if scheme != "int8":
        return selection
    poor = _poor(model.graph, selection, target)
    if not poor:
        return selection
    return select(model, target, scheme, replace(wishes, nodes={**poor, **wishes.nodes}))


def _poor(graph: ir.Graph, selection: Selection, target: Target) -> dict[str, str]:
    """Return the nodes of a selection that do not pay, and why: as of the round they fell in."""
    region = Region(graph, target.static, selection)
    poor: dict[str, str] = {}
    front: Iterable[ir.Node] = graph
    while True:
        found = {
            node: reason
            for node in front
            if (reason := _why_poor(node, region, target)) is not None
        }
        if not found:
            return poor
        poor |= {node_name(node): reason for node, reason in found.items()}
        front = _neighbours(region.remove(found), region)


def _neighbours(nodes: Iterable[ir.Node], region: Region) -> Iterable[ir.Node]:
    """Return, each once, the nodes whose conversions depend on one of these."""
    values = dict.fromkeys(
        v for n in nodes for v in (*n.inputs, *n.outputs) if v is not None and not is_constant(v)
    )
    found: dict[ir.Node, None] = {}
    for value in values:
        found.update(dict.fromkeys(reader for reader, _ in consumers(value)))
        origin = region.origin(value)
        if origin is not None:
            found[origin] = None
    return found


def _why_poor(node: ir.Node, region: Region, target: Target) -> str | None:
    rule = target.static.get(node.op_type)
    if not region.is_int8(node) or rule is None or rule.weight is None:
        return None
    crossing = _crossing_in(node.inputs[0], region)
    if rule.output is Output.CODES:
        crossing += _crossing_out(node, region)
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
    value = _end(node, selection.absorbed)
    if any(selection.is_int8(reader) for reader, _ in consumers(value)):
        extra += _elements(value)
    return multiply_adds(node) + target.pays_from * extra


def _crossing_in(value: ir.Value | None, region: Region) -> float:
    """Return the elements that are rounded for one reader, shared with the other int8 readers."""
    if value is None or region.is_int8(value.producer()):
        return 0.0
    return _elements(value) / max(region.readers[value], 1)


def _crossing_out(node: ir.Node, region: Region) -> float:
    """Return the elements that are converted back because something reads them as float."""
    value = _end(node, region.absorbed)
    read_as_float = value.is_graph_output() or region.readers[value] < len(value.uses())
    return _elements(value) if read_as_float else 0.0


def _end(node: ir.Node, absorbed: Collection[str]) -> ir.Value:
    """Return the value that carries a node's result: behind a Relu or Clip that it absorbs."""
    value = node.outputs[0]
    reader = only_consumer(value)
    return reader.outputs[0] if reader is not None and node_name(reader) in absorbed else value


def _elements(value: ir.Value) -> float:
    """Return a value's elements; a dynamic dimension counts as one, as in ``multiply_adds``."""
    if value.shape is None:
        return 0.0
    return float(math.prod(dim for dim in value.shape if isinstance(dim, int)))
