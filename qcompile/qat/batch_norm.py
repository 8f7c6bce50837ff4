"""Batch norms and dropouts of an exported graph: training, frozen, evaluating, with their numbers.

torchao trains a convolution with the batch norm behind it as one layer: the weight is scaled by the
running statistics, rounded, and the scale taken out again before the norm (Krishnamoorthi 2018,
arXiv:1806.08342, section 3.2.2). It writes that with epsilon 1e-5 and momentum 0.1 for every norm,
whatever the module had: here they are put right.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qcompile.qat.fake_quant import WeightFakeQuant

_NORM = torch.ops.aten.batch_norm.default
_DROPOUTS = (torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default)
_GAMMA, _MEAN, _VARIANCE, _TRAINING, _MOMENTUM, _EPSILON = 1, 3, 4, 5, 6, 7

LEAST_GAMMA = 1e-6
"""Small enough to change no output, large enough to divide by."""


@dataclass(frozen=True)
class Norm:
    """The numbers of one batch norm: as the module that was exported has them."""

    momentum: float
    epsilon: float


def norms_of(graph: torch.fx.Graph) -> dict[str, Norm]:
    """Return each batch norm's numbers, by the name of its running mean."""
    return {
        str(node.args[_MEAN].target): Norm(node.args[_MOMENTUM], node.args[_EPSILON])
        for node in _norms(graph)
    }


def restore(model: GraphModule, norms: dict[str, Norm]) -> None:
    """Put momentum and epsilon of each batch norm right after torchao has rewritten it.

    A channel that a norm multiplies by 0 gets ``LEAST_GAMMA``: torchao divides by it.
    """
    for node in _norms(model.graph):
        norm = norms[str(node.args[_MEAN].target)]
        gamma = constant_of(model, node.args[_GAMMA])
        gamma[gamma == 0] = LEAST_GAMMA
        _set_epsilon(node, norm.epsilon)
        node.update_arg(_MOMENTUM, norm.momentum)
    model.recompile()


def fold(model: GraphModule) -> None:
    """Fold each batch norm into the convolution that torchao fused it with.

    ``W' = s W`` and ``b' = s (b - mean) + shift`` with ``s = gamma / sqrt(variance + epsilon)``, in
    float32: the weight that is rounded is the one that was rounded in training. torchao's own
    folding has a fixed epsilon, and takes a second a layer.
    """
    for norm in list(_norms(model.graph)):
        before = norm.args[0]
        bias = None
        if before.target is torch.ops.aten.add.Tensor:
            before, bias = before.args[0], before.args[1]
        if before.target is torch.ops.aten.div.Tensor and _is_convolution(before.args[0]):
            _fold(model, norm, before.args[0], bias)
    model.graph.eliminate_dead_code()
    model.recompile()


def _fold(model: GraphModule, norm: Node, convolution: Node, bias: Node | None) -> None:
    rounded = convolution.args[1]
    scaled = rounded.args[0] if rounded.op == "call_module" else rounded
    gamma, shift, mean, variance = (constant_of(model, node) for node in norm.args[1:5])
    scale = gamma / torch.sqrt(variance + norm.args[_EPSILON])
    start = torch.zeros_like(mean) if bias is None else constant_of(model, bias).flatten()
    values = {"weight": constant_of(model, scaled), "bias": scale * (start - mean) + shift}
    if rounded.op == "call_module":
        rounding = model.get_submodule(str(rounded.target))
        if isinstance(rounding, WeightFakeQuant) and rounding.bias is not None:
            rounding(values["weight"])  # its scales are those of this weight
            values["bias"] = rounding.bias(values["bias"])
    for what, value in values.items():
        name = f"{convolution.name}_folded_{what}"
        model.register_buffer(name, value)
        with model.graph.inserting_before(rounded):
            node = model.graph.get_attr(name)
        if what == "bias":
            convolution.update_arg(2, node)
        elif rounded.op == "call_module":
            rounded.update_arg(0, node)
        else:
            convolution.update_arg(1, node)
    norm.replace_all_uses_with(convolution)


def constant_of(model: GraphModule, node: Node) -> torch.Tensor:
    """Return what a node computes from parameters alone: a weight, or one that a norm scales."""
    if node.op == "get_attr":
        found: Any = model
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found.detach()
    arguments = [constant_of(model, arg) if isinstance(arg, Node) else arg for arg in node.args]
    with torch.no_grad():
        return node.target(*arguments, **node.kwargs)


def _is_convolution(node: Node) -> bool:
    return str(node.target).startswith("aten.conv")


def set_training(model: GraphModule, *, norms: bool, dropouts: bool) -> None:
    """Let batch norms take the statistics of the batch, and dropouts drop, or not."""
    for node in _norms(model.graph):
        node.update_arg(_TRAINING, norms)
    for node in model.graph.nodes:
        if node.target in _DROPOUTS:
            node.update_arg(2, dropouts)
    model.recompile()


def _norms(graph: torch.fx.Graph) -> Iterator[Node]:
    return (node for node in graph.nodes if node.target is _NORM)


def _set_epsilon(norm: Node, epsilon: float) -> None:
    """Set epsilon of a norm, and where torchao scales the weight before it by the variance."""
    variance = norm.args[_VARIANCE]
    norm.update_arg(_EPSILON, epsilon)
    for user in list(variance.users):
        if user.target is torch.ops.aten.add.Tensor:
            user.update_arg(1, epsilon)
