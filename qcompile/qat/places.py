"""Where a planned ONNX graph rounds, said of the exported torch graph that is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch.fx import Graph, Node

from qcompile.graph.walk import is_constant
from qcompile.planning.forms import value_name
from qcompile.planning.select import Selection
from qcompile.qat.exported import Lowered

TAG = "qcompile_name"
"""Key of a node's meta: the name that it was exported under; survives torchao's rewriting."""

_MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators that a rounding moves across without a change of any number."""

_ROWS = ".rows"
"""What ``flatten-tokens`` adds to a name: the same numbers, as a matrix."""

_WEIGHT_ARG: Mapping[object, tuple[int, int | None]] = {
    torch.ops.aten.conv1d.default: (1, 0),
    torch.ops.aten.conv2d.default: (1, 0),
    torch.ops.aten.conv3d.default: (1, 0),
    torch.ops.aten.conv2d.padding: (1, 0),
    torch.ops.aten.conv1d.padding: (1, 0),
    torch.ops.aten.linear.default: (1, 0),
    torch.ops.aten.addmm.default: (2, 1),
    torch.ops.aten.mm.default: (1, 1),
    torch.ops.aten.matmul.default: (1, None),
}
"""Operator to the argument that is its weight, and the weight's channel axis (None: the last)."""


@dataclass
class Places:
    """Where the torch graph rounds.

    Attributes:
        outputs: Node to the planned tensor that it makes: every reader takes the rounded value.
        edges: Node and reader to the planned tensor that the reader alone takes rounded.
        weights: Weighted node and its weight to the channel axis and the ONNX node's name.
        missed: Planned tensors that no torch node makes: rounded in the engine alone.
    """

    outputs: dict[Node, str] = field(default_factory=dict)
    edges: dict[tuple[Node, Node], str] = field(default_factory=dict)
    weights: dict[tuple[Node, Node], tuple[int, str]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)


def bias_of(node: Node) -> Node | None:
    """Return the bias of a weighted node, where it is a parameter."""
    index = 0 if node.target is torch.ops.aten.addmm.default else 2
    if node.target in (torch.ops.aten.mm.default, torch.ops.aten.matmul.default):
        return None
    bias = node.args[index] if len(node.args) > index else None
    return bias if isinstance(bias, Node) and bias.op == "get_attr" else None


def tag(graph: Graph) -> None:
    """Note the name of each node in its meta."""
    for node in graph.nodes:
        node.meta[TAG] = node.name


def find_places(lowered: Lowered, selection: Selection, graph: Graph) -> Places:
    """Carry a selection over to the torch graph.

    Args:
        lowered: The graph that was planned.
        selection: What becomes codes in it.
        graph: The exported graph, tagged before anything was rewritten.
    """
    return _Finder(lowered, selection, graph).find()


class _Finder:
    def __init__(self, lowered: Lowered, selection: Selection, graph: Graph) -> None:
        self.onnx, self.selection = lowered.model.graph, selection
        self.origin = lowered.origin
        self.nodes = {node.meta[TAG]: node for node in graph.nodes if TAG in node.meta}
        values = [*self.onnx.inputs, *(out for node in self.onnx for out in node.outputs)]
        self.values = {value_name(value): value for value in values}
        self.known = {node for v in values if (node := self._made_by(v)) is not None}
        self.places = Places()

    def find(self) -> Places:
        for name in self.selection.activations:
            self._activation(name)
        for node in self.onnx:
            if self.selection.is_int8(node):
                self._weight(node)
        return self.places

    def _activation(self, name: str) -> None:
        value = self.values[name]
        made = self._behind_moves(value)
        if made is None:
            self.places.missed.append(name)
            return
        if self.selection.hands_on(value.producer()):
            self.places.outputs.setdefault(made, name)
            return
        for use in value.uses():
            if self.selection.is_int8(use.node):
                for reader in self._readers(made, use.node):
                    self.places.edges.setdefault((made, reader), name)

    def _weight(self, node: ir.Node) -> None:
        constants = [value_name(v) for v in node.inputs if is_constant(v)]
        weights = [name for name in constants if name in self.selection.weights]
        if not weights:
            return
        end = self._ahead(node.outputs[0])
        found = None if end is None else self._weighted_behind(end)
        if self.selection.weights[weights[0]] is None or found is None:
            self.places.missed += weights
            return
        index, axis = _WEIGHT_ARG[found.target]
        weight = found.args[index]
        rank = len(weight.meta["val"].shape) if "val" in weight.meta else 2
        self.places.weights[found, weight] = (rank - 1 if axis is None else axis, str(node.name))

    # -- from ONNX values to torch nodes ----------------------------------------------------

    def _made_by(self, value: ir.Value) -> Node | None:
        name = value_name(value)
        found = self.origin.get(name) or self.origin.get(name.removesuffix(_ROWS), "")
        return self.nodes.get(found)

    def _behind_moves(self, value: ir.Value | None) -> Node | None:
        """Return the torch node that makes a value, or what it is moved from or to."""
        start = value
        while value is not None:
            if (node := self._made_by(value)) is not None:
                return node
            producer = value.producer()
            moved = producer is not None and producer.op_type in _MOVES
            value = producer.inputs[0] if producer is not None and moved else None
        return None if start is None else self._moved_on(start)

    def _moved_on(self, value: ir.Value) -> Node | None:
        """Return the torch node that makes what a value is moved to, if it is only moved."""
        while all(use.node.op_type in _MOVES for use in value.uses()) and len(value.uses()) == 1:
            value = next(iter(value.uses())).node.outputs[0]
            if (node := self._made_by(value)) is not None:
                return node
        return None

    def _ahead(self, value: ir.Value) -> Node | None:
        """Return the torch node that makes a value, or the first one behind it."""
        front = [value]
        while front:
            for one in front:
                if (node := self._made_by(one)) is not None:
                    return node
            front = [out for one in front for use in one.uses() for out in use.node.outputs]
        return None

    # -- in the torch graph ----------------------------------------------------------------

    def _readers(self, made: Node, reader: ir.Node) -> list[Node]:
        """Return the users of a torch node through which an ONNX reader takes its value."""
        ends = [self._ahead(out) for out in reader.outputs]
        found = [n for end in ends if end is not None for n in self._between(end)]
        return [node for node in dict.fromkeys(found) if made in node.all_input_nodes]

    def _weighted_behind(self, end: Node) -> Node | None:
        return next((node for node in self._between(end) if node.target in _WEIGHT_ARG), None)

    def _between(self, end: Node) -> Iterator[Node]:
        """Yield a node and those before it, up to what other ONNX values stand for."""
        front, seen = [end], {end}
        while front:
            node = front.pop(0)
            yield node
            for source in node.all_input_nodes:
                if source not in seen and source not in self.known:
                    seen.add(source)
                    front.append(source)
