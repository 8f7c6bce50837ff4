"""From a float module to one that is trained with the engine's rounding in it."""

import copy
from collections.abc import Collection, Sequence

import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from qcompile.errors import ModelError
from qcompile.progress import Progress, Silent
from qcompile.qat.exported import Inputs, export_module, lower
from qcompile.qat.libraries import quiet
from qcompile.qat.options import Rounding
from qcompile.qat.plan import calibrated_grids, checked_batches, goal_of, select_nodes
from qcompile.qat.quantizer import TableQuantizer
from qcompile.qat.trainable import Blueprint, Trainable
from qcompile.recipe import Recipe


def prepare(  # noqa: PLR0913 (each is a choice of the user)
    model: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    recipe: Recipe | None = None,
    target: str | None = None,
    *,
    calibration: Sequence[Inputs | torch.Tensor] | None = None,
    rounding: Rounding | None = None,
    open_axes: Sequence[Collection[int]] | None = None,
    progress: Progress | None = None,
) -> Trainable:
    """Return a model to train as usual, which rounds where the target's engine will.

    The module itself is not changed. What rounds where comes from the target's table, by the same
    planner that ``build`` runs; ranges begin as ``build`` would calibrate them.

    Args:
        model: A float module that torch.export can trace.
        example_inputs: One tensor for each argument.
        recipe: As for ``build``, scheme int8; by default for ONNX Runtime on this CPU.
        target: Name of a target; by default the recipe's.
        calibration: Batches that ranges begin with: tensors, or tuples of them. By default the
            example inputs.
        rounding: Bits, and whether scales are trained, too; by default 8 bits, and not.
        open_axes: Of each example input, those whose size stays open; by default the first, where
            it is above 1.
        progress: Hears of steps and notices.

    Raises:
        ModelError: The module cannot be traced, or nothing of it becomes codes.
        RecipeError: The recipe asks for what training cannot aim at.
    """
    log = progress or Silent()
    recipe = recipe or Recipe()
    if target is not None:
        recipe = recipe.model_copy(update={"target": target})
    goal = goal_of(recipe, rounding or Rounding(), log)
    inputs = tuple(example_inputs)
    program = export_module(copy.deepcopy(model).eval(), inputs, open_axes)
    lowered = lower(program, goal.target.name, recipe.scheme)
    selection = select_nodes(goal, lowered.model, log)
    if not selection.activations:
        raise ModelError(
            f"{type(model).__name__}: {goal.target.name} has no int8 kernel for anything in it"
        )
    batches = checked_batches(calibration, inputs, log)
    grids = calibrated_grids(goal, lowered, selection, batches, log)
    quantizer = TableQuantizer(goal, lowered, selection, grids)
    with quiet():
        graph = prepare_qat_pt2e(copy.deepcopy(program.module()), quantizer)
    for name in quantizer.places.missed:
        log.notice(f"{name} is rounded in the engine, not in training: no torch operator makes it")
    return Trainable(graph, Blueprint(program, goal, grids, tuple(selection.activations)))
