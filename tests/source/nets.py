"""Functions that give torch modules, as users write them; a file of its own, for it is named."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10, bias=False)

    def forward(self, image):
        x = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return {"logits": self.head(x), "best": self.head(x).argmax(-1)}


class Nested(nn.Module):
    def forward(self, pair, *, scale=None, offset=0):
        first, second = pair
        scaled = first["a"] + second if scale is None else first["a"] * scale
        return scaled + offset, second


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Fixed(nn.Module):
    def forward(self, x):
        assert x.shape[0] == 2
        return x * 2


class Limited(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] > 4 else x


class Eigenvalues(nn.Module):
    def forward(self, x):
        y = x + 1
        return torch.linalg.eigvals(y)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def net():
    torch.manual_seed(0)
    return Net(), torch.randn(1, 1, 8, 8)


def bare():
    torch.manual_seed(0)
    return Net()


def wrong_shape():
    return Net(), torch.randn(1, 3, 8, 8)


def no_module():
    return {"weights": 3}


def failing():
    raise KeyError("weights.pt")


def branch():
    return Branch(), torch.randn(2, 3)


def fixed():
    return Fixed(), torch.randn(2, 3)


def limited():
    return Limited(), torch.randn(2, 3)


def eigenvalues():
    return Eigenvalues(), torch.randn(3, 3)


def counting():
    return Counting(), torch.ones(2, 3)
