"""Training as one step of a build: what ``qcompile build module:callable --qat DATA`` calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qcompile.errors import DataError, RecipeError
from qcompile.progress import Progress
from qcompile.qat.conversion import convert
from qcompile.qat.distillation import Training, distill
from qcompile.qat.exported import Inputs
from qcompile.qat.options import Rounding
from qcompile.qat.preparation import prepare
from qcompile.recipe import Recipe
from qcompile.samples import Samples, content_order
from qcompile.source.torch_export import TorchModel

PAST = "past_key_values."
"""Names of a decoder's keys and values begin so."""

CALIBRATED_ON = 64
"""Samples that ranges begin with, taken in content order."""


@dataclass(frozen=True)
class Trained:
    """A trained model on disk, and how it came to be.

    Attributes:
        path: QDQ ONNX, which ``build`` takes.
        losses: Of each step: squared error at the outputs over their power.
        resumed: Epochs that an earlier, stopped run had done.
    """

    path: Path
    losses: list[float]
    resumed: int


@dataclass(frozen=True)
class _InOrder(Sequence[Inputs]):
    """Samples as tuples of tensors, by content, so that the order of files does not matter.

    Attributes:
        samples: With one array for each input of the module.
        order: Of the samples.
        inputs: Their names, in the module's order.
    """

    samples: Samples
    order: list[int]
    inputs: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Inputs:  # type: ignore[override]
        feeds = self.samples[self.order[index]]
        return tuple(torch.from_numpy(np.array(feeds[name])) for name in self.inputs)


class _Positional(nn.Module):
    """A module that takes the tensors it was traced on, one by one.

    All else that its ``forward`` takes, by name or in lists and dicts, is as it was when traced.
    """

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.model, self.traced = model.module, model.inputs

    def forward(self, *tensors: torch.Tensor) -> Any:  # noqa: ANN401 (what the module returns)
        """Run the module."""
        inputs = self.traced.replaced(dict(zip(self.traced.tensors(), tensors, strict=True)))
        return self.model(*inputs.args, **inputs.kwargs)


def train(  # noqa: PLR0913 (the command's options)
    model: TorchModel,
    samples: Samples,
    path: Path,
    recipe: Recipe,
    *,
    training: Training,
    rounding: Rounding,
    checkpoints: Path,
    progress: Progress,
) -> Trained:
    """Prepare a module, train it to answer as it did in float, and write it as QDQ ONNX.

    Args:
        model: The float module and what it was traced on; it is not changed.
        samples: One array for each input, with the batch axis.
        path: The ``.onnx`` file to write.
        recipe: Of the build.
        training: How long, how fast.
        rounding: Bits, and whether scales are learned.
        checkpoints: Folder that a stopped run goes on from.
        progress: Hears of steps and notices.

    Raises:
        QcompileError: As ``prepare``, ``distill`` and ``convert``.
        RecipeError: The model is a decoder with a past.
    """
    names = tuple(model.inputs.tensors())
    if any(name.startswith(PAST) for name in names):
        raise RecipeError(
            f"--qat: {model.name} is a decoder, whose past is empty in training; its weights go to "
            "4 bits without training: --int4"
        )
    if not len(samples):
        raise DataError("--qat: there are no samples to train on")
    ordered = _InOrder(samples, content_order(samples), names)
    first = [ordered[index] for index in range(min(CALIBRATED_ON, len(ordered)))]
    example = tuple(torch.cat([value, value]) for value in first[0])
    given = model.inputs
    plain = not given.kwargs and all(isinstance(value, torch.Tensor) for value in given.args)
    module = model.module if plain else _Positional(model)
    rounded = prepare(
        module,
        example,
        recipe,
        calibration=first,
        rounding=rounding,
        open_axes=[{0, *model.axes.get(name, ())} for name in names],
        progress=progress,
    )
    done = distill(rounded, module, ordered, training, checkpoints=checkpoints, progress=progress)
    return Trained(convert(rounded, path), done.losses, done.resumed)
