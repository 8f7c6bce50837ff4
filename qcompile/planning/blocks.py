"""Cuts a graph into blocks: a residual block, an attention, a few layers of a chain."""

from collections.abc import Collection, Sequence

import onnx_ir as ir

from qcompile.graph.stages import Group
from qcompile.planning.forms import node_name

LEAST = 2
"""Layers of a block, but for the last one: alone they are no more than layers."""

MOST = 6
"""... and at most, where a block could go on."""

ENDING = ("Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "QuickGelu", "LayerNormalization")
"""Operators that still belong to the block before them."""


def block_groups(graph: ir.Graph, layers: Collection[str]) -> list[Group]:
    """Return where blocks begin and end: groups without nodes, to cut the graph at.

    A block begins with a layer: what lies before it runs once, not in each step.

    A block ends where the fewest activations go on, and at the first of such places, or behind the
    norm and the activation function there; not behind a pool, for a few means of channels say
    little of how a block's weights ought to be. Each activation that goes on ends a stage, so that
    nothing before the place is left for later.

    Args:
        graph: In topological order.
        layers: Names of the nodes whose weights are learned.
    """
    order = list(graph)
    alive = _alive(graph, order)
    groups: list[Group] = []

    def add(start: int, end: int) -> None:
        made = {out for node in order[start : end + 1] for out in node.outputs}
        groups.extend(Group(value, ()) for value in alive[end] if value in made)

    places = [index for index, node in enumerate(order) if node_name(node) in layers]
    start = 0
    while places:
        if places[0] > start:
            add(start, places[0] - 1)
        end = _end(order, alive, layers, places[0])
        if end is None:
            break
        add(places[0], end)
        places = [index for index in places if index > end]
        start = end + 1
    return groups


def _end(
    order: Sequence[ir.Node],
    alive: Sequence[Sequence[ir.Value]],
    layers: Collection[str],
    start: int,
) -> int | None:
    """Return the last node of the block that begins at a node; None where it is the rest."""
    count, best = 0, None
    for index in range(start, len(order)):
        count += node_name(order[index]) in layers
        if count > MOST:
            break
        if count >= LEAST and alive[index]:
            key = (len(alive[index]), count, index)
            best = min(best, key) if best else key
    left = sum(node_name(node) in layers for node in order[start:])
    if best is None or left - best[1] == 0:
        return None
    end = best[2]
    while order[end + 1].op_type in ENDING and len(alive[end + 1]) == best[0]:
        end += 1
    return end


def _alive(graph: ir.Graph, order: Sequence[ir.Node]) -> list[list[ir.Value]]:
    """Return, behind each node, the activations made so far that later nodes read, in order."""
    moving = set(graph.inputs)
    for node in order:
        if any(value in moving for value in node.inputs if value is not None):
            moving.update(node.outputs)
    place = {node: index for index, node in enumerate(order)}
    last: dict[ir.Value, int] = {}
    for node in order:
        for value in node.outputs:
            uses = [place.get(use.node, len(order)) for use in value.uses()]
            last[value] = max(uses, default=-1) if value in moving else -1
    found = []
    current: list[ir.Value] = []
    for index, node in enumerate(order):
        current = [value for value in [*current, *node.outputs] if last[value] > index]
        found.append(current)
    return found
