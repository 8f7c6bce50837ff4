"""What is rounded in training, and on which grids it begins: the target's table and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from qcompile.calibrate.collect import collect
from qcompile.devices import device_of, remainder_of, types_of
from qcompile.errors import RecipeError
from qcompile.numerics.grids import CODE_RANGE, affine_grid, rounded_scales, symmetric_grid
from qcompile.numerics.ranges import range_of
from qcompile.planning.activation_grids import activation_grid
from qcompile.planning.plan import Planner, activations_of, wishes_of
from qcompile.planning.select import Selection
from qcompile.planning.wishes import Wishes, with_ends
from qcompile.progress import Progress
from qcompile.qat.exported import Inputs, Lowered
from qcompile.qat.options import Rounding
from qcompile.recipe import Recipe
from qcompile.samples import InMemory
from qcompile.statistics import Statistics
from qcompile.targets import target_named
from qcompile.targets.target import Role, Target, Types


@dataclass(frozen=True)
class Goal:
    """What is trained for.

    Attributes:
        recipe: What the user asks for.
        target: With the rules of the device.
        device: What the engine runs on.
        types: Of 8-bit codes.
        rounding: Bits of weights and activations.
    """

    recipe: Recipe
    target: Target
    device: str
    types: Types
    rounding: Rounding


@dataclass(frozen=True)
class Grid:
    """Where the grid of one activation begins.

    Attributes:
        scale: Of one step.
        zero_point: The code of 0.0.
        codes: Lowest and highest.
    """

    scale: float
    zero_point: int
    codes: tuple[int, int]


def goal_of(recipe: Recipe, rounding: Rounding, progress: Progress) -> Goal:
    """Return what a recipe asks to train for.

    Raises:
        RecipeError: The target is unknown, or the recipe asks for what training cannot aim at.
    """
    target = target_named(recipe.target)
    device = device_of(recipe, target, progress)
    target = target.on(device)
    if recipe.scheme != "int8":
        raise RecipeError(f"training is for scheme int8, not {recipe.scheme}")
    whole = [rule.op for rule in target.static.values() if rule.per_tensor]
    if whole:
        raise RecipeError(
            f"--target {target.name}: weights of {', '.join(whole)} have one scale in all there; "
            "training is for one scale a channel"
        )
    types = types_of(recipe, target, device, remainder_of(recipe, target, device))
    assert types is not None  # noqa: S101 - scheme int8 has code types
    return Goal(recipe, target, device, types, rounding)


def planner_of(goal: Goal, model: ir.Model, statistics: Statistics, progress: Progress) -> Planner:
    """Return the compiler's planner for a graph."""
    recipe = goal.recipe
    return Planner(model, statistics, None, recipe, goal.target, goal.device, goal.types, progress)


def select_nodes(goal: Goal, model: ir.Model, progress: Progress) -> Selection:
    """Return what the table makes codes of: what is loud is left to training, not to float."""
    return planner_of(goal, model, Statistics({}, 0), progress).selected(wishes_of(goal.recipe))


def calibrated_grids(
    goal: Goal,
    lowered: Lowered,
    selection: Selection,
    batches: Sequence[Inputs],
    progress: Progress,
) -> dict[str, Grid]:
    """Return the grid of each activation that training begins with, tied ones included.

    Those of 8 bits are what a build would choose; those of 4 bits have the least squared error.

    Args:
        goal: What is trained for.
        lowered: The graph of the float model.
        selection: What becomes codes in it.
        batches: Inputs of the model, in the order of its arguments.
        progress: Hears of the steps.
    """
    model, recipe = lowered.model, goal.recipe
    names = [str(value.name) for value in model.graph.inputs]
    feeds = [
        dict(zip(names, (v.detach().cpu().numpy() for v in batch), strict=True))
        for batch in batches
    ]
    samples = InMemory(feeds)
    wanted = activations_of(selection)
    statistics = collect(model, samples, wanted, jobs=recipe.jobs or 1, progress=progress)
    few = narrow(goal, model, selection)
    planner = planner_of(goal, model, statistics, progress)
    found: dict[str, Grid] = {}
    for name, choice in planner.choose(selection, samples).items():
        if name in few:
            found[name] = _narrow_grid(name, statistics, goal.types)
        else:
            scale, zero = activation_grid(choice.low, choice.high, goal.types)
            found[name] = Grid(scale, zero, CODE_RANGE[goal.types.activation])
    return found | {name: found[source] for name, source in selection.tied.items()}


def narrow(goal: Goal, model: ir.Model, selection: Selection) -> frozenset[str]:
    """Return the activations of 4 bits: all but those that the first and last layers read."""
    if goal.rounding.activations == 8:
        return frozenset()
    read = {
        str(value.name)
        for node in model.graph
        if node.name in ends(goal, model)
        for value in node.inputs
        if value is not None
    }
    wide = {selection.tied.get(name, name) for name in read}
    names = selection.activations
    return frozenset(name for name in names if selection.tied.get(name, name) not in wide)


def ends(goal: Goal, model: ir.Model) -> frozenset[str]:
    """Return the first and last weighted nodes, which keep 8 bits."""
    rules = {op: rule for op, rule in goal.target.static.items() if rule.role is Role.WEIGHTED}
    return frozenset(with_ends(Wishes(first=True, last=True), model.graph, rules).nodes)


def weight_limit(goal: Goal, model: ir.Model, node: str) -> int:
    """Return the largest code of a node's weight."""
    if goal.rounding.weights == 4 and node not in ends(goal, model):
        return 7
    return 63 if goal.types.reduce_range else CODE_RANGE[goal.types.weight][1]


def _narrow_grid(name: str, statistics: Statistics, types: Types) -> Grid:
    symmetric = types.symmetric or types.activation == "int8"
    seen = statistics.tensors[name]
    low, high = range_of("mse", seen, symmetric=symmetric, levels=16)
    if not symmetric:
        return Grid(*affine_grid(low, high, 0, 15), (0, 15))
    scale, zero = symmetric_grid(low, high, 7)
    return Grid(float(rounded_scales(np.asarray(scale), types.scale)), zero, (-8, 7))


def checked_batches(
    batches: Sequence[Inputs | torch.Tensor] | None, example: Inputs, progress: Progress
) -> list[Inputs]:
    """Return the batches to calibrate with: tuples of tensors; the example where there is none."""
    if not batches:
        progress.notice("no calibration batches were given: ranges begin with the example inputs")
        return [example]
    return [(batch,) if isinstance(batch, torch.Tensor) else tuple(batch) for batch in batches]


def scales_of(grids: Mapping[str, Grid], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point of an activation as tensors of one element."""
    grid = grids[name]
    return torch.tensor([grid.scale]), torch.tensor([grid.zero_point], dtype=torch.int32)
