"""Codes of weights that are solved for: by which method, again for a plan, and noted in it."""

from collections.abc import Callable, Mapping, Sequence

from qcompile.errors import PlanError
from qcompile.numerics.grids import Codes
from qcompile.plan import Plan, TensorPlan
from qcompile.planning.rounding import Rounded
from qcompile.recipe import Recipe, Rounding
from qcompile.remedies import Learned

Solve = Callable[[Mapping[str, TensorPlan], Sequence[str]], dict[str, Rounded]]
"""Finds codes for weights, given their grids and the nodes that compute on codes."""

SOLVED: tuple[Rounding, ...] = ("gptq", "adaround", "brecq")
"""Methods of weights whose codes are solved for."""


def learned_as(recipe: Recipe, edited: Plan | None) -> Learned:
    """Return how codes are learned: as the recipe says, or as it was done for a given plan."""
    own = Learned(steps=recipe.accuracy.steps, seed=recipe.accuracy.seed)
    return (edited.remedies.learned or own) if edited else own


def weights_of(plan: Plan) -> dict[str, TensorPlan]:
    """Return the grids of the weights that codes can be solved for."""
    return {
        name: tensor
        for name, tensor in plan.tensors.items()
        if tensor.kind == "weight" and tensor.axis is not None
    }


def nodes_of(plan: Plan) -> list[str]:
    """Return the nodes that compute in int8."""
    return [name for name, entry in plan.nodes.items() if entry.precision == "int8"]


def codes_of(plan: Plan, solve: Callable[[str], Solve | None]) -> dict[str, Codes]:
    """Solve again for the weights that a plan says were solved for.

    Args:
        plan: To be followed.
        solve: The way to do it, by its name; None where there are no samples.

    Raises:
        PlanError: There are no samples to solve with.
    """
    found: dict[str, Codes] = {}
    for method in SOLVED:
        wanted = {name for name, tensor in plan.tensors.items() if tensor.method == method}
        if not wanted:
            continue
        way = solve(method)
        if way is None:
            raise PlanError(
                f"--plan: it has weights of method {method}: give --calib to solve for them"
            )
        # where codes are learned in the order of the graph, those of all weights count
        among = {n: t for n, t in weights_of(plan).items() if method != "gptq" or n in wanted}
        solved = way(among, nodes_of(plan))
        found |= {name: rounded.codes for name, rounded in solved.items() if name in wanted}
    return found


def marked(
    plan: Plan, grids: Mapping[str, TensorPlan], solved: Mapping[str, Rounded], method: str
) -> tuple[Plan, dict[str, Codes]]:
    """Note in the plan which weights were solved for; not those whose grid has changed since."""
    tensors = dict(plan.tensors)
    codes: dict[str, Codes] = {}
    for name, rounded in solved.items():
        if name in tensors and tensors[name].scale == grids[name].scale:
            errors = {"plain": rounded.plain**0.5, method: rounded.solved**0.5}
            update = {"method": method, "errors": {k: short(v) for k, v in errors.items()}}
            tensors[name] = tensors[name].model_copy(update=update)
            codes[name] = rounded.codes
    return plan.model_copy(update={"tensors": tensors}), codes


def short(value: float) -> float:
    """Return a figure as plans have it: four digits."""
    return float(f"{value:.4g}")
