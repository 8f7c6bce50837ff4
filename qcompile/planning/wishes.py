"""What must stay in float because somebody says so."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qcompile.planning.forms import node_name
from qcompile.targets.target import OperatorRule, Role


@dataclass(frozen=True)
class Wishes:
    """What must stay in float whatever the target can do.

    Attributes:
        patterns: Names of nodes, with ``*`` and ``?``.
        operators: Operator types.
        first: The weighted nodes nearest to the inputs.
        last: The weighted nodes nearest to the outputs.
        nodes: Node to the reason.
        rounded: Values that are to be codes where operators take them: a quantized source has them
            rounded.
        tensors: Value that cannot be rounded to any grid to the reason.
    """

    patterns: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    first: bool = False
    last: bool = False
    nodes: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    rounded: frozenset[str] = frozenset()

    def reason(self, node: ir.Node) -> str:
        """Return why the node is wished to stay in float, or nothing."""
        name = node_name(node)
        if name in self.nodes:
            return self.nodes[name]
        for pattern in self.patterns:
            if fnmatch.fnmatchcase(name, _literal(pattern)):
                return f"excluded by name ({pattern})"
        return f"excluded by operator ({node.op_type})" if node.op_type in self.operators else ""


def with_ends(wishes: Wishes, graph: ir.Graph, rules: Mapping[str, OperatorRule]) -> Wishes:
    """Turn the first/last options into named nodes: the weighted nodes nearest to each end."""
    nodes = dict(wishes.nodes)
    if wishes.first:
        for node in _nearest(graph.inputs, rules, forwards=True):
            nodes[node_name(node)] = "first weighted layer (--float-first)"
    if wishes.last:
        for node in _nearest(graph.outputs, rules, forwards=False):
            nodes[node_name(node)] = "last weighted layer (--float-last)"
    return replace(wishes, first=False, last=False, nodes=nodes)


def _nearest(
    values: Iterable[ir.Value], rules: Mapping[str, OperatorRule], *, forwards: bool
) -> list[ir.Node]:
    """Return the weighted nodes that are reached from values without passing another one."""
    found: dict[str, ir.Node] = {}
    seen: set[int] = set()
    front = list(values)
    while front:
        value = front.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        producer = value.producer()
        nodes = [use.node for use in value.uses()] if forwards else [producer] if producer else []
        for node in nodes:
            rule = rules.get(node.op_type)
            if node.domain == "" and rule is not None and rule.role in (Role.WEIGHTED, Role.STORED):
                found[node_name(node)] = node
            else:
                front.extend(node.outputs if forwards else [v for v in node.inputs if v])
    return list(found.values())


def unmatched(model: ir.Model, wishes: Wishes) -> list[str]:
    """Return the patterns and operators of the wishes that match no node."""
    nodes = list(model.graph.all_nodes())
    patterns = [
        pattern
        for pattern in wishes.patterns
        if not any(fnmatch.fnmatchcase(node_name(node), _literal(pattern)) for node in nodes)
    ]
    operators = {node.op_type for node in nodes}
    return patterns + [op for op in wishes.operators if op not in operators]


def _literal(pattern: str) -> str:
    """Return an fnmatch pattern in which only ``*`` and ``?`` are special."""
    return pattern.replace("[", "[[]")
