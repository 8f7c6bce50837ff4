"""Node units: a node with the Q and DQ around it, which ONNX Runtime's providers take as one.

As in onnxruntime/core/optimizer/qdq_transformer/selectors_actions. A DequantizeLinear that several
nodes read counts for each of them: ONNX Runtime gives every unit its own before it looks.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.graph.walk import constant, consumers, is_op, only_consumer, producer, scalar
from qcompile.targets.execution_provider import UNITS, Unit

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class NodeUnit:
    """A node alone, or a node with its Q and DQ.

    Attributes:
        node: The node that computes.
        before: The DequantizeLinear of each input; None for inputs without.
        behind: The QuantizeLinear of each output; empty for a node alone.
        absorbed: A Relu or Clip between them that rounding makes redundant.
        broken: Why Q and DQ that are there do not make a unit; empty where there are none.
    """

    node: ir.Node
    before: tuple[ir.Node | None, ...] = ()
    behind: tuple[ir.Node, ...] = ()
    absorbed: ir.Node | None = None
    broken: str = ""

    @property
    def quantized(self) -> bool:
        """Whether Q and DQ belong to it."""
        return bool(self.behind)

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All its nodes, in the order of the graph."""
        absorbed = () if self.absorbed is None else (self.absorbed,)
        return (*(n for n in self.before if n is not None), self.node, *absorbed, *self.behind)

    @property
    def inputs(self) -> tuple[ir.Value | None, ...]:
        """What it reads, in the order of the node's inputs: codes where it reads codes."""
        if not self.quantized:
            return tuple(self.node.inputs)
        pairs = zip(self.node.inputs, self.before, strict=True)
        return tuple(value if node is None else node.inputs[0] for value, node in pairs)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """What it makes: codes where it makes codes."""
        makers = self.behind or (self.node,)
        return tuple(value for node in makers for value in node.outputs)


def node_units(model: ir.Model, *, quantized: bool = True) -> list[NodeUnit]:
    """Return the main graph as units, in its order; each node is in one, or is a shared DQ.

    Args:
        model: A graph with QDQ pairs, or without.
        quantized: Join Q and DQ with the nodes they stand around; else each node is alone.
    """
    if not quantized:
        return [NodeUnit(node) for node in model.graph]
    units = {node: _unit(node) for node in model.graph if node.op_type in UNITS}
    inside = {n for unit in units.values() if unit.quantized for n in unit.nodes}
    read = {n for n in inside if is_op(n, "DequantizeLinear") and not _all_inside(n, units)}
    return [
        units.get(node, NodeUnit(node))
        for node in model.graph
        if node not in inside or node in read or (node in units and units[node].quantized)
    ]


def grid(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the scales and zero points of a Q or DQ; None where they are not constant."""
    scale = constant(node.inputs[1])
    if scale is None:
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return scale, np.zeros_like(scale, dtype=np.int64)
    zero = constant(node.inputs[2])
    return None if zero is None else (scale, zero)


def code_type(node: ir.Node) -> str:
    """Return the type of the codes that a Q makes or a DQ reads, such as ``uint8``."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    for value in (zero, codes):
        if value is not None and value.dtype is not None:
            return value.dtype.name.lower()
    array = constant(zero)
    return "uint8" if array is None else str(array.dtype)


def same_grid(first: ir.Node, second: ir.Node) -> bool:
    """Return whether two Q or DQ have the same scales, zero points and type."""
    a, b = grid(first), grid(second)
    return (
        a is not None
        and b is not None
        and code_type(first) == code_type(second)
        and all(np.array_equal(x.reshape(-1), y.reshape(-1)) for x, y in zip(a, b, strict=True))
    )


def _all_inside(node: ir.Node, units: dict[ir.Node, NodeUnit]) -> bool:
    readers = [reader for reader, _ in consumers(node.outputs[0])]
    exported = node.outputs[0].is_graph_output()
    return not exported and all(r in units and units[r].quantized for r in readers)


def _unit(node: ir.Node) -> NodeUnit:
    before = tuple(producer(value, "DequantizeLinear") for value in node.inputs)
    if node.domain or not any(before):
        return NodeUnit(node)
    behind, absorbed = _behind(node)
    if not behind:
        return NodeUnit(node, broken="what it makes is not read by one QuantizeLinear alone")
    around = [n for n in (*before, *behind) if n is not None]
    if any(grid(n) is None for n in around):
        return NodeUnit(node, broken="scales are computed at run time")
    if fault := _fault(node, before, behind):
        return NodeUnit(node, broken=fault)
    return NodeUnit(node, before, behind, absorbed)


def _behind(node: ir.Node) -> tuple[tuple[ir.Node, ...], ir.Node | None]:
    """Return the QuantizeLinear of each output, and a redundant Relu or Clip before it."""
    found = [only_consumer(value) for value in node.outputs if value.name]
    quantizers = tuple(reader for reader in found if is_op(reader, "QuantizeLinear"))
    if len(quantizers) == len(found):
        return quantizers, None
    between = found[0] if len(found) == 1 else None
    if is_op(between, "Relu", "Clip") and between.inputs[0] is node.outputs[0]:
        reader = only_consumer(between.outputs[0])
        if is_op(reader, "QuantizeLinear") and _redundant(between, reader):
            return (reader,), between
    return (), None


def _redundant(node: ir.Node, quantizer: ir.Node) -> bool:
    """Return whether rounding cuts off all that a Relu or Clip would."""
    found = grid(quantizer)
    if found is None or found[0].size != 1:
        return False
    scale, zero = float(found[0].reshape(())), int(found[1].reshape(()))
    limits = np.iinfo(code_type(quantizer))
    low, high, *_ = [*node.inputs[1:3], None, None]
    if node.op_type == "Relu":
        return zero == limits.min
    bounds = [scalar(v) if v is not None else None for v in (low, high)]
    if any(v is not None and b is None for v, b in zip((low, high), bounds, strict=True)):
        return False
    bottom, top = bounds
    below = bottom is None or np.rint(bottom / scale) + zero <= limits.min
    return bool(below and (top is None or np.rint(top / scale) + zero >= limits.max))


def _fault(node: ir.Node, before: tuple[ir.Node | None, ...], behind: tuple[ir.Node, ...]) -> str:
    """Return why these Q and DQ do not make a unit with the node, or nothing."""
    form = UNITS[node.op_type]
    there = [n for n in before if n is not None]
    if form in (Unit.MOVED, Unit.UNARY) and (len(there) != 1 or before[0] is None):
        return "only its first input may be codes"
    if form is Unit.MOVED and not all(same_grid(there[0], n) for n in behind):
        return "its codes change their grid on the way"
    if form is Unit.WEIGHTED:
        return _weighted_fault(node, before, behind)
    if form is not Unit.UNARY and form is not Unit.MOVED and len(there) < len(node.inputs):
        return "not all that it reads is codes"
    if form is Unit.NORM:
        there, bias = there[:2], there[2:]
        if any(code_type(n) != "int32" for n in bias):
            return "its bias is not int32 codes"
    types = {code_type(n) for n in (*there, *behind)}
    return f"its codes are of several types: {', '.join(sorted(types))}" if len(types) > 1 else ""


def _weighted_fault(
    node: ir.Node, before: tuple[ir.Node | None, ...], behind: tuple[ir.Node, ...]
) -> str:
    data, weight, *rest = before
    if data is None or weight is None:
        return "its weight or what it multiplies is float"
    activation, made = code_type(data), code_type(behind[0])
    if activation != made:
        return f"it reads {activation} and makes {made}"
    if activation == "int8" and code_type(weight) != "int8":
        return "int8 activations with weights of another type"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    quantized = rest[0] if rest else None
    if bias is None or (quantized is not None and code_type(quantized) == "int32"):
        return ""
    floating = quantized is None and bias.dtype in _FLOATS and constant(bias) is not None
    return "" if floating else "its bias is neither int32 codes nor a float constant"
