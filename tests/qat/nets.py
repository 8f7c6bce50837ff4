"""Small networks: what people train, in a few layers."""

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, relu


class Residual(nn.Module):
    """Convolutions with batch norms (of another epsilon than torch's), an Add in place, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(16, eps=1e-3, momentum=0.03)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = relu(self.stem_norm(self.stem(x)), inplace=True)
        y = self.norm(self.conv(x))
        y += x
        return self.head(adaptive_avg_pool2d(relu(y), 1).flatten(1))


class Depthwise(nn.Module):
    """No batch norms, as where they are folded; clipped activations, dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 3, 2, 1),
            nn.ReLU6(inplace=True),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32),
            nn.ReLU6(inplace=True),
            nn.Conv2d(32, 64, 1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.layers(x))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(24, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 12)

    def forward(self, x):
        return self.head(self.norm(self.layer(self.embed(x))).mean(1))


SHAPES = {Residual: (4, 4, 16, 16), Depthwise: (4, 4, 16, 16), Encoder: (4, 16, 24)}


def lively(kind):
    """Return a network in which no number is one that fresh networks have, and its inputs."""
    torch.manual_seed(0)
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[0] = 0  # as pruned channels have it
    return net.eval(), torch.randn(SHAPES[kind])
