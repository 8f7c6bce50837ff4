"""Which nodes compute in int8 on a target, which tensors that quantizes, and why the rest do not.

Two sweeps over the graph. Backwards: a tensor is *in demand* when codes of it would end in a
weighted int8 node. Forwards: weighted nodes are int8 when the target has the rule and the user
did not exclude them; followers and carriers join where their inputs are codes already and their
output is in demand, so that int8 regions have no float holes and never begin without a reason.
"""

from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qcompile.graph.walk import is_constant, subgraphs
from qcompile.plan import CALIBRATED, NodePlan
from qcompile.planning.forms import (
    channel_axis,
    convolution_kind,
    input_at,
    is_float,
    moved,
    node_name,
    rule_of,
    tail,
    unsupported,
    value_name,
)
from qcompile.planning.ties import with_concats
from qcompile.planning.wishes import Wishes, with_ends
from qcompile.targets.target import OperatorRule, Output, Placement, Role, Target


@dataclass(frozen=True)
class Selection:
    """The outcome: every node's precision and reason, and the tensors that become codes.

    Attributes:
        nodes: Node name to plan, in graph order, nodes of subgraphs included.
        activations: Names of the values that get a QuantizeLinear, in graph order.
        tied: Value to the value whose grid it shares: a carrier's input, a Concat's output.
        weights: Weight initializer to the channel axis of its scales (None: per-tensor).
        biases: Bias initializer to its node.
        absorbed: Nodes that vanish into the rounding of the node before them.
        placement: Where codes begin and end.
        made: Value to the range of its grid, where the engine takes no other.
    """

    nodes: dict[str, NodePlan]
    activations: list[str]
    tied: dict[str, str]
    weights: dict[str, int | None]
    biases: dict[str, str]
    absorbed: frozenset[str]
    placement: Placement = Placement.ISLANDS
    made: dict[str, tuple[float, float]] = field(default_factory=dict)

    def is_int8(self, node: ir.Node | None) -> bool:
        """Return whether a node of the graph computes on calibrated codes."""
        entry = None if node is None else self.nodes.get(node.name or "")
        return entry is not None and entry.precision in CALIBRATED

    def hands_on(self, node: ir.Node | None) -> bool:
        """Return whether all readers of what a node makes take the rounded value."""
        return self.placement is Placement.ISLANDS and self.is_int8(node)


def select(model: ir.Model, target: Target, scheme: str, wishes: Wishes) -> Selection:
    """Choose the nodes that compute in int8.

    Args:
        model: The lowered graph, with unique names and types.
        target: What the engine can run.
        scheme: int8 or int8-dynamic.
        wishes: What the user, or a measured error, keeps in float.
    """
    return _Selector(model, target, scheme, wishes).run()


class _Selector:
    def __init__(self, model: ir.Model, target: Target, scheme: str, wishes: Wishes) -> None:
        self.graph = model.graph
        self.target = target
        self.scheme = scheme
        self.rules = target.rules(scheme)
        self.everywhere = target.placement is Placement.EVERYWHERE
        self.wishes = with_ends(wishes, model.graph, self.rules)
        self.reasons: dict[str, str] = {}
        self.int8: dict[str, OperatorRule] = {}
        self.absorbed: dict[str, str] = {}
        self.codes: set[str] = set()
        self.tied: dict[str, str] = {}

    def run(self) -> Selection:
        order = list(self.graph)
        weighted = [node for node in order if self._is_weighted(node)]
        if self.scheme == "int8-dynamic":
            for node in weighted:
                self._accept(node)
        else:
            self._settle(order, weighted)
        return self._selection(order)

    def _settle(self, order: list[ir.Node], weighted: list[ir.Node]) -> None:
        """Sweep until demand flows only through nodes that did join: each time fewer do.

        A node that was refused stays refused, with its first reason.
        """
        names = {node_name(node) for node in weighted}
        joined: set[str] | None = None
        while True:
            self.int8, self.absorbed, self.codes, self.tied = {}, {}, set(), {}
            demand = self._demand(order, names, joined)
            for node in weighted:
                self._accept(node)
            for node in order:
                if node.name in names:
                    self._take_codes(node, demand)
                else:
                    self._consider(node, demand)
            found = self.int8.keys() | self.absorbed.keys()
            if found == joined:
                return
            joined = set(found)

    # -- weighted nodes ---------------------------------------------------------------------

    def _is_weighted(self, node: ir.Node) -> bool:
        rule = self._rule(node)
        if rule is None or rule.role is not Role.WEIGHTED:
            return False
        slow = self.target.slow_convolutions.get(convolution_kind(node), "")
        reason = unsupported(node, rule) or self._unfit(node) or self.wishes.reason(node) or slow
        if reason:
            self.reasons[node_name(node)] = reason
        return not reason

    def _unfit(self, node: ir.Node) -> str:
        """Return why no grid can hold what a node reads or makes, or nothing."""
        rule = self._rule(node)
        for value in (*(moved(node, rule) if rule else ()), tail(node, self.rules)):
            if value_name(value) in self.wishes.tensors:
                return self.wishes.tensors[value_name(value)]
        return ""

    def _accept(self, node: ir.Node) -> None:
        rule = self.rules[node.op_type]
        self.int8[node_name(node)] = rule
        if self.scheme == "int8":
            for index in rule.activations or range(len(node.inputs)):
                value = node.inputs[index]
                if value is not None and not is_constant(value):
                    self.codes.add(value_name(value))

    def _take_codes(self, node: ir.Node, demand: set[str]) -> None:
        """Quantize the output of an int8 node where its kernel or a reader wants codes."""
        rule = self.int8[node_name(node)]
        end = tail(node, self.rules)
        if rule.output is Output.CODES or value_name(end) in demand:
            self.codes.add(value_name(end))
            if end is not node.outputs[0]:
                absorber = end.producer()
                assert absorber is not None  # noqa: S101 - tail() found it behind the node
                self.absorbed[node_name(absorber)] = node_name(node)

    # -- followers and carriers -------------------------------------------------------------

    def _demand(
        self, order: list[ir.Node], weighted: set[str], joined: set[str] | None
    ) -> set[str]:
        """Return the values whose codes would reach a weighted int8 node.

        Args:
            order: All nodes.
            weighted: Names of the weighted int8 nodes.
            joined: Other nodes that may pass codes on; None for all that the target knows.
        """
        demand = set(self.wishes.rounded)
        for node in reversed(order):
            rule = self._rule(node)
            if rule is None or (joined is not None and node_name(node) not in joined):
                continue
            passes = rule.role is not Role.WEIGHTED and any(
                value_name(out) in demand for out in node.outputs
            )
            if node.name in weighted or passes or self._always(node, rule):
                demand.update(value_name(v) for v in moved(node, rule) if is_float(v))
        return demand

    def _consider(self, node: ir.Node, demand: set[str]) -> None:
        """Let a follower or carrier join the int8 region before it."""
        name = node_name(node)
        rule = self._rule(node)
        if name in self.absorbed or rule is None or name in self.reasons:
            return
        if rule.role is Role.WEIGHTED:
            return
        if rule.role is Role.ABSORBED:
            if not self.everywhere or value_name(node.inputs[0]) not in self.codes:
                self.reasons[name] = "follows no int8 node that could absorb it"
                return
            rule = replace(rule, role=Role.FOLLOWER)
        reason = self._obstacle(node, rule, demand) or self._unfit(node) or self.wishes.reason(node)
        if reason:
            self.reasons[name] = reason
            return
        self.int8[name] = rule
        data = [v for v in moved(node, rule) if not is_constant(v)]
        self.codes.update(value_name(v) for v in data)
        if rule.role is Role.CARRIER:
            source = value_name(data[0])
            for out in node.outputs:
                self.codes.add(value_name(out))
                self.tied[value_name(out)] = self.tied.get(source, source)
        else:
            self._take_codes(node, demand | {value_name(tail(node, self.rules))})

    def _always(self, node: ir.Node, rule: OperatorRule) -> bool:
        """Say whether a node that no int8 node reads is one all the same.

        What only moves values on to the outputs is not: in float it is the end of the graph, and
        joining outputs of several kinds on one grid would cost the finer ones their accuracy.
        """
        return self.everywhere and rule.role is Role.FOLLOWER and node.op_type != "Concat"

    def _obstacle(self, node: ir.Node, rule: OperatorRule, demand: set[str]) -> str:
        data = moved(node, rule)
        if not all(is_float(v) for v in (*data, *node.outputs)):
            return "not a float32 operation"
        wanted = any(value_name(v) in demand for v in (*node.outputs, tail(node, self.rules)))
        if not wanted and not self._always(node, rule):
            return "no int8 node reads it: staying in float saves a rounding"
        plain = [v for v in data if not is_constant(v)]
        if not plain:
            return "only constants go in"
        for value in plain:
            known = self.codes | self.wishes.rounded
            if value_name(value) not in known and not self.everywhere:
                return f"its input {value.name} is float"
        return unsupported(node, rule)

    # -- outcome ----------------------------------------------------------------------------

    def _selection(self, order: list[ir.Node]) -> Selection:
        nodes: dict[str, NodePlan] = {}
        weights: dict[str, int | None] = {}
        biases: dict[str, str] = {}
        for node in order:
            nodes[node_name(node)] = self._node_plan(node)
            rule = self.int8.get(node_name(node))
            if rule is not None:
                self._constants(node, rule, weights, biases)
            for graph in subgraphs(node):
                add_subgraph(nodes, graph, node)
        values = [*self.graph.inputs, *(out for node in order for out in node.outputs)]
        activations = [value_name(v) for v in values if v.name and value_name(v) in self.codes]
        absorbed = frozenset(self.absorbed)
        tied = with_concats(order, self.int8.keys(), absorbed, self.tied)
        made = {
            value_name(node.outputs[0]): rule.made
            for node in order
            if (rule := self.int8.get(node_name(node))) is not None and rule.made is not None
        }
        return Selection(nodes, activations, tied, weights, biases, absorbed, made=made)

    def _node_plan(self, node: ir.Node) -> NodePlan:
        name = node_name(node)
        if name in self.absorbed:
            reason = f"{Role.ABSORBED.value} ({self.absorbed[name]})"
            return NodePlan(op=node.op_type, precision="int8", reason=reason)
        rule = self.int8.get(name)
        if rule is not None:
            precision = "int8-dynamic" if self.scheme == "int8-dynamic" else "int8"
            return NodePlan.model_validate(
                {"op": node.op_type, "precision": precision, "reason": rule.role.value}
            )
        return NodePlan(op=node.op_type, precision="float", reason=self._why_float(node))

    def _why_float(self, node: ir.Node) -> str:
        known = self.reasons.get(node_name(node)) or no_candidate(node)
        if known:
            return known
        if node.op_type in self.target.costs:
            return self.target.costs[node.op_type]
        if node.domain not in ("", "ai.onnx"):
            return f"operator of domain {node.domain}: not in the target's table"
        if self.scheme == "int8-dynamic" and node.op_type in self.target.static:
            return "dynamic quantization pays for MatMul and Gemm only"
        return f"{self.target.name} has no int8 kernel for {node.op_type}"

    def _constants(
        self,
        node: ir.Node,
        rule: OperatorRule,
        weights: dict[str, int | None],
        biases: dict[str, str],
    ) -> None:
        if rule.weight is not None:
            axis = None if rule.per_tensor else channel_axis(node, rule)
            weights[value_name(node.inputs[rule.weight])] = axis
            bias = input_at(node, rule.bias)
            if bias is not None and self.scheme == "int8":
                biases[value_name(bias)] = node_name(node)
        elif rule.role is Role.FOLLOWER:
            for value in moved(node, rule):
                if is_constant(value):
                    weights[value_name(value)] = None

    def _rule(self, node: ir.Node) -> OperatorRule | None:
        return rule_of(node, self.rules)


def add_subgraph(nodes: dict[str, NodePlan], graph: ir.Graph, owner: ir.Node) -> None:
    """List the nodes of a subgraph: all stay in float."""
    for node in graph:
        reason = f"inside {owner.op_type} {owner.name}: control flow stays in float"
        nodes[node_name(node)] = NodePlan(op=node.op_type, precision="float", reason=reason)
        for inner in subgraphs(node):
            add_subgraph(nodes, inner, node)


def no_candidate(node: ir.Node) -> str:
    """Return why a node could not be quantized on any target, or nothing."""
    if any(True for _ in subgraphs(node)):
        return "holds subgraphs: control flow stays in float"
    if not any(is_float(v) for v in node.inputs if v is not None):
        return "no float32 input"
    return ""
