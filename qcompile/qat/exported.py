"""From a torch module to the graph that the target's table is applied to, by names that match.

The module is exported once. What is trained is the exported graph itself; what is planned is the
ONNX graph that torch makes of it, after the compiler's own passes. torch.export notes which node
each later node came from, so that an ONNX value leads back to the node that is trained.
"""

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

from qcompile.errors import ModelError
from qcompile.graph.protocol import Fact, GraphPass, check_order
from qcompile.graph.runner import run_passes
from qcompile.passes import CANONICAL, lowering
from qcompile.qat.libraries import quiet

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Lowered:
    """The ONNX graph of a module as the planner sees it.

    Attributes:
        model: After clean-up and lowering for the target.
        holds: What holds of it.
        origin: ONNX value name to the name of the exported node that computes it.
    """

    model: ir.Model
    holds: frozenset[Fact]
    origin: dict[str, str]


def export_module(
    model: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    open_axes: Sequence[Collection[int]] | None = None,
) -> ExportedProgram:
    """Export a module as it runs after training, with an open batch size where it has one.

    Args:
        model: Takes tensors by position.
        example_inputs: One for each argument.
        open_axes: Of each input; torch fixes those that the code fixes. By default the first one,
            where it is above 1.

    Raises:
        ModelError: torch.export cannot trace it; the message is the first line of torch's.
    """
    inputs = tuple(example_inputs)
    if not inputs or not all(isinstance(value, torch.Tensor) for value in inputs):
        raise ModelError("example_inputs: give one tensor for each argument of the module, a tuple")
    if open_axes is None:
        open_axes = [[0] if value.dim() and value.shape[0] > 1 else [] for value in inputs]
    shapes = [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in open_axes]
    try:
        bound = inspect.signature(model.forward).bind(*inputs).arguments
        left = iter(shapes)
        named = {  # what *arguments take is one entry
            name: tuple(next(left) for _ in value) if isinstance(value, tuple) else next(left)
            for name, value in bound.items()
        }
        with quiet():
            return torch.export.export(model, inputs, dynamic_shapes=named)
    except Exception as error:  # torch raises many kinds
        name = type(model).__name__
        raise ModelError(f"{name}: torch.export cannot trace it: {_first_line(error)}") from error


def lower(program: ExportedProgram, target: str, scheme: str) -> Lowered:
    """Make the graph that ``build`` would plan on for a target.

    Args:
        program: As ``export_module`` gives it.
        target: Name of the target.
        scheme: As in the recipe.

    Raises:
        ModelError: torch cannot write it as ONNX.
    """
    try:
        with quiet():
            exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # torch raises many kinds
        raise ModelError(f"torch.onnx cannot write the module: {_first_line(error)}") from error
    model = ir.from_proto(ir.to_proto(exported.model))
    passes: list[GraphPass] = [*CANONICAL, *lowering(target, scheme)]
    run_passes(model, passes)
    return Lowered(model, check_order(passes), _origins(exported.exported_program.graph))


def _origins(graph: torch.fx.Graph) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node.name] = node.name
        elif sources := node.meta.get("from_node"):
            found[node.name] = sources[0].name
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
