"""Which branches of a Concat take its grid, so that joining them copies codes.

On grids of its own each branch is rounded twice, behind its node and in the Concat, and the kernel
looks every code up in a table. A branch that only the Concat reads loses nothing on the Concat's
grid: it is the one that its codes end on.
"""

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from qcompile.graph.walk import is_constant, is_op, only_consumer, scalar
from qcompile.planning.forms import node_name, value_name

Bounds = tuple[float | None, float | None]
"""Where a Relu or Clip that is absorbed cuts off: a grid that goes beyond does not absorb it."""


def with_concats(
    order: Sequence[ir.Node],
    int8: Collection[str],
    absorbed: Collection[str],
    tied: Mapping[str, str],
) -> dict[str, str]:
    """Return all ties: those of carriers, and those of branches to what a Concat makes of them.

    Args:
        order: The nodes of the graph.
        int8: Names of those that compute in int8.
        absorbed: Names of those that vanish into a rounding.
        tied: Carried value to the value whose grid it shares.
    """
    return _Ties(order, int8, absorbed, tied).found()


class _Ties:
    def __init__(
        self,
        order: Sequence[ir.Node],
        int8: Collection[str],
        absorbed: Collection[str],
        tied: Mapping[str, str],
    ) -> None:
        self.concats = [n for n in order if is_op(n, "Concat") and node_name(n) in int8]
        self.absorbed, self.carried, self.tied = absorbed, tied, dict(tied)
        values = [v for node in order for v in (*node.inputs, *node.outputs) if v is not None]
        self.values = {value_name(v): v for v in values}

    def found(self) -> dict[str, str]:
        # Last first: what a Concat makes may itself be a branch of a later one.
        for node in reversed(self.concats):
            reader = only_consumer(node.outputs[0])
            if reader is None or node_name(reader) not in self.absorbed:
                self._tie(node)
        return self.tied

    def _tie(self, node: ir.Node) -> None:
        branches = [v for v in node.inputs if v is not None and not is_constant(v)]
        for value in branches:
            bounds = self._bounds(value)
            group = self._group(value)
            same = bounds is None or all(self._bounds(v) == bounds for v in node.inputs if v)
            if same and self._ends_in(node, group):
                result = value_name(node.outputs[0])
                self.tied.update(dict.fromkeys(group, self.tied.get(result, result)))

    def _group(self, value: ir.Value) -> set[str]:
        """Return the values that share the grid of one: what carriers move it from and to."""
        root = self.tied.get(value_name(value), value_name(value))
        return {root, *(name for name, source in self.tied.items() if source == root)}

    def _ends_in(self, node: ir.Node, group: set[str]) -> bool:
        """Say whether none but the node and the carriers of the group read it."""
        readers = [use.node for name in group for use in self.values[name].uses()]
        exported = any(self.values[name].is_graph_output() for name in group)
        return not exported and all(
            reader is node or value_name(reader.outputs[0]) in group for reader in readers
        )

    def _bounds(self, value: ir.Value) -> Bounds | None:
        """Return the bounds that the grid of a value must keep, or None."""
        source = self.carried.get(value_name(value), value_name(value))
        producer = self.values[source].producer()
        if producer is None:
            return None
        if producer in self.concats:
            found = {self._bounds(v) for v in producer.inputs if v is not None}
            return found.pop() if len(found) == 1 else None
        if node_name(producer) not in self.absorbed:
            return None
        if producer.op_type == "Relu":
            return 0.0, None
        low, high, *_ = [*producer.inputs[1:3], None, None]
        return scalar(low), scalar(high)
