"""Grids for what ``select`` chose: activations from ranges, constants from their values."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.numerics.grids import CODE_RANGE, rounded_scales, symmetric_scales
from qcompile.plan import TensorPlan
from qcompile.planning.activation_grids import activation_grid
from qcompile.planning.select import Selection
from qcompile.targets.target import Types

BIAS_LIMIT = 2**30
"""Largest bias code: half of int32, so that bias plus products do not overflow at once."""

Ranges = Mapping[str, tuple[float, float, str]]
"""Value name to low, high and the method that chose them."""


def activation_plan(low: float, high: float, types: Types, method: str) -> TensorPlan:
    """Return the per-tensor grid of an activation over a range."""
    scale, zero_point = activation_grid(low, high, types)
    return TensorPlan(
        kind="activation",
        type=types.activation,
        scale=[scale],
        zero_point=[zero_point],
        method=method,
    )


def plan_tensors(
    model: ir.Model, selection: Selection, types: Types, ranges: Ranges
) -> dict[str, TensorPlan]:
    """Return the plan of every tensor that becomes codes, in graph order.

    Args:
        model: The lowered graph.
        selection: What becomes codes.
        types: Code types of the instruction set.
        ranges: Range of each activation; a tied one takes its source's.

    Raises:
        PlanError: An activation has no range.
    """
    plans: dict[str, TensorPlan] = {}
    for name in selection.activations:
        source = selection.tied.get(name, name)
        if source in selection.made:
            low, high, method = (*selection.made[source], "fixed")
        elif source in ranges:
            low, high, method = ranges[source]
        else:
            raise PlanError(f"{name}: no range; calibrate this tensor or exclude its readers")
        plans[name] = activation_plan(low, high, types, "tied" if source != name else method)
    for name, axis in selection.weights.items():
        values = values_of(model, name)
        plans[name] = (
            constant_plan(values, types) if axis is None else weight_plan(values, axis, types)
        )
    nodes = {node.name: node for node in model.graph}
    for name, owner in selection.biases.items():
        _widen_weight(model, name, nodes[owner], plans)
    for name, owner in selection.biases.items():
        data, weight = (plans[input_name(nodes[owner], i)] for i in (0, 1))
        plans[name] = bias_plan(data, weight)
    return plans


def weight_plan(values: np.ndarray, axis: int, types: Types) -> TensorPlan:
    """Return the symmetric per-channel grid of a weight."""
    high = 63 if types.reduce_range else CODE_RANGE[types.weight][1]
    scales = rounded_scales(symmetric_scales(values, axis, high), types.scale)
    return TensorPlan(
        kind="weight",
        type=types.weight,
        axis=axis,
        scale=[float(s) for s in scales],
        zero_point=[0] * len(scales),
        reduce_range=types.reduce_range,
        method="minmax",
    )


def constant_plan(values: np.ndarray, types: Types) -> TensorPlan:
    """Return the grid of a constant that is typed like an activation: an operand of Add, say."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    scale, zero_point = activation_grid(low, high, types)
    return TensorPlan(
        kind="weight",
        type=types.activation,
        scale=[scale],
        zero_point=[zero_point],
        method="minmax",
    )


def _widen_weight(model: ir.Model, bias: str, node: ir.Node, plans: dict[str, TensorPlan]) -> None:
    """Let the scale of tiny weights behind a large bias grow until the bias fits into its codes."""
    data, weight = (plans[input_name(node, i)] for i in (0, 1))
    values = np.abs(values_of(model, bias).astype(np.float64)).reshape(-1)
    if weight.axis is None:
        values = values.max(keepdims=True)
    needed = np.broadcast_to(values, len(weight.scale)) / BIAS_LIMIT / data.scale[0]
    scales = np.maximum(weight.scale, needed).astype(np.float32)
    if not np.array_equal(scales, np.asarray(weight.scale, np.float32)):
        wider = weight.model_copy(update={"scale": [float(s) for s in scales]})
        plans[input_name(node, 1)] = wider


def bias_plan(data: TensorPlan, weight: TensorPlan) -> TensorPlan:
    """Return the bias grid: scale of the input times scale of the weight, as the kernels demand."""
    product = np.float32(data.scale[0]) * np.asarray(weight.scale, np.float32)
    return TensorPlan(
        kind="bias",
        type="int32",
        axis=None if weight.axis is None else 0,
        scale=[float(s) for s in product],
        zero_point=[0] * len(product),
        method="fixed",
    )


def input_name(node: ir.Node, index: int) -> str:
    """Return the name of a node's input, empty where it has none."""
    value = node.inputs[index]
    return (value.name or "") if value is not None else ""


def values_of(model: ir.Model, name: str) -> np.ndarray:
    """Return the values of an initializer."""
    tensor = model.graph.initializers[name].const_value
    if tensor is None:
        raise PlanError(f"{name}: not a constant")
    return tensor.numpy()
