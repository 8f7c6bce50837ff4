"""Pass: name values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_graphs


@dataclass(frozen=True, kw_only=True)
class NameValues(GraphPass):
    """Give every value and node a name that no other has.

    Names join the plan, the statistics and the comparison, so they must be unique over all scopes;
    ONNX itself asks less of node names, and lets the two branches of an If share value names. An
    optional output that nobody reads keeps its empty name, which says that it is left out.

    Before: ``a = Conv(x, w)`` without a node name.
    After:  the same node, named ``Conv.a``.
    Visits: the main graph and subgraphs. Leaves: the names of the graph's inputs and outputs.
    """

    name: ClassVar[str] = "name-values"
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Name values first, since a node without a name is called after its first output."""
        fixed = dict.fromkeys([*model.graph.inputs, *model.graph.outputs])
        taken = {str(value.name) for value in fixed}
        values = [v for g in all_graphs(model) for v in _values(g) if v not in fixed]
        nodes = [node for graph in all_graphs(model) for node in graph]
        renamed = [_rename(value, value.name or "value", taken) for value in values]
        taken = set()
        for node in nodes:
            called_after = node.outputs[0].name if node.outputs else ""
            base = node.name or f"{node.op_type}.{called_after}"
            renamed.append(_rename(node, base, taken))
        return any(renamed)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the values that the graph defines, each once, without outputs that are left out."""
    yield from dict.fromkeys([*graph.inputs, *graph.initializers.values()])
    for node in graph:
        yield from (v for v in node.outputs if v.name or v.uses() or v.is_graph_output())


def _rename(thing: ir.Node | ir.Value, base: str, taken: set[str]) -> bool:
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}.{number}"
    taken.add(name)
    if name == thing.name:
        return False
    thing.name = name
    return True
