"""Training as one step of a build: what ``qcompile build module:callable --qat DATA`` calls."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qcompile.errors import DataError
from qcompile.progress import Progress
from qcompile.qat.conversion import convert
from qcompile.qat.distillation import Training, distill
from qcompile.qat.exported import Inputs
from qcompile.qat.options import Rounding
from qcompile.qat.preparation import prepare
from qcompile.recipe import Recipe
from qcompile.samples import Samples, content_order

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
        samples: With one array for each argument of the module.
        order: Of the samples.
        arguments: Their names; samples that have other ones are taken as they are ordered.
    """

    samples: Samples
    order: list[int]
    arguments: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Inputs:  # type: ignore[override]
        feeds = self.samples[self.order[index]]
        names = self.arguments if set(feeds) == set(self.arguments) else tuple(feeds)
        return tuple(torch.from_numpy(np.array(feeds[name])) for name in names)


def train(  # noqa: PLR0913 (the command's options)
    module: nn.Module,
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
        module: The float module; it is not changed.
        samples: One array for each argument, under its name or in its place, with the batch axis.
        path: The ``.onnx`` file to write.
        recipe: Of the build.
        training: How long, how fast.
        rounding: Bits, and whether scales are learned.
        checkpoints: Folder that a stopped run goes on from.
        progress: Hears of steps and notices.

    Raises:
        QcompileError: As ``prepare``, ``distill`` and ``convert``.
    """
    if not len(samples):
        raise DataError("--qat: there are no samples to train on")
    arguments = tuple(inspect.signature(module.forward).parameters)
    ordered = _InOrder(samples, content_order(samples), arguments)
    first = [ordered[index] for index in range(min(CALIBRATED_ON, len(ordered)))]
    example = tuple(torch.cat([value, value]) for value in first[0])
    model = prepare(
        module, example, recipe, calibration=first, rounding=rounding, progress=progress
    )
    done = distill(model, module, ordered, training, checkpoints=checkpoints, progress=progress)
    return Trained(convert(model, path), done.losses, done.resumed)
