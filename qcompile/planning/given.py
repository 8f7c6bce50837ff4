"""Plans for models that were quantized elsewhere: their grids in the codes of a target.

What was trained or calibrated keeps its scales. int8 and uint8 are the same grid shifted by 128;
where a target wants other grids (no zero point, 8 bits for 16, codes that begin at 0 behind a
Relu), the new grid covers the range of the old one, and the entry's method says so.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompile.graph.walk import is_constant, is_op
from qcompile.numerics.grids import CODE_RANGE, TINY, dequantize, quantize, rounded_scales
from qcompile.numerics.regrid import Given, Grid, refined, shifted
from qcompile.plan import Plan, TensorPlan
from qcompile.planning.forms import node_name, rule_of, value_name
from qcompile.planning.pays import select_paying
from qcompile.planning.select import Selection
from qcompile.planning.tensors import activation_plan, bias_plan, input_name, values_of
from qcompile.planning.wishes import Wishes
from qcompile.targets.target import Role, Target, Types

KEPT, RETARGETED = "source", "re-targeted"
"""Methods of a plan's entry: the grid of the source as it is, or another over its range."""

SOURCE_FLOAT = "the source, which is quantized, computes it in float"
NO_GRID = "the source has no grid for what it reads or makes, and no --calib finds one"

MOVERS = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split"),
    *("MaxPool", "DepthToSpace", "SpaceToDepth"),
)
CLOSE = 1 / 512
"""Relative change of a scale below which no 8-bit code changes: half a step at code 127."""

ROWS = ".rows"
WHOLE = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Of these, the ones that keep all numbers: a grid behind them is one before them, too."""


@dataclass(frozen=True)
class Change:
    """How a grid of the source differs from the one that took its place.

    Attributes:
        what: Types before and after, and the reason.
        steps: The new step over the old one, for tensors with one step.
    """

    what: str
    steps: float | None = None


@dataclass(frozen=True)
class Kept:
    """What became of the grids of a source.

    Attributes:
        kept: Tensors with the very grid, shifted by 128 at most.
        retargeted: Tensor to what changed.
        calibrated: Activations that the source had no grid for.
        used: Names of tensors with a grid, and of those that they hold the numbers of.
    """

    kept: int
    retargeted: dict[str, Change]
    calibrated: int
    used: frozenset[str]


def spread(given: Given, graph: ir.Graph) -> Given:
    """Return the grids with those of values that only moving parts from a rounded one.

    What the lowering calls ``<value>.rows`` holds the numbers of that value, as a matrix.
    """
    found = dict(given.activations)
    order = list(graph)
    for value in (out for node in order for out in node.outputs):
        base = value_name(value).removesuffix(ROWS)
        if base in found:
            found.setdefault(value_name(value), found[base])
    own = frozenset(found)
    for node in reversed(order):
        if is_op(node, *WHOLE) and value_name(node.outputs[0]) in found and _moves(node):
            found.setdefault(value_name(node.inputs[0]), found[value_name(node.outputs[0])])
    for node in order:
        if is_op(node, *MOVERS) and value_name(node.inputs[0]) in found:
            for out in node.outputs:
                found.setdefault(value_name(out), found[value_name(node.inputs[0])])
    return replace(given, activations=found, moved=frozenset(found) - own)


def _moves(node: ir.Node) -> bool:
    return node.inputs[0] is not None and not is_constant(node.inputs[0])


def select_given(
    model: ir.Model,
    given: Given,
    target: Target,
    scheme: str,
    wishes: Wishes,
    *,
    calibrated: bool,
) -> Selection:
    """Choose the nodes that compute on codes: those that do so in the source, and what joins them.

    Args:
        model: The lowered graph.
        given: Grids of the source, spread over the graph.
        target: What the engine can run.
        scheme: int8 or fp8.
        wishes: What stays in float anyway.
        calibrated: Activations without a grid can get one from samples.

    Returns:
        The target's own selection for a model that was not quantized; else one in which values are
        tied only where the source has not two grids for them.
    """
    if not given:
        return select_paying(model, target, scheme, wishes)
    nodes = dict(wishes.nodes)
    rules = target.rules(scheme)
    for node in model.graph:
        rule = rule_of(node, rules)
        if rule is None or rule.role is not Role.WEIGHTED or rule.weight is None:
            continue
        weight = node.inputs[rule.weight] if rule.weight < len(node.inputs) else None
        if is_constant(weight) and value_name(weight) not in given.weights:
            nodes.setdefault(node_name(node), SOURCE_FLOAT)
    wishes = replace(wishes, nodes=nodes, rounded=frozenset(given.activations) - given.moved)
    while True:
        selection = _untied(select_paying(model, target, scheme, wishes), given)
        lacking = [] if calibrated else uncalibrated(selection, given)
        if not lacking:
            return selection
        wishes = replace(wishes, tensors={**wishes.tensors, **dict.fromkeys(lacking, NO_GRID)})


def _untied(selection: Selection, given: Given) -> Selection:
    grids = given.activations
    tied = {
        name: source
        for name, source in selection.tied.items()
        if name not in grids or (source in grids and grids[name].same(grids[source]))
    }
    return replace(selection, tied=tied)


def with_given(
    plan: Plan, selection: Selection, given: Given, model: ir.Model, types: Types
) -> tuple[Plan, Kept]:
    """Return the plan with the grids of the source, and what became of them.

    Args:
        plan: Made of the ranges of these grids.
        selection: What becomes codes.
        given: Grids of the source, spread over the graph.
        model: The lowered graph.
        types: Of the codes of the target.
    """
    tensors = dict(plan.tensors)
    changed: dict[str, Change] = {}
    behind_relu = _behind_relu(model.graph, selection)
    for name, tensor in plan.tensors.items():
        source = selection.tied.get(name, name)
        if source in selection.made or name in selection.made:
            continue
        if tensor.kind == "activation" and source in given.activations:
            grid = given.activations[source]
            tensors[name], what = activation(grid, types, positive=name in behind_relu)
        elif tensor.kind == "weight" and name in given.weights:
            axis = selection.weights[name]
            tensors[name], what = weight(
                given.weights[name], values_of(model, name), axis, types, tensor
            )
        else:
            continue
        if what is not None:
            changed[name] = what
    nodes = {node.name: node for node in model.graph}
    for name, owner in selection.biases.items():
        data, weights = (input_name(nodes[owner], i) for i in (0, 1))
        if not _fits(bias_plan(tensors[data], tensors[weights]), values_of(model, name)):
            tensors[weights] = plan.tensors[weights]
            changed[weights] = Change("a wider step, for its bias would not fit into int32 codes")
        tensors[name] = bias_plan(tensors[data], tensors[weights])
    known = [n for n, t in tensors.items() if t.method in (KEPT, RETARGETED)]
    kept = Kept(
        kept=len(known) - len(changed.keys() & set(known)),
        retargeted=changed,
        calibrated=len(uncalibrated(selection, given)),
        used=frozenset({*tensors, *(name.removesuffix(ROWS) for name in tensors)}),
    )
    return plan.model_copy(update={"tensors": tensors}), kept


def activation(grid: Grid, types: Types, *, positive: bool) -> tuple[TensorPlan, Change | None]:
    """Return the grid of an activation in the codes of a target, and what changed.

    Args:
        grid: Of the source.
        types: Of the codes of the target.
        positive: A Relu or Clip vanishes into the rounding where codes begin at 0.
    """
    low, high = grid.bounds()
    cover = activation_plan(max(low, 0.0) if positive else low, high, types, RETARGETED)
    same = shifted(grid, types.activation)
    if same is not None and same[0] >= TINY and _takes(same[1], types, positive=positive):
        scale = float(rounded_scales(np.asarray(same[0]), types.scale))
        update = {"scale": [scale], "zero_point": [same[1]], "method": KEPT}
        rounded = Change(f"scales rounded to {types.scale}", scale / same[0])
        return cover.model_copy(update=update), rounded if scale != same[0] else None
    fine = refined(grid, types.activation, symmetric=types.symmetric)
    if fine is not None and fine[0] >= TINY and _takes(fine[1], types, positive=positive):
        scale = float(rounded_scales(np.asarray(fine[0]), types.scale))
        update = {"scale": [scale], "zero_point": [fine[1]]}
        what = f"{grid.type} to {types.activation}: the same values and those between"
        return cover.model_copy(update=update), Change(what, 1 / fine[2])
    reason = "one without a zero point" if types.symmetric else f"{types.activation} over its range"
    if positive:
        reason = f"{types.activation} from 0 on, for a Relu goes before"
    steps = cover.scale[0] / float(grid.scale.max())
    return cover, Change(f"{grid.type} to {types.activation}: {reason}", steps)


def _takes(zero_point: int, types: Types, *, positive: bool) -> bool:
    if types.symmetric:
        return zero_point == 0
    return not positive or zero_point == CODE_RANGE[types.activation][0]


def weight(
    grid: Grid, values: np.ndarray, axis: int | None, types: Types, fallback: TensorPlan
) -> tuple[TensorPlan, Change | None]:
    """Return the grid of a weight in the codes of a target, and what changed.

    Kept where rounding the values to it gives the very values back: then their codes are those of
    the source, but for its zero point.

    Args:
        grid: Of the source.
        values: What its codes stand for.
        axis: The channel axis that kernels want; None for a constant that is typed like an
            activation.
        types: Of the codes of the target.
        fallback: The grid that a float weight of these values would get.
    """
    kept = _kept_constant(grid, types) if axis is None else _kept_weight(grid, axis, types)
    if kept is not None and _holds(kept, values):
        rounded = rounded_scales(np.asarray(kept.scale), types.scale)
        steps = rounded / kept.scales()
        if (steps == 1).all():
            return kept, None
        found = kept.model_copy(update={"scale": [float(s) for s in rounded]})
        if np.abs(steps - 1).max() < CLOSE:  # all codes stay the same
            return found, Change(f"scales of weights rounded to {types.scale}", float(steps.max()))
        what = f"weights with smaller scales than {types.scale} holds: these channels lose codes"
        return found.model_copy(update={"method": RETARGETED}), Change(what, float(steps.max()))
    bits = " of 7 bits" if fallback.reduce_range else ""
    what = f"weights of {_named(grid)} to {fallback.type}{bits}"
    return fallback.model_copy(update={"method": RETARGETED}), Change(what)


def _holds(tensor: TensorPlan, values: np.ndarray) -> bool:
    """Say whether all values lie on a grid."""
    form = tensor.scales(), tensor.zero_points(), tensor.axis
    codes = quantize(values, *form, tensor.type)
    if tensor.reduce_range and np.abs(codes.astype(np.int16)).max(initial=0) > 63:
        return False
    return np.array_equal(dequantize(codes, *form), values)


def _kept_constant(grid: Grid, types: Types) -> TensorPlan | None:
    same = shifted(grid, types.activation)
    if same is None or same[0] < TINY or (types.symmetric and same[1]):
        return None
    return TensorPlan(
        kind="weight", type=types.activation, scale=[same[0]], zero_point=[same[1]], method=KEPT
    )


def _kept_weight(grid: Grid, axis: int, types: Types) -> TensorPlan | None:
    scale = grid.scale.reshape(-1).astype(np.float32)
    if grid.block or not scale.size or (scale.size > 1 and grid.axis != axis):
        return None
    scale = np.where(scale < TINY, max(float(scale.max()), TINY), scale)  # channels of zeros
    return TensorPlan(
        kind="weight",
        type=types.weight,
        axis=axis if scale.size > 1 else None,
        scale=[float(s) for s in scale],
        zero_point=[0] * scale.size,
        reduce_range=types.reduce_range,
        method=KEPT,
    )


def _named(grid: Grid) -> str:
    shift = " with zero points" if grid.zero_point.any() else ""
    groups = f" in groups of {grid.block}" if grid.block else ""
    return grid.type + shift + (groups or ("" if grid.axis is None else f" along axis {grid.axis}"))


def _fits(bias: TensorPlan, values: np.ndarray) -> bool:
    codes = np.abs(values.astype(np.float64)).reshape(-1) / bias.scales()
    return bool(codes.max(initial=0.0) <= CODE_RANGE["int32"][1])


def _behind_relu(graph: ir.Graph, selection: Selection) -> set[str]:
    """Return the values that an absorbed Relu or Clip makes, and those that share their grid."""
    made = {value_name(node.outputs[0]) for node in graph if node_name(node) in selection.absorbed}
    return made | {name for name, source in selection.tied.items() if source in made}


def uncalibrated(selection: Selection, given: Given) -> list[str]:
    """Return the activations with a grid of their own that the source has none for."""
    own = (name for name in selection.activations if name not in selection.tied)
    return [name for name in own if name not in given.activations and name not in selection.made]
