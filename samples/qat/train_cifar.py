"""Trains ResNet-20 on 512 pictures of CIFAR-10 for an engine of few bits; writes QDQ ONNX.

usage: python train_cifar.py ASSETS OUTPUT [--weights 4] [--activations 4] [--epochs 4]

No label is used: the rounded network learns to answer as the float one does, on pictures that are
flipped and shifted at random.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import resnet20
import torch
from torch.nn.functional import pad

from qcompile import Recipe, qat
from qcompile.progress import Progress

CALIBRATED_ON = 256


@dataclass(frozen=True)
class Outcome:
    """Shares of the test pictures that are classified rightly, and the trained model.

    Attributes:
        float_score: Of the float network.
        start: Of the rounded one before training: what calibration alone gives.
        trained: After it.
        model: As ``qat.prepare`` gave it, trained.
        losses: Of each step.
    """

    float_score: float
    start: float
    trained: float
    model: qat.Trainable
    losses: list[float]


def flipped_and_shifted(batch: qat.Inputs, generator: torch.Generator) -> qat.Inputs:
    """Mirror every second picture, and move each by up to 4 pixels."""
    (pictures,) = batch
    mirrored = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    wide = pad(torch.where(mirrored, pictures.flip(3), pictures), (4, 4, 4, 4))
    places = torch.randint(0, 9, (len(pictures), 2), generator=generator).tolist()
    cut = [one[:, y : y + 32, x : x + 32] for one, (y, x) in zip(wide, places, strict=True)]
    return (torch.stack(cut),)


def score(model: torch.nn.Module, pictures: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the share of pictures that are classified rightly."""
    with torch.no_grad():
        parts = zip(pictures.split(250), classes.split(250), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    return right / len(classes)


def train(
    assets: Path, recipe: Recipe, rounding: qat.Rounding, training: qat.Training, progress: Progress
) -> Outcome:
    """Prepare the network, train it, and score it before and after."""
    network = resnet20.load(assets / "models" / "resnet20_cifar10.onnx")
    data = assets / "data" / "cifar10_dev.npz"
    seen, _ = resnet20.pictures(data, "calib")
    test = resnet20.pictures(data, "eval")
    model = qat.prepare(
        network,
        (seen[:2],),
        recipe,
        calibration=seen[:CALIBRATED_ON].split(32),
        rounding=rounding,
        progress=progress,
    )
    start = score(model.eval(), *test)
    samples = [(picture,) for picture in seen.split(1)]
    done = qat.distill(
        model, network, samples, training, augment=flipped_and_shifted, progress=progress
    )
    return Outcome(score(network, *test), start, score(model, *test), model, done.losses)


class Printed:
    """Prints notices, and how far training is."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Print every sixteenth step."""
        if stage == "train" and done % 16 == 0:
            print(f"step {done} of {total}", flush=True)

    def notice(self, message: str) -> None:
        """Print it."""
        print(message)

    announce = notice


def main() -> Outcome:
    """Train, print the scores, write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", type=int, choices=(4, 8), default=4)
    parser.add_argument("--activations", type=int, choices=(4, 8), default=4)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    rounding = qat.Rounding(options.weights, options.activations, learned=True)
    training = qat.Training(epochs=options.epochs)
    found = train(options.assets, Recipe(), rounding, training, Printed())
    print(f"float {found.float_score:.4f}, calibrated {found.start:.4f}, ", end="")
    print(f"trained {found.trained:.4f}")
    print(f"wrote {qat.convert(found.model, options.output)}")
    return found


if __name__ == "__main__":
    main()
