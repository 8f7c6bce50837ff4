"""Checks of the grids in a plan that a user edited, against the model's shapes and the target."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.numerics.grids import CODE_RANGE
from qcompile.plan import Plan, TensorPlan
from qcompile.planning.forms import channel_axis
from qcompile.planning.tensors import bias_plan, input_name, values_of
from qcompile.progress import Progress
from qcompile.targets.target import OperatorRule, Target, Types

SMALLEST = np.finfo(np.float32).tiny
"""Smallest scale: kernels flush smaller ones to zero."""

Rules = Mapping[str, OperatorRule]
Reader = tuple[ir.Node, int, OperatorRule]
"""A node, which of its inputs the tensor is, and the node's rule."""


def check_grids(plan: Plan, model: ir.Model, target: Target, device: str) -> None:
    """Check kind, code type, axis, length, scales and zero points of every tensor.

    Args:
        plan: Names only tensors that the model has.
        model: The lowered graph.
        target: Has the operator rules and the code types.
        device: What the engine runs on.

    Raises:
        PlanError: A grid does not fit; names the tensor and what it must be.
    """
    values = {v.name: v for v in model.graph.inputs} | dict(model.graph.initializers)
    values |= {out.name: out for node in model.graph for out in node.outputs}
    rules = target.rules(plan.scheme)
    if not plan.tensors:
        return
    types = target.types(plan.scheme, device)
    for name, tensor in plan.tensors.items():
        value = values[name]
        readers = list(_int8_readers(value, plan, rules))
        problem = _bad_numbers(tensor) or _bad_kind(value, tensor)
        problem = problem or _bad_form(value, tensor, readers, types)
        if problem:
            raise PlanError(f"--plan: tensor {name}: {problem}")


def with_bias_scales(plan: Plan, model: ir.Model, target: Target, progress: Progress) -> Plan:
    """Return the plan with each bias on the grid that its kernel adds it on.

    Who edits the scale of an activation or weight need not work out those of the biases behind it.

    Args:
        plan: Checked by ``check_grids``.
        model: The lowered graph.
        target: Has the operator rules.
        progress: Hears of biases whose scale changes.

    Raises:
        PlanError: A bias does not fit into int32 codes of its new scale.
    """
    rules = target.rules(plan.scheme)
    derived: dict[str, TensorPlan] = {}
    for name, tensor in plan.tensors.items():
        if tensor.kind != "bias":
            continue
        for node, index, rule in _int8_readers(model.graph.initializers[name], plan, rules):
            data, weight = (plan.tensors.get(input_name(node, i)) for i in (0, rule.weight or 1))
            if index != rule.bias or data is None or weight is None:
                continue
            wanted = bias_plan(data, weight)
            if not np.array_equal(wanted.scales(), tensor.scales()):
                _check_fits(model, name, wanted)
                derived[name] = wanted
    if derived:
        names = ", ".join([*list(derived)[:3], *(["..."] if len(derived) > 3 else [])])
        progress.notice(
            f"--plan: scale of bias set to that of input times weight, as kernels demand: {names}"
        )
    return plan.model_copy(update={"tensors": {**plan.tensors, **derived}})


def _check_fits(model: ir.Model, name: str, tensor: TensorPlan) -> None:
    codes = np.abs(values_of(model, name).astype(np.float64)) / tensor.scales()
    if codes.max(initial=0.0) > CODE_RANGE["int32"][1]:
        raise PlanError(
            f"--plan: tensor {name}: the scales of input and weight are too small for int32 codes "
            "of this bias"
        )


def _int8_readers(value: ir.Value, plan: Plan, rules: Rules) -> Iterator[Reader]:
    for use in value.uses():
        rule = rules.get(use.node.op_type)
        if rule is not None and plan.is_quantized(use.node.name or ""):
            yield use.node, use.idx, rule


def _bad_numbers(tensor: TensorPlan) -> str:
    with np.errstate(over="ignore", under="ignore"):
        scales = np.asarray(tensor.scale, np.float32)
    for stated, scale in zip(tensor.scale, scales, strict=True):
        if not SMALLEST <= scale < np.inf:
            return f"scale {stated:g} is no normal float32 number"
    if tensor.kind == "bias" and any(tensor.zero_point):
        return "the zero point of a bias must be 0"
    return ""


def _bad_kind(value: ir.Value, tensor: TensorPlan) -> str:
    if value.dtype != ir.DataType.FLOAT:
        return "is not float32: it has no grid"
    stored = value.is_initializer()
    if stored and tensor.kind == "activation":
        return "is a constant: its kind is weight or bias, not activation"
    if not stored and tensor.kind != "activation":
        return f"is computed: its kind is activation, not {tensor.kind}"
    return ""


def _bad_form(value: ir.Value, tensor: TensorPlan, readers: list[Reader], types: Types) -> str:
    """Return what is wrong with code type, axis, length or zero point for those who read it."""
    if tensor.kind == "activation":
        shifted = types.symmetric and any(tensor.zero_point)
        problem = "its zero point must be 0 on this target" if shifted else ""
        return problem or _differs(tensor, types.activation) or _not_single(tensor)
    if tensor.kind == "bias":
        return _differs(tensor, "int32") or _bad_length(value, tensor, 0)
    weighs = [
        (n, rule) for n, index, rule in readers if index == rule.weight and not rule.per_tensor
    ]
    if not weighs:
        return (_differs(tensor, types.activation) or _not_single(tensor)) if readers else ""
    if any(tensor.zero_point):
        return "the zero point of a weight must be 0: kernels take symmetric weights"
    for node, rule in weighs:
        problem = _differs(tensor, types.weight)
        problem = problem or _bad_length(value, tensor, channel_axis(node, rule))
        if problem:
            return problem
    return ""


def _differs(tensor: TensorPlan, wanted: str) -> str:
    if tensor.type == wanted:
        return ""
    return f"the codes of this {tensor.kind} must be {wanted} on this target, not {tensor.type}"


def _not_single(tensor: TensorPlan) -> str:
    if tensor.axis is None:
        return ""
    return "must have one scale and no axis (axis: null): kernels take one scale for it"


def _bad_length(value: ir.Value, tensor: TensorPlan, axis: int) -> str:
    """Return whether the scales are not one, without an axis, or one a channel."""
    if tensor.axis is None:
        return ""
    if tensor.axis != axis:
        return f"its channels are axis {axis}, not {tensor.axis}"
    channels = value.shape[axis] if value.shape is not None else None
    if channels != len(tensor.scale):
        return f"has {channels} channels, but {len(tensor.scale)} scales"
    return ""
