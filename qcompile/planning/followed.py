"""Whether a plan that a user gave, perhaps edited, can be followed."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from qcompile.errors import PlanError, RecipeError
from qcompile.plan import CALIBRATED, FLOATS, Plan, read_plan
from qcompile.planning.edited import check_grids
from qcompile.recipe import Accuracy, Calibration, Recipe, Weights
from qcompile.targets.target import OPTIONS, Role, Target


def plan_to_follow(path: Path, recipe: Recipe) -> Plan:
    """Read the plan to follow.

    Raises:
        RecipeError: The recipe asks for what the plan has decided.
        PlanError: The file is bad.
    """
    decided = {
        "--exclude": recipe.exclude,
        "--exclude-op": recipe.exclude_ops,
        "--float-first": recipe.float_first,
        "--float-last": recipe.float_last,
        "--calib-method": recipe.calibration.method != Calibration().method,
        "--algorithm": recipe.weights.algorithm != Weights().algorithm
        or recipe.accuracy != Accuracy(),
        "--group-size": recipe.weights.group_size != Weights().group_size,
        "--asymmetric": recipe.weights.asymmetric,
        "--accuracy-level": recipe.weights.accuracy_level is not None,
    }
    for option, asked in decided.items():
        if asked:
            raise RecipeError(
                f"{option}: --plan {path} has decided that; leave out one of them, or edit the plan"
            )
    return read_plan(path)


def check_plan(
    plan: Plan, model: ir.Model, digest: str, target: Target, device: str, scheme: str
) -> None:
    """Check a plan that the user gave against the model, of that digest, and the target.

    Raises:
        PlanError: It was made for something else, or names what the model lacks.
    """
    for what, found, wanted, option in (
        ("target", plan.target, target.name, f"--target {plan.target}"),
        ("device", plan.device, device, f"{target.device_option} {plan.device}"),
        ("scheme", plan.scheme, scheme, OPTIONS.get(plan.scheme, "another scheme")),
    ):
        if found != wanted:
            raise PlanError(
                f"--plan: it is for {what} {found}, this build is for {wanted}: build with "
                f"{option}, or without --plan"
            )
    if plan.model != digest:
        raise PlanError("--plan: it belongs to another model (the graph's sha256 differs)")
    nodes = {node.name: node for node in model.graph.all_nodes()}
    for name, entry in plan.nodes.items():
        if name not in nodes:
            raise PlanError(f"--plan: node {name} is not in the model")
        if nodes[name].op_type != entry.op:
            raise PlanError(f"--plan: node {name} is a {nodes[name].op_type}, not a {entry.op}")
    _check_precisions(plan, nodes, target, scheme)
    values = {v.name for v in model.graph.inputs} | set(model.graph.initializers)
    values |= {out.name for node in model.graph for out in node.outputs}
    for name in plan.tensors:
        if name not in values:
            raise PlanError(f"--plan: tensor {name} is not in the model")
    check_grids(plan, model, target, device)


def _check_precisions(
    plan: Plan, nodes: Mapping[str | None, ir.Node], target: Target, scheme: str
) -> None:
    rules = target.rules(scheme)
    for name, entry in plan.nodes.items():
        if entry.precision in FLOATS:
            continue
        if entry.precision != scheme:
            raise PlanError(
                f"--plan: node {name} is {entry.precision}, but the plan is {scheme}: write that, "
                "or float"
            )
        node = nodes[name]
        rule = rules.get(node.op_type)
        if rule is None or node.domain:
            raise PlanError(f"--plan: node {name}: {target.name} has no {scheme} {entry.op}")
        if scheme not in CALIBRATED or rule.role in (Role.ABSORBED, Role.RESIDUAL):
            continue
        for index in rule.activations or range(len(node.inputs)):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.name not in plan.tensors:
                raise PlanError(
                    f"--plan: node {name} is {scheme}, but tensor {value.name} has no grid"
                )
        if rule.weight is not None and (node.inputs[rule.weight].name or "") not in plan.tensors:  # type: ignore[union-attr]
            raise PlanError(f"--plan: node {name} is {scheme}, but its weight has no grid")
