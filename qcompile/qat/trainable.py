"""The model that is trained: the exported graph with rounding in it."""

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from qcompile.qat import batch_norm
from qcompile.qat.fake_quant import FakeQuant
from qcompile.qat.libraries import quiet
from qcompile.qat.plan import Goal, Grid


@dataclass(frozen=True)
class Blueprint:
    """What ``convert`` needs beside the trained tensors; copies of a model share it.

    Attributes:
        program: The float module, exported; its tensors are overwritten by the trained ones.
        goal: What is trained for.
        grids: Where the grids of activations began.
        activations: Names of the tensors that are rounded, in the graph's order.
    """

    program: ExportedProgram
    goal: Goal
    grids: dict[str, Grid]
    activations: tuple[str, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Trainable(nn.Module):
    """A model to train as usual: parameters, buffers, ``train`` and ``eval`` work as in any other.

    Attributes:
        graph: The exported graph, with fake quantizers where the engine rounds.
        blueprint: For ``convert``.
        norms_frozen: Batch norms use their running statistics in training, too.
    """

    def __init__(self, graph: GraphModule, blueprint: Blueprint) -> None:
        super().__init__()
        self.graph, self.blueprint = graph, blueprint
        self.norms_frozen = False
        self.train()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = memo[id(self)] = type(self).__new__(type(self))
        with quiet():
            made.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return made

    def forward(self, *inputs: torch.Tensor) -> Any:  # noqa: ANN401 (what the module returns)
        """Run the model, rounding as the engine will."""
        return self.graph(*inputs)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (as nn.Module has it)
        """Switch batch norms and dropouts to training or evaluation."""
        self.training = mode
        batch_norm.set_training(self.graph, norms=mode and not self.norms_frozen, dropouts=mode)
        return self

    def freeze_batch_norm(self) -> None:
        """Let batch norms keep their running statistics from here on.

        Late in training, so that the last epochs see the scales of the engine: its weights hold
        the running statistics (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
        """
        self.norms_frozen = True
        self.train(self.training)

    def fake_quants(self) -> dict[str, FakeQuant]:
        """Return the fake quantizers by ONNX name: of the tensor, or of a weight's node."""
        found = (module for module in self.graph.modules() if isinstance(module, FakeQuant))
        return {module.tensor: module for module in found}
