"""Which node of a graph a kernel stands for that ONNX Runtime has made of it, or of several."""

import re
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from qcompile.graph.walk import only_consumer

_FUSION = re.compile(r"(/\w*Fusion/)+$")
_LAYOUT = "_nchwc"
_FUSED = "fused "
_FARTHEST = 4
"""Nodes between a convolution and the value that a kernel fused with them makes."""


def owners(graph: ir.Graph, kernels: Sequence[tuple[str, str]]) -> list[str]:
    """Return the node that each kernel stands for; empty for conversions and layouts.

    Most kernels keep their node's name. Fusions add to it, and a convolution in another layout is
    called by the value that it makes: the last one of those that were fused into it.

    Args:
        graph: With unique names.
        kernels: Name and operator of each.
    """
    nodes = {node.name or "": node for node in graph}
    makers = {out.name or "": node for node in graph for out in node.outputs}
    labels = {name for name, _ in kernels}
    found = []
    for name, op in kernels:
        plain = _FUSION.sub("", name).removeprefix(_FUSED)
        made = makers.get(name.removesuffix(_LAYOUT)) if name.endswith(_LAYOUT) else None
        owner = nodes.get(plain) or nodes.get(plain.rpartition(".")[0])
        if owner is None and made is not None:
            owner = _computing(made, op, labels)
        found.append(owner.name or "" if owner is not None else "")
    return found


def _computing(node: ir.Node, op: str, labels: Iterable[str]) -> ir.Node | None:
    """Return the node of that operator which those up to this one were fused into."""
    front = [node]
    for _ in range(_FARTHEST):
        for candidate in front:
            if candidate.op_type == op:
                return candidate
        before = (v for n in front for v in n.inputs if v is not None)
        alone = [v for v in before if only_consumer(v) is not None]
        hidden = [v for v in alone if f"{v.name}{_LAYOUT}" not in labels]
        front = [maker for v in hidden if (maker := v.producer()) is not None]
    return None
