"""Pass: remove identities."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_nodes, is_op, scalar


@dataclass(frozen=True, kw_only=True)
class RemoveIdentities(GraphPass):
    """Remove Identity, Dropout as it is in inference, and Cast to the type that is there already.

    Before: ``y = Relu(Identity(x))``.
    After:  ``y = Relu(x)``.
    Visits: the main graph and subgraphs. Leaves: an identity between an input, a constant or a
    value of an outer scope and a graph output, and one between two graph outputs.
    """

    name: ClassVar[str] = "remove-identities"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Find all, then let their readers read what is before them."""
        found = [node for node, _ in all_nodes(model) if _does_nothing(node)]
        return any([self._remove(node) for node in found])  # noqa: C419 - all, not up to the first

    def _remove(self, node: ir.Node) -> bool:
        source, result, graph = node.inputs[0], node.outputs[0], node.graph
        if source is None or graph is None:
            return False
        if result.is_graph_output():
            producer = source.producer()
            if producer is None or producer.graph is not graph or source.is_graph_output():
                self.refuse(
                    "it names a graph output that is an input, a constant or another output"
                )
                return False
            name, source.type, source.shape = result.name, result.type, result.shape
            result.replace_all_uses_with(source, replace_graph_outputs=True)
            result.name, source.name = None, name
        else:
            result.replace_all_uses_with(source)
        graph.remove(node, safe=True)
        return True


def _does_nothing(node: ir.Node) -> bool:
    if is_op(node, "Identity"):
        return True
    if is_op(node, "Dropout"):
        trains = node.inputs[2] if len(node.inputs) > 2 else None
        return all(not v.uses() and not v.is_graph_output() for v in node.outputs[1:]) and (
            trains is None or scalar(trains) == 0.0
        )
    if is_op(node, "Cast"):
        source = node.inputs[0]
        return source is not None and source.dtype == node.attributes.get_int("to")
    return False
