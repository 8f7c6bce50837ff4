"""Which weights are stored in few bits on a target, and why the others are not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError, RecipeError
from qcompile.graph.walk import all_nodes, is_constant
from qcompile.numerics.groups import Floats
from qcompile.plan import FLOATS, NodePlan, Plan, Precision
from qcompile.planning.forms import node_name, value_name
from qcompile.planning.wishes import Wishes, with_ends
from qcompile.recipe import Algorithm, Weights
from qcompile.targets.target import Target, WeightOnly

LEAST = 2048
"""Weights below which codes, scales and another operator save nothing."""

_FLOATS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}


@dataclass(frozen=True)
class Layer:
    """A weight that is stored in few bits, seen as rows ``(R, K)``, and a node that reads it.

    Attributes:
        node: A MatMul, Gemm or Conv.
        weight: MatMul ``(K, R)``, Gemm ``(K, R)`` or ``(R, K)``, Conv ``(R, C, k1, ...)``.
        by_rows: The weight lies in memory as its rows.
        rows: R, the output channels.
        columns: K, the weights that each output sums over.
        options: Format and algorithm.
        signed: Scales of symmetric grids may be negative.
        scales: Type that the graph will be cast to; None: it stays as it is.
    """

    node: ir.Node
    weight: ir.Value
    by_rows: bool
    rows: int
    columns: int
    options: Weights
    signed: bool = True
    scales: str | None = None

    @property
    def name(self) -> str:
        """The weight's name."""
        return str(self.weight.name)

    @property
    def scale_type(self) -> str:
        """The type of scales: what the graph computes in."""
        return self.scales or self.type

    @property
    def type(self) -> str:
        """The type of the weight."""
        assert self.weight.dtype is not None  # noqa: S101 - a constant has a type
        return _FLOATS[self.weight.dtype]

    def values(self) -> Floats:
        """Return the weight ``(R, K)`` in its own type: mapped where it is external data."""
        assert self.weight.const_value is not None  # noqa: S101 - a constant
        array = self.weight.const_value.numpy()
        return array.reshape(self.rows, self.columns) if self.by_rows else array.T

    def shaped(self, rows: Floats) -> Floats:
        """Return rows ``(R, K)`` in the shape and type that the weight has in the graph."""
        assert self.weight.const_value is not None  # noqa: S101
        shape = tuple(self.weight.const_value.shape.numpy())
        dtype = np.dtype(self.type)
        array = rows if self.by_rows else rows.T
        return np.ascontiguousarray(array.reshape(shape), dtype)


@dataclass(frozen=True)
class WeightSelection:
    """Node name to plan, in graph order, subgraphs included; and one layer for each weight."""

    nodes: dict[str, NodePlan]
    layers: list[Layer]


def select_weights(
    model: ir.Model,
    target: Target,
    weights: Weights,
    wishes: Wishes,
    edited: Plan | None = None,
    scale_type: str | None = None,
) -> WeightSelection:
    """Choose the weights that are stored in few bits.

    Args:
        model: The lowered graph, with unique names.
        target: What the engine can run.
        weights: What was asked for.
        wishes: What the user keeps in float.
        edited: A plan to follow: which nodes, and format and algorithm of each weight.
        scale_type: Of the scales, where the graph will be cast to it; None: what it computes in.

    Raises:
        PlanError: The plan is for another target or names what the model cannot have.
        RecipeError: The target has no such bits, groups or operators.
    """
    few = target.few_bits()
    rules = few.operators
    wishes = with_ends(wishes, model.graph, rules)
    _check(target, weights)
    asked = _edited_options(edited, model, target, weights) if edited else {}
    nodes: dict[str, NodePlan] = {}
    layers: dict[ir.Value, Layer] = {}
    for node, owner in all_nodes(model):
        reason = _refusal(node, target, weights, inside=owner is not None) or wishes.reason(node)
        if edited:
            reason = _edited_reason(edited, node, reason)
        precision: Precision = "float"
        if not reason:
            options = asked.get(value_name(node.inputs[1]), weights)
            layer = _layer(node, options, few, scale_type)
            partial = _partial(layer) if few.whole_groups else ""
            if partial and not edited:
                layer = _in_smaller_groups(layer, few)
            known = layers.setdefault(layer.weight, layer)
            if few.whole_groups and _partial(layer):
                reason = partial
                if edited:
                    _edited_reason(edited, node, reason)
            elif known.by_rows == layer.by_rows:
                stored = few.widths[layer.options.bits].stored
                precision, reason = "weight-only", f"constant weights, stored in {stored} bits"
                if partial:
                    reason += f", in groups of {layer.options.group_size}: {partial}"
            else:
                reason = "its weight is read by rows and by columns"
        nodes[node_name(node)] = NodePlan(op=node.op_type, precision=precision, reason=reason)
    read = {n for n, plan in nodes.items() if plan.precision == "weight-only"}
    return WeightSelection(nodes, [x for x in layers.values() if node_name(x.node) in read])


def _partial(layer: Layer) -> str:
    """Return why kernels that read several whole groups cannot read a layer, or nothing."""
    size, columns = layer.options.group_size, layer.columns
    if columns % size:
        return f"each output sums {columns} weights, no multiple of {size}"
    alone = f"each output sums {columns} weights, one group: no kernel reads a single one"
    return alone if columns == size else ""


def _in_smaller_groups(layer: Layer, few: WeightOnly) -> Layer:
    """Return the layer with the largest smaller groups that kernels can read, if there are any."""
    options = layer.options
    for size in sorted(few.widths[options.bits].group_sizes, reverse=True):
        smaller = replace(layer, options=options.model_copy(update={"group_size": size}))
        if size < options.group_size and not _partial(smaller):
            return smaller
    return layer


def layer_nodes(model: ir.Model, selection: WeightSelection) -> Iterator[ir.Node]:
    """Yield the nodes whose weight is stored in few bits, in graph order."""
    for node in model.graph:
        if selection.nodes[node_name(node)].precision == "weight-only":
            yield node


def _edited_reason(plan: Plan, node: ir.Node, refusal: str) -> str:
    """Return why a plan leaves a node in float, or nothing.

    Raises:
        PlanError: It does not, but the node has to be.
    """
    entry = plan.nodes.get(node_name(node))
    if entry is None:
        return refusal or "not in the plan"
    if entry.precision in FLOATS:
        return refusal or entry.reason or "the plan says so"
    if refusal:
        raise PlanError(f"--plan: node {node_name(node)} has to stay in float: {refusal}")
    return ""


def _edited_options(
    plan: Plan, model: ir.Model, target: Target, weights: Weights
) -> dict[str, Weights]:
    """Return format, algorithm and accuracy level of each weight of a plan.

    Raises:
        PlanError: The model has no such weight, or the target no such format.
    """
    found = {}
    for name, entry in plan.weights.items():
        if name not in model.graph.initializers:
            raise PlanError(f"--plan: weight {name} is not in the model")
        asked: dict[str, object] = {
            "bits": entry.bits,
            "group_size": entry.group_size,
            "asymmetric": not entry.symmetric,
            "algorithm": entry.algorithm,
            "accuracy_level": entry.accuracy_level,
            "compensate": entry.compensate,
        }
        found[name] = weights.model_copy(update=asked)
        try:
            _check(target, found[name])
        except RecipeError as error:
            raise PlanError(f"--plan: weight {name}: {error}") from error
    return found


def _check(target: Target, weights: Weights) -> None:
    few = target.few_bits()
    widths = few.widths
    if weights.bits not in widths:
        known = ", ".join(str(bits) for bits in widths)
        raise RecipeError(f"{target.name} takes weights of {known} bits, not {weights.bits}")
    width = widths[weights.bits]
    if weights.group_size not in width.group_sizes:
        known = ", ".join(str(size) for size in width.group_sizes)
        raise RecipeError(
            f"group size {weights.group_size}: for {weights.bits} bits {target.name} takes "
            f"{known} (0: the whole channel): {width.why}"
        )
    if weights.accuracy_level is not None and weights.accuracy_level not in width.levels:
        known = ", ".join(str(level) for level in width.levels) or "none"
        raise RecipeError(
            f"accuracy level {weights.accuracy_level}: for {weights.bits} bits {target.name} "
            f"takes {known}: {width.why}"
        )
    if weights.asymmetric and few.symmetric_only:
        raise RecipeError(f"--asymmetric: {target.name} takes zero points of 0 only")
    for op in weights.operators:
        if op not in few.operators:
            why = few.costs.get(op, "it has no weights")
            raise RecipeError(f"{target.name} stores no weights of {op} in few bits: {why}")


def _refusal(node: ir.Node, target: Target, weights: Weights, *, inside: bool) -> str:
    """Return why a node cannot read its weight in few bits, or nothing."""
    few = target.few_bits()
    if node.domain not in ("", "ai.onnx") or node.op_type not in few.operators:
        why = few.costs.get(node.op_type, "") if not node.domain else ""
        return why or "no weights"
    if inside:
        return "inside If, Loop or Scan: control flow stays in float"
    if node.op_type not in weights.operators:
        return f"{node.op_type} is not among the operators of [weights]"
    weight = node.inputs[1]
    if weight is None or not is_constant(weight) or not weight.is_initializer():
        first = node.inputs[0]
        return (
            "its first input is the constant one"
            if is_constant(first)
            else "both inputs are activations"
        )
    if weight.dtype not in _FLOATS:
        return f"weights of {str(weight.dtype).lower()}: float32 and float16 have a form"
    return _shape_refusal(node, weight)


def _shape_refusal(node: ir.Node, weight: ir.Value) -> str:
    assert weight.const_value is not None  # noqa: S101 - a constant
    shape = weight.const_value.shape.numpy()
    if node.op_type == "Conv":
        if node.attributes.get_int("group", 1) != 1:
            return "a grouped convolution: few weights, each read often"
    elif len(shape) != 2:
        return "its weight is no matrix"
    if node.op_type == "Gemm" and (
        node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
        or node.attributes.get_int("transA", 0) == 1
    ):
        return "a Gemm with alpha, beta or transA"
    if math.prod(shape) < LEAST:
        return f"fewer than {LEAST} weights: codes and scales would save nothing"
    return ""


def _layer(node: ir.Node, options: Weights, few: WeightOnly, scales: str | None) -> Layer:
    weight = node.inputs[1]
    assert weight is not None  # noqa: S101 - not refused
    assert weight.const_value is not None  # noqa: S101
    shape = weight.const_value.shape.numpy()
    by_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    rows = shape[0 if by_rows else 1]
    if node.op_type == "Conv":
        options = _for_conv(options)
    columns = math.prod(shape) // rows
    signed = not few.symmetric_only
    return Layer(node, weight, by_rows, rows, columns, options, signed, scales)


def _for_conv(options: Weights) -> Weights:
    """Return what a convolution can take: a scale a channel, inputs as they are."""
    algorithm: Algorithm = "rtn" if options.algorithm == "awq" else options.algorithm
    if algorithm in ("auto", "awq+gptq"):
        algorithm = "gptq"
    return options.model_copy(
        update={
            "group_size": 0,
            "algorithm": algorithm,
            "static_groups": True,
            "compensate": options.compensates,
        }
    )
