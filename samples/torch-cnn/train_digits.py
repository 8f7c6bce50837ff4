"""Trains a small CNN on digits for TensorRT's int8, from float weights that are trained first.

usage: python train_digits.py DIGITS OUTPUT.onnx

DIGITS is the folder of the digits sample. Labels are used here: the prepared model is trained as
any other, by a loop that is yours.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qcompile import Recipe, qat


def network() -> nn.Module:
    """Return a CNN for pictures of 8 x 8 gray pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def read(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures ``(N, 1, 8, 8)`` and their classes ``(N,)``."""
    with np.load(file, allow_pickle=False) as data:
        return torch.from_numpy(data["image"]), torch.from_numpy(data["label"]).long()


def train(
    model: nn.Module, pictures: torch.Tensor, classes: torch.Tensor, rate: float, steps: int
) -> None:
    """Train on all pictures together; batch norms are frozen for the last third of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for step in range(steps):
        if 3 * step >= 2 * steps and isinstance(model, qat.Trainable):
            model.freeze_batch_norm()
        loss = cross_entropy(model(pictures), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def main(folder: Path, output: Path) -> None:
    """Train in float, then for int8; print how both classify pictures that neither saw."""
    torch.manual_seed(0)
    pictures, classes = read(folder / "eval.npz")
    seen, unseen = slice(0, 400), slice(400, None)
    model = network()
    train(model, pictures[seen], classes[seen], 3e-3, steps=50)
    recipe = Recipe(target="tensorrt", sm=(87,))
    example = (pictures[:2],)
    rounded = qat.prepare(model, example, recipe, calibration=[pictures[seen][:64]])
    train(rounded, pictures[seen], classes[seen], 1e-4, steps=15)
    for name, one in (("float", model), ("int8", rounded)):
        with torch.no_grad():
            right = one(pictures[unseen]).argmax(1) == classes[unseen]
        print(f"{name} {float(right.float().mean()):.4f}")
    print(f"wrote {qat.convert(rounded, output)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
