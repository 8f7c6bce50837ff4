"""Which nodes compute in int8 on a target, which tensors that quantizes, and why the rest do not.

Two sweeps over the graph. Backwards: a tensor is *in demand* when codes of it would end in a
weighted int8 node. Forwards: weighted nodes are int8 when the target has the rule and the user
did not exclude them; followers and carriers join where their inputs are codes already and their
output is in demand, so that int8 regions have no float holes and never begin without a reason.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcompile.graph.walk import is_constant, only_consumer, scalar, subgraphs
from qcompile.plan import NodePlan
from qcompile.targets.target import OperatorRule, Output, Role, Target


@dataclass(frozen=True)
class Wishes:
    """What must stay in float whatever the target can do.

    Attributes:
        patterns: Names of nodes, with ``*`` and ``?``.
        operators: Operator types.
        first: The weighted nodes nearest to the inputs.
        last: The weighted nodes nearest to the outputs.
        nodes: Node to the reason.
        tensors: Values that cannot be rounded to any grid.
    """

    patterns: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    first: bool = False
    last: bool = False
    nodes: Mapping[str, str] = field(default_factory=dict)
    tensors: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Selection:
    """The outcome: every node's precision and reason, and the tensors that become codes.

    Attributes:
        nodes: Node name to plan, in graph order, nodes of subgraphs included.
        activations: Names of the values that get a QuantizeLinear, in graph order.
        tied: Carried value to the value whose grid it shares.
        weights: Weight initializer to the channel axis of its scales (None: per-tensor).
        biases: Bias initializer to its node.
    """

    nodes: dict[str, NodePlan]
    activations: list[str]
    tied: dict[str, str]
    weights: dict[str, int | None]
    biases: dict[str, str]


def is_float(value: ir.Value | None) -> bool:
    """Say whether a value is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def tail(node: ir.Node, rules: Mapping[str, OperatorRule]) -> ir.Value:
    """Return the value that carries a node's codes: its output, or that of what it absorbs."""
    value = node.outputs[0]
    reader = only_consumer(value)
    rule = rules.get(reader.op_type) if reader is not None and not reader.domain else None
    if reader is None or rule is None or rule.role is not Role.ABSORBED:
        return value
    return reader.outputs[0] if reader.inputs[0] is value and _vanishes(reader) else value


def _vanishes(node: ir.Node) -> bool:
    """Say whether rounding does what a Relu or Clip does, on whatever grid its values have.

    That holds where the lower bound is 0 (the lowest code) or absent; a grid around 0 ends up to
    half a step beside the bounds, and ONNX Runtime would leave the whole Conv in float.
    """
    low, high, *_ = [*node.inputs[1:3], None, None]
    if not all(is_constant(v) for v in (low, high) if v is not None):
        return False
    top = scalar(high)
    return scalar(low) in {None, 0.0} and (top is None or top > 0)


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
        self.wishes = _with_ends(wishes, model.graph, self.rules)
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
        names = {_name(node) for node in weighted}
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
        reason = _unsupported(node, rule) or self._unfit(node) or self._wish(node) or slow
        if reason:
            self.reasons[_name(node)] = reason
        return not reason

    def _unfit(self, node: ir.Node) -> str:
        """Return why no grid can hold what a node reads or makes, or nothing."""
        rule = self.rules[node.op_type]
        for value in (*_moved(node, rule), tail(node, self.rules)):
            if _value(value) in self.wishes.tensors:
                return f"{value.name} holds infinite values: no grid covers them"
        return ""

    def _wish(self, node: ir.Node) -> str:
        name = _name(node)
        if name in self.wishes.nodes:
            return self.wishes.nodes[name]
        for pattern in self.wishes.patterns:
            if fnmatch.fnmatchcase(name, _literal(pattern)):
                return f"excluded by name ({pattern})"
        if node.op_type in self.wishes.operators:
            return f"excluded by operator ({node.op_type})"
        return ""

    def _accept(self, node: ir.Node) -> None:
        rule = self.rules[node.op_type]
        self.int8[_name(node)] = rule
        if self.scheme == "int8":
            for index in rule.activations or range(len(node.inputs)):
                value = node.inputs[index]
                if value is not None and not is_constant(value):
                    self.codes.add(_value(value))

    def _take_codes(self, node: ir.Node, demand: set[str]) -> None:
        """Quantize the output of an int8 node where its kernel or a reader wants codes."""
        rule = self.int8[_name(node)]
        end = tail(node, self.rules)
        if rule.output is Output.CODES or _value(end) in demand:
            self.codes.add(_value(end))
            if end is not node.outputs[0]:
                absorber = end.producer()
                assert absorber is not None  # noqa: S101 - tail() found it behind the node
                self.absorbed[_name(absorber)] = _name(node)

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
        demand: set[str] = set()
        for node in reversed(order):
            rule = self._rule(node)
            if rule is None or (joined is not None and _name(node) not in joined):
                continue
            if node.name in weighted:
                demand.update(
                    _value(v) for i in rule.activations if (v := node.inputs[i]) is not None
                )
            elif rule.role is not Role.WEIGHTED and any(
                _value(out) in demand for out in node.outputs
            ):
                demand.update(_value(v) for v in _moved(node, rule) if is_float(v))
        return demand

    def _consider(self, node: ir.Node, demand: set[str]) -> None:
        """Let a follower or carrier join the int8 region before it."""
        name = _name(node)
        rule = self._rule(node)
        if name in self.absorbed or rule is None or name in self.reasons:
            return
        if rule.role is Role.WEIGHTED:
            return
        if rule.role is Role.ABSORBED:
            self.reasons[name] = "follows no int8 node that could absorb it"
            return
        reason = self._obstacle(node, rule, demand) or self._unfit(node) or self._wish(node)
        if reason:
            self.reasons[name] = reason
            return
        self.int8[name] = rule
        moved = [v for v in _moved(node, rule) if not is_constant(v)]
        self.codes.update(_value(v) for v in moved)
        if rule.role is Role.CARRIER:
            for out in node.outputs:
                self.codes.add(_value(out))
                self.tied[_value(out)] = self.tied.get(_value(moved[0]), _value(moved[0]))
        else:
            self._take_codes(node, demand | {_value(tail(node, self.rules))})

    def _obstacle(self, node: ir.Node, rule: OperatorRule, demand: set[str]) -> str:
        moved = _moved(node, rule)
        if not all(is_float(v) for v in (*moved, *node.outputs)):
            return "not a float32 operation"
        wanted = any(_value(v) in demand for v in (*node.outputs, tail(node, self.rules)))
        if not wanted:
            return "no int8 node reads it: staying in float saves a rounding"
        plain = [v for v in moved if not is_constant(v)]
        if not plain:
            return "only constants go in"
        for value in plain:
            if _value(value) not in self.codes:
                return f"its input {value.name} is float"
        return _unsupported(node, rule)

    # -- outcome ----------------------------------------------------------------------------

    def _selection(self, order: list[ir.Node]) -> Selection:
        nodes: dict[str, NodePlan] = {}
        weights: dict[str, int | None] = {}
        biases: dict[str, str] = {}
        for node in order:
            nodes[_name(node)] = self._node_plan(node)
            rule = self.int8.get(_name(node))
            if rule is not None:
                self._constants(node, rule, weights, biases)
            for graph in subgraphs(node):
                _add_subgraph(nodes, graph, node)
        values = [*self.graph.inputs, *(out for node in order for out in node.outputs)]
        activations = [_value(v) for v in values if v.name and _value(v) in self.codes]
        return Selection(nodes, activations, self.tied, weights, biases)

    def _node_plan(self, node: ir.Node) -> NodePlan:
        name = _name(node)
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
        known = self.reasons.get(_name(node)) or _no_candidate(node)
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
            weights[_value(node.inputs[rule.weight])] = channel_axis(node, rule)
            bias = _input(node, rule.bias)
            if bias is not None and self.scheme == "int8":
                biases[_value(bias)] = _name(node)
        elif rule.role is Role.FOLLOWER:
            for value in node.inputs:
                if is_constant(value):
                    weights[_value(value)] = None

    def _rule(self, node: ir.Node) -> OperatorRule | None:
        return self.rules.get(node.op_type) if node.domain == "" else None


def channel_axis(node: ir.Node, rule: OperatorRule) -> int:
    """Return the axis of a node's weight that gets one scale a channel."""
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return 1 - rule.channel_axis
    return rule.channel_axis


def _add_subgraph(nodes: dict[str, NodePlan], graph: ir.Graph, owner: ir.Node) -> None:
    for node in graph:
        reason = f"inside {owner.op_type} {owner.name}: control flow stays in float"
        nodes[_name(node)] = NodePlan(op=node.op_type, precision="float", reason=reason)
        for inner in subgraphs(node):
            _add_subgraph(nodes, inner, node)


def _no_candidate(node: ir.Node) -> str:
    if any(True for _ in subgraphs(node)):
        return "holds subgraphs: control flow stays in float"
    if not any(is_float(v) for v in node.inputs if v is not None):
        return "no float32 input"
    return ""


def _unsupported(node: ir.Node, rule: OperatorRule) -> str:
    """Return why a node does not fit the target's rule, or nothing."""
    if rule.weight is not None:
        return _unsupported_inputs(node, rule) or _unsupported_form(node)
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        return "interpolates: only nearest moves codes as they are"
    if node.op_type == "Slice" and not all(is_constant(v) for v in node.inputs[1:] if v):
        return "its bounds are computed at run time"
    return ""


def _unsupported_inputs(node: ir.Node, rule: OperatorRule) -> str:
    data = node.inputs[rule.activations[0]]
    weight, bias = _input(node, rule.weight), _input(node, rule.bias)
    if is_constant(data):
        return "its first input is the constant one; kernels take weights on the right"
    if not is_constant(weight):
        return "both inputs are activations: their int8 kernel is slower than float"
    if not (is_float(data) and is_float(weight)):
        return "not a float32 operation"
    if bias is not None and not is_constant(bias):
        return "its bias is computed at run time"
    if bias is not None and bias.shape is not None and len(bias.shape) != 1:
        return "its bias is not one number for each column"
    return ""


def convolution_kind(node: ir.Node) -> str:
    """Return dense, grouped, depthwise or ragged depthwise for a Conv; nothing for other nodes."""
    weight = node.inputs[1] if node.op_type == "Conv" else None
    if weight is None or weight.shape is None:
        return ""
    group = node.attributes.get_int("group", 1)
    if group == 1:
        return "dense"
    outputs, inputs = weight.shape[0], weight.shape[1]
    if inputs != 1 or outputs != group:
        return "grouped"
    return "depthwise" if group % 16 == 0 else "ragged depthwise"


def _unsupported_form(node: ir.Node) -> str:
    weight = node.inputs[1]
    shape = weight.shape.numpy() if weight is not None and weight.shape is not None else ()
    if node.op_type == "MatMul" and len(shape) != 2:
        return "its weight is not a matrix"
    if node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) == 1
        or node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return "Gemm with alpha, beta or transA has no int8 kernel"
    return "" if np.prod(shape) else "its weight is empty"


def _with_ends(wishes: Wishes, graph: ir.Graph, rules: Mapping[str, OperatorRule]) -> Wishes:
    """Turn the first/last options into named nodes: the weighted nodes nearest to each end."""
    nodes = dict(wishes.nodes)
    if wishes.first:
        for node in _nearest(graph.inputs, rules, forwards=True):
            nodes[_name(node)] = "first weighted layer (--float-first)"
    if wishes.last:
        for node in _nearest(graph.outputs, rules, forwards=False):
            nodes[_name(node)] = "last weighted layer (--float-last)"
    return Wishes(wishes.patterns, wishes.operators, nodes=nodes, tensors=wishes.tensors)


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
            if node.domain == "" and rule is not None and rule.role is Role.WEIGHTED:
                found[_name(node)] = node
            else:
                front.extend(node.outputs if forwards else [v for v in node.inputs if v])
    return list(found.values())


def _moved(node: ir.Node, rule: OperatorRule) -> list[ir.Value]:
    """Return the inputs of a node that hold activations."""
    indices = rule.activations or range(len(node.inputs))
    return [v for i in indices if i < len(node.inputs) and (v := node.inputs[i]) is not None]


def _input(node: ir.Node, index: int | None) -> ir.Value | None:
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def _name(node: ir.Node) -> str:
    return node.name or ""


def _value(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def unmatched(model: ir.Model, wishes: Wishes) -> list[str]:
    """Return the patterns and operators of the wishes that match no node."""
    nodes = list(model.graph.all_nodes())
    patterns = [
        pattern
        for pattern in wishes.patterns
        if not any(fnmatch.fnmatchcase(_name(node), _literal(pattern)) for node in nodes)
    ]
    operators = {node.op_type for node in nodes}
    return patterns + [op for op in wishes.operators if op not in operators]


def _literal(pattern: str) -> str:
    """Return an fnmatch pattern in which only ``*`` and ``?`` are special."""
    return pattern.replace("[", "[[]")
