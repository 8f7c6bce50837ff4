"""The sample that trains ResNet-20, as a module."""

import sys

from tests.assets import ROOT

sys.path.append(str(ROOT / "samples" / "qat"))

import resnet20
import train_cifar

__all__ = ["resnet20", "train_cifar"]
