"""Which nodes compute on codes where the engine wants only what weighted nodes read rounded.

TensorRT fuses what stands between two convolutions, and moves a rounding across what only moves
data. So the input of each weighted node gets a pair of Q and DQ, its output none. Of an Add behind
a convolution the *other* input, the skip, is rounded: the sum is fused with the convolution, and
reads the skip as codes. What a Concat joins for a weighted node shares the grid of the whole.
"""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qcompile.graph.walk import is_constant, is_op, only_consumer, subgraphs
from qcompile.plan import NodePlan
from qcompile.planning.forms import channel_axis, is_float, node_name, unsupported, value_name
from qcompile.planning.select import Selection, add_subgraph, no_candidate
from qcompile.planning.small import small_kind
from qcompile.planning.wishes import Wishes, with_ends
from qcompile.targets.target import OperatorRule, Placement, Role, Target

WHOLE = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    *("DepthToSpace", "SpaceToDepth"),
)
"""Operators that a rounding moves across, and that keep all numbers: the range stays the same."""

ATTENTION = "both inputs are activations: attention has one fused kernel, in half precision"
NO_SUM = "no convolution on codes alone makes an input of it: it is computed between kernels"


def select_inputs(model: ir.Model, target: Target, scheme: str, wishes: Wishes) -> Selection:
    """Choose the nodes that compute on codes, and the values that are rounded for them.

    Args:
        model: The lowered graph, with unique names and types.
        target: What the engine can run.
        scheme: int8 or fp8.
        wishes: What the user, or a measured error, keeps in float.
    """
    rules = target.rules(scheme)
    wishes = with_ends(wishes, model.graph, rules)
    nodes: dict[str, NodePlan] = {}
    weights: dict[str, int | None] = {}
    rounded: set[str] = set()
    weighted: set[ir.Node] = set()
    for node in model.graph:
        rule = rules.get(node.op_type) if not node.domain else None
        reason = _why_float(node, rule, target, scheme, wishes)
        if not reason and rule is not None:
            reason = _own_axis(node, rule, weights)
        if not reason:
            weighted.add(node)
            rounded.add(value_name(node.inputs[0]))
        nodes[node_name(node)] = _entry(node, scheme, reason, Role.WEIGHTED)
        for graph in subgraphs(node):
            add_subgraph(nodes, graph, node)
    for node, skip in _residuals(model.graph, rules, weighted, wishes):
        rounded.add(value_name(skip))
        nodes[node_name(node)] = _entry(node, scheme, "", Role.RESIDUAL)
    values = [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]
    activations = [value_name(v) for v in values if value_name(v) in rounded]
    tied = _tied(model.graph, rounded)
    placement = Placement.INPUTS
    return Selection(nodes, activations, tied, weights, {}, frozenset(), placement)


def _why_float(
    node: ir.Node, rule: OperatorRule | None, target: Target, scheme: str, wishes: Wishes
) -> str:
    if rule is None:
        known = no_candidate(node) or target.costs.get(node.op_type if not node.domain else "", "")
        return known or f"{target.name} has no {scheme} kernel for {node.op_type}"
    if rule.role is not Role.WEIGHTED:
        return no_candidate(node) or wishes.reason(node) or NO_SUM
    if node.op_type == "MatMul" and not any(map(is_constant, node.inputs)):
        return ATTENTION
    reason = unsupported(node, rule)
    reason = reason or wishes.tensors.get(value_name(node.inputs[0]), "")
    return reason or wishes.reason(node) or target.small.get(small_kind(node, scheme), "")


def _own_axis(node: ir.Node, rule: OperatorRule, weights: dict[str, int | None]) -> str:
    """Note the axis of a node's weight; return why it cannot be, where another has its own."""
    axis = channel_axis(node, rule)
    if weights.setdefault(value_name(node.inputs[1]), axis) == axis:
        return ""
    return "another node reads the same weight along its other axis: codes have scales along one"


def _entry(node: ir.Node, scheme: str, reason: str, role: Role) -> NodePlan:
    precision = "float" if reason else scheme
    fields = {"op": node.op_type, "precision": precision, "reason": reason or role.value}
    return NodePlan.model_validate(fields)


def _residuals(
    graph: ir.Graph, rules: Mapping[str, OperatorRule], weighted: set[ir.Node], wishes: Wishes
) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Yield each Add that is fused with a convolution on codes, and the skip that it adds.

    Where both inputs come from such convolutions, the later one takes the Add.
    """
    order = {node: number for number, node in enumerate(graph)}
    for node in graph:
        rule = rules.get(node.op_type)
        if node.domain or rule is None or rule.role is not Role.RESIDUAL or wishes.reason(node):
            continue
        values = [v for v in node.inputs if v is not None]
        if any(is_constant(v) or not is_float(v) for v in values) or not _same_shape(values):
            continue
        made = [_convolution(v, weighted) for v in values]
        if all(maker is None for maker in made):
            continue
        last = max(range(2), key=lambda i: order[maker] if (maker := made[i]) is not None else -1)
        skip = values[1 - last]
        if value_name(skip) not in wishes.tensors:
            yield node, skip


def _convolution(value: ir.Value, weighted: set[ir.Node]) -> ir.Node | None:
    """Return the convolution on codes whose result is this value, read by nothing else."""
    node = value.producer()
    if node is None or node not in weighted or node.op_type != "Conv":
        return None
    return node if only_consumer(value) is not None else None


def _same_shape(values: list[ir.Value]) -> bool:
    """Say whether two values may have one shape: unknown sizes count as equal."""
    first, second = (v.shape for v in values)
    if first is None or second is None or len(first) != len(second):
        return False
    sizes = zip(first, second, strict=True)
    return all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))


def _tied(graph: ir.Graph, rounded: set[str]) -> dict[str, str]:
    """Return the rounded values that take the grid of what a Concat makes of them."""
    tied: dict[str, str] = {}
    becomes: dict[ir.Value, str] = {}
    for node in reversed(list(graph)):
        if not is_op(node, *WHOLE, "Concat"):
            continue
        result = node.outputs[0]
        root = value_name(result) if value_name(result) in rounded else becomes.get(result)
        if root is None:
            continue
        branches = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        for value in (v for v in branches if v is not None):
            becomes.setdefault(value, root)
            name = _rounded_before(value, rounded) if node.op_type == "Concat" else ""
            if name and name != root:
                tied.setdefault(name, tied.get(root, root))
    return tied


def _rounded_before(value: ir.Value | None, rounded: set[str]) -> str:
    """Return the rounded value that a branch is, or is moved from; empty if there is none."""
    while value is not None:
        if value_name(value) in rounded:
            return value_name(value)
        node = value.producer()
        if not is_op(node, *WHOLE):
            return ""
        value = node.inputs[0]
    return ""
