"""The int8 part of a graph, and what else must leave it when weighted nodes do.

A tensor is in demand, or has codes, as long as some node supports that: one that asks for codes of
it, one that gives them. Both only ever shrink. So each loss is followed from neighbour to
neighbour, by counting supports as Dowling and Gallier do for Horn formulae (1984): linear in what
leaves. What stays is the largest set in which every node is supported, the one that ``select``
finds for the weighted nodes that are left.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from qcompile.graph.walk import consumers, is_constant
from qcompile.planning.forms import is_float, moved, node_name, tail
from qcompile.planning.select import Selection
from qcompile.targets.target import OperatorRule, Output, Role


class Region:
    """What of a selection is left.

    Attributes:
        absorbed: Names of the nodes that vanish into the rounding of the node before them.
        readers: Value to how often int8 nodes read it.
    """

    def __init__(
        self, graph: ir.Graph, rules: Mapping[str, OperatorRule], selection: Selection
    ) -> None:
        """Begin with all that the selection put into int8.

        Args:
            graph: The lowered graph, in topological order.
            rules: Those of scheme int8.
            selection: What ``select`` made of the graph.
        """
        self._rules = rules
        nodes = [node for node in graph if selection.is_int8(node)]
        self._int8 = {node_name(node) for node in nodes}
        self.absorbed = set(selection.absorbed)
        self.readers = Counter(v for node in nodes for v in node.inputs if v is not None)
        self._demand: Counter[ir.Value] = Counter()
        self._codes: Counter[ir.Value] = Counter()
        self._asked: dict[str, Sequence[ir.Value]] = {}
        self._given: dict[str, Sequence[ir.Value]] = {}
        for node in reversed(nodes):
            self._demand.update(self._asked.setdefault(node_name(node), self._asks(node)))
        for node in nodes:
            self._codes.update(self._given.setdefault(node_name(node), self._gives(node)))

    def is_int8(self, node: ir.Node | None) -> bool:
        """Return whether a node still computes in static int8."""
        return node is not None and node_name(node) in self._int8

    def origin(self, value: ir.Value) -> ir.Node | None:
        """Return the node whose result a value is: the one before an absorbed Relu or Clip."""
        node = value.producer()
        if node is None or node_name(node) not in self.absorbed:
            return node
        return _before(node)

    def remove(self, weighted: Iterable[ir.Node]) -> list[ir.Node]:
        """Turn weighted nodes to float, and all that int8 then makes no sense for.

        Returns:
            The nodes that left, the given ones first.
        """
        left = list(weighted)
        for node in left:
            self._leave(node)
        front = list(left)
        while front:
            node = front.pop()
            if self.is_int8(node) and not self._stays(node):
                self._leave(node)
                left.append(node)
            front += self._shaken(node)
        return left

    def _leave(self, node: ir.Node) -> None:
        self._int8.discard(node_name(node))
        self.absorbed.discard(node_name(node))
        self.readers.subtract(v for v in node.inputs if v is not None)

    def _stays(self, node: ir.Node) -> bool:
        role = self._rules[node.op_type].role
        if role is Role.WEIGHTED:
            return True
        if role is Role.ABSORBED:
            source = _before(node)
            return source is not None and node.outputs[0] in self._given[node_name(source)]
        wanted = any(self._demand[v] for v in (*node.outputs, tail(node, self._rules)))
        data = [v for v in moved(node, self._rules[node.op_type]) if not is_constant(v)]
        return wanted and all(self._codes[v] for v in data)

    def _asks(self, node: ir.Node) -> Sequence[ir.Value]:
        """Return the values that a node supports the demand for."""
        rule = self._rules[node.op_type]
        passes = rule.role is Role.WEIGHTED or any(self._demand[v] for v in node.outputs)
        if not (passes and self.is_int8(node)):
            return ()
        return [v for v in moved(node, rule) if is_float(v)]

    def _gives(self, node: ir.Node) -> Sequence[ir.Value]:
        """Return the values that have codes because of a node."""
        rule = self._rules[node.op_type]
        if not self.is_int8(node) or rule.role is Role.ABSORBED:
            return ()
        if rule.role is Role.CARRIER:
            return node.outputs
        read = moved(node, rule) if rule.role is Role.WEIGHTED else []
        end = tail(node, self._rules)
        rounded = rule.role is Role.FOLLOWER or rule.output is Output.CODES or self._demand[end]
        return [*read, end] if rounded else read

    def _shaken(self, node: ir.Node) -> list[ir.Node]:
        """Withdraw what a node no longer supports; return the nodes that this may concern."""
        name, found = node_name(node), []
        if name not in self._asked:
            return []
        asked, given = self._asks(node), self._gives(node)
        if len(asked) < len(self._asked[name]):
            for value in _dropped(self._demand, self._asked[name], asked):
                maker = value.producer()
                found += [n for n in (maker, _before(maker)) if n is not None]
        if len(given) < len(self._given[name]):
            for value in _dropped(self._codes, self._given[name], given):
                found += [reader for reader, _ in consumers(value)]
            found += [n for v in self._given[name] if (n := v.producer()) is not None]
        self._asked[name], self._given[name] = asked, given
        return found


def _before(node: ir.Node | None) -> ir.Node | None:
    """Return the node that makes a node's first input: of a Relu or Clip, what may absorb it."""
    value = node.inputs[0] if node is not None and node.inputs else None
    return None if value is None else value.producer()


def _dropped(
    supports: Counter[ir.Value], before: Sequence[ir.Value], now: Sequence[ir.Value]
) -> list[ir.Value]:
    """Take supports back; return the values that have none left."""
    gone = [value for value in before if value not in now]
    supports.subtract(gone)
    return [value for value in gone if not supports[value]]
