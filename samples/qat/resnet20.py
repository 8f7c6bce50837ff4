"""ResNet-20 for CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2), as a torch module.

Its weights are read from an ONNX file whose batch norms are folded already, so that convolutions
have a bias and no norm follows them. Shortcuts that change size take every second pixel and append
channels of zeros: option A of the paper, without weights.
"""

import itertools
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from onnx import numpy_helper
from torch import nn


class Block(nn.Module):
    """Two convolutions and what skips them."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if before == channels else 2
        self.first = nn.Conv2d(before, channels, 3, self.stride, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.added = (channels - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, before, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        y = self.second(F.relu(self.first(x)))
        if self.added:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """Nine blocks of 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in itertools.pairwise(sizes)))
        self.classes = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pictures ``(N, 3, 32, 32)`` to logits ``(N, 10)``."""
        x = self.blocks(F.relu(self.stem(x)))
        return self.classes(F.avg_pool2d(x, 8).flatten(1))


def load(path: Path) -> ResNet20:
    """Return the network with the weights of an ONNX file, taken in the order of its nodes."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [node.input for node in graph.node if node.op_type in ("Conv", "Gemm")]
    model = ResNet20().eval()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, (_, weight, bias) in zip(layers, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(tensors[weight].copy()))
            layer.bias.copy_(torch.from_numpy(tensors[bias].copy()))
    return model


def pictures(path: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures, normalized, ``(N, 3, 32, 32)``, and their classes, ``(N,)``."""
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    with np.load(path, allow_pickle=False) as data:
        pixels, labels = data[f"{split}_x"], data[f"{split}_y"]
    normal = (pixels.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(normal.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels).long()
