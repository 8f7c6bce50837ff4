"""From a graph and its statistics to a plan, and the checks on a plan that a user edited."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.digest import model_digest
from qcompile.plan import Plan
from qcompile.planning.probe import Probe
from qcompile.planning.ranges import Choice, choose_ranges
from qcompile.planning.select import Selection, Wishes, select
from qcompile.planning.tensors import plan_tensors
from qcompile.progress import Progress
from qcompile.recipe import Cpu, Recipe
from qcompile.samples import Samples
from qcompile.statistics import Statistics
from qcompile.targets.target import Target

PROBED = 8
"""Samples that candidate grids are measured on, taken in content order."""


def wishes_of(recipe: Recipe) -> Wishes:
    """Return what the recipe keeps in float."""
    return Wishes(
        patterns=recipe.exclude,
        operators=recipe.exclude_ops,
        first=recipe.float_first,
        last=recipe.float_last,
    )


def activations_of(selection: Selection) -> list[str]:
    """Return the tensors whose range must be known: those with a grid of their own."""
    return [name for name in selection.activations if name not in selection.tied]


def readers(model: ir.Model, selection: Selection) -> dict[str, list[str]]:
    """Return, for each activation with its own grid, the nodes that would read it rounded."""
    values = {v.name: v for v in model.graph.inputs}
    values |= {out.name: out for node in model.graph for out in node.outputs}
    found: dict[str, list[str]] = {}
    for name in activations_of(selection):
        producer = values[name].producer()
        everyone = producer is not None and _is_int8(selection, producer)
        uses = [use.node for use in values[name].uses()]
        names = [n.name or "" for n in uses if n.graph is model.graph]
        kept = [n for n in names if everyone or selection.nodes[n].precision != "float"]
        found[name] = list(dict.fromkeys(kept))
    return found


def make_plan(
    model: ir.Model,
    statistics: Statistics,
    samples: Samples | None,
    recipe: Recipe,
    target: Target,
    cpu: Cpu,
    wishes: Wishes,
    progress: Progress,
) -> Plan:
    """Decide precision, type, scale and zero point of everything.

    Args:
        model: The lowered graph.
        statistics: Of the activations that ``select`` would quantize.
        samples: A few samples of the calibration data, for measured choices; None without any.
        recipe: What the user asks for.
        target: What the engine can run.
        cpu: Instruction set.
        wishes: What stays in float.
        progress: Hears of the steps.
    """
    selection = select(model, target, recipe.scheme, wishes)
    types = target.types[cpu]
    choices: dict[str, Choice] = {}
    if selection.activations and samples is not None:
        jobs = recipe.jobs or 1

        def probe() -> Probe:
            return Probe(model, readers(model, selection), types.activation, samples, jobs)

        choices = choose_ranges(
            activations_of(selection), statistics, recipe.calibration, probe, progress
        )
    return assemble(model, selection, target, cpu, recipe.scheme, choices)


def assemble(
    model: ir.Model,
    selection: Selection,
    target: Target,
    cpu: Cpu,
    scheme: str,
    choices: Mapping[str, Choice],
) -> Plan:
    """Put a selection and its ranges together as a plan."""
    types = target.types[cpu]
    ranges = {name: (choice.low, choice.high, choice.method) for name, choice in choices.items()}
    tensors = plan_tensors(model, selection, types, ranges)
    for name, choice in choices.items():
        errors = {label: _short(value) for label, value in choice.errors.items()}
        tensors[name] = tensors[name].model_copy(update={"errors": errors})
    return Plan(
        model=model_digest(model),
        target=target.name,
        cpu=cpu,
        scheme=scheme,
        tensors=tensors,
        nodes=selection.nodes,
    )


def check_plan(plan: Plan, model: ir.Model, target: Target, cpu: Cpu, scheme: str) -> None:
    """Check a plan that the user gave against the model and the target.

    Raises:
        PlanError: It was made for something else, or names what the model lacks.
    """
    for what, found, wanted in (
        ("target", plan.target, target.name),
        ("cpu", plan.cpu, cpu),
        ("scheme", plan.scheme, scheme),
    ):
        if found != wanted:
            raise PlanError(f"--plan: it is for {what} {found}, this build is for {wanted}")
    if plan.model != model_digest(model):
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


def _check_precisions(
    plan: Plan, nodes: Mapping[str | None, ir.Node], target: Target, scheme: str
) -> None:
    rules = target.rules(scheme)
    for name, entry in plan.nodes.items():
        if entry.precision == "float":
            continue
        node = nodes[name]
        rule = rules.get(node.op_type)
        if rule is None or node.domain:
            raise PlanError(f"--plan: node {name}: {target.name} has no int8 {entry.op}")
        if scheme != "int8":
            continue
        for index in rule.activations or range(len(node.inputs)):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.name not in plan.tensors:
                raise PlanError(f"--plan: node {name} is int8, but tensor {value.name} has no grid")
        if rule.weight is not None and (node.inputs[rule.weight].name or "") not in plan.tensors:  # type: ignore[union-attr]
            raise PlanError(f"--plan: node {name} is int8, but its weight has no grid")


def _is_int8(selection: Selection, node: ir.Node) -> bool:
    return selection.nodes[node.name or ""].precision != "float"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


