"""Which nodes of a graph can compute in a half type, and why the others stay in float32."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qcompile.graph.halves import MOVES, SCALES, Half, Slots, half_slots, is_float32, newer_opset
from qcompile.graph.walk import constant, is_constant, is_op, release, subgraphs


class HalfNodes:
    """The nodes of the main graph, divided.

    Attributes:
        slots: Node that computes in the half type to the inputs and outputs that turn half.
        reasons: Node that stays in float32 to the reason. Nodes that only follow what is around
            them (see ``_follows``) are in neither where they stay.
    """

    def __init__(
        self, model: ir.Model, half: Half, kept: Mapping[str, str], *, float_ports: bool
    ) -> None:
        """Divide the nodes.

        Args:
            model: Values have types; it is not changed.
            half: The type asked for.
            kept: Node name to the reason to stay in float32.
            float_ports: Inputs and outputs of the graph are float32.
        """
        self.graph, self.half, self.float_ports = model.graph, half, float_ports
        self.slots: dict[ir.Node, Slots] = {}
        self.reasons: dict[ir.Node, str] = {}
        self._fits: dict[ir.Value, str] = {}
        opset = model.opset_imports.get("", 1)
        for node in model.graph:
            if not any(map(is_float32, (*node.inputs, *node.outputs))) or is_op(node, "Constant"):
                continue
            slots = half_slots(node, opset, half)
            if not slots and any(v is not None and v.dtype == half.dtype for v in _values(node)):
                continue  # computes in half already
            reason = kept.get(node.name or "") or self._why_float(node, slots, opset)
            if reason:
                self.reasons[node] = reason
            else:
                self.slots[node] = slots
        self._keep_readers()
        self._let_follow()

    def gives_half(self, value: ir.Value) -> bool:
        """Return whether a value that is no constant turns half where it is made."""
        node = value.producer()
        if node is None:
            return not self.float_ports and not value.is_initializer()
        return node in self.slots and value.index() in self.slots[node].outputs

    def wants_half(self, node: ir.Node, index: int) -> bool:
        """Return whether a reader takes an input as half."""
        return node in self.slots and index in self.slots[node].inputs

    def _why_float(self, node: ir.Node, slots: Slots, opset: int) -> str | None:
        if subgraphs(node):
            return f"{node.op_type} has bodies, which stay in float32"
        if any(v is not None and isinstance(v.type, ir.SequenceType) for v in _values(node)):
            return f"{node.op_type} makes or reads a sequence"
        if any(_is_foreign_output(v, self.graph) for v in node.outputs):
            return "a body returns its output"
        if not slots:
            return self._unknown(node, opset)
        problems = (self._problem(node, node.inputs[i], i) for i in sorted(slots.inputs))
        return next((text for text in problems if text), None) or self._fill_problem(node)

    def _unknown(self, node: ir.Node, opset: int) -> str:
        if node.domain:
            return f"{node.domain}::{node.op_type} is not known to take {self.half.name}"
        later = newer_opset(node.op_type, opset, self.half)
        hint = f"; opset {later} does" if later else ""
        return f"{node.op_type} of opset {opset} takes no {self.half.name}{hint}"

    def _problem(self, node: ir.Node, value: ir.Value | None, index: int) -> str:
        """Return what is wrong with a constant input in the half type, or nothing."""
        is_scale = SCALES.get(node.op_type) == index
        if value is None or not is_constant(value):
            return "its scale is computed" if is_scale and value is not None else ""
        if is_scale:
            return self._scale_problem(value)
        if value not in self._fits:
            array = constant(value)
            fits = array is None or self.half.fits(array)
            release(value.const_value)
            text = f"{value.name} holds numbers beyond {self.half.largest:g}"
            self._fits[value] = "" if fits else text
        return self._fits[value]

    def _scale_problem(self, value: ir.Value) -> str:
        array = constant(value)
        if array is None or self.half.is_exact(array):
            return ""
        if bool((array == 0).any()) or not self.half.fits(array):
            return f"scale {value.name} is outside the numbers of {self.half.name}"
        return f"scale {value.name} is not exact in {self.half.name}"

    def _fill_problem(self, node: ir.Node) -> str | None:
        if not is_op(node, "ConstantOfShape") or "value" not in node.attributes:
            return None
        fits = self.half.fits(node.attributes["value"].as_tensor().numpy())
        return None if fits else f"it fills with a number beyond {self.half.largest:g}"

    def _keep_readers(self) -> None:
        """Keep what reads a dequantized value whose scale stays in float32: no Cast in between."""
        waiting = [node for node in self.reasons if is_op(node, "DequantizeLinear")]
        reason = {node: self.reasons[node] for node in waiting}
        while waiting:
            node = waiting.pop()
            for use in (use for out in node.outputs for use in out.uses()):
                reader = use.node
                decides = _follows(reader) and not _moves(reader)
                if decides or not self.wants_half(reader, use.idx):
                    continue
                self.reasons[reader] = reason[reader] = reason[node]
                del self.slots[reader]
                if _moves(reader):
                    waiting.append(reader)

    def _let_follow(self) -> None:
        """Leave in float32 what would only be cast there and back.

        The largest set of followers such that each reads no value that is made in half, and has a
        reader in float32, or none at all. All readers of a dequantized value must be in float32,
        for a Cast behind it would hide the codes from a kernel.
        """
        slots = {node: self.slots.pop(node) for node in list(self.slots) if _follows(node)}
        while turned := [node for node in slots if not self._stays(node, slots)]:
            for node in turned:
                self.slots[node] = slots.pop(node)

    def _stays(self, node: ir.Node, slots: Mapping[ir.Node, Slots]) -> bool:
        for value in (node.inputs[i] for i in slots[node].inputs):
            if value is not None and not is_constant(value) and self.gives_half(value):
                return False
        results = [node.outputs[index] for index in slots[node].outputs]
        half = [self.wants_half(use.node, use.idx) for v in results for use in v.uses()]
        half += [not self.float_ports for v in results if v.is_graph_output()]
        every = is_op(node, "DequantizeLinear")
        return not half or not (any(half) if every else all(half))


def _follows(node: ir.Node) -> bool:
    """Return whether the node is as exact in either type, so that its neighbours decide."""
    decides = not any(map(is_float32, node.outputs))
    return decides or _moves(node) or is_op(node, "DequantizeLinear", "Cast", "ConstantOfShape")


def _moves(node: ir.Node) -> bool:
    return is_op(node, *MOVES)


def _values(node: ir.Node) -> Iterator[ir.Value | None]:
    yield from node.inputs
    yield from node.outputs


def _is_foreign_output(value: ir.Value, graph: ir.Graph) -> bool:
    return value.is_graph_output() and all(value is not output for output in graph.outputs)
