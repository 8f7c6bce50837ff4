"""Which nodes treat each row of a tensor alike, a row being what the last axis holds."""

import onnx_ir as ir

from qcompile.graph.walk import is_constant

Region = dict[ir.Node, list[int]]
"""Nodes in graph order, each with the indices of the inputs that hold its rows."""

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_UNARY = frozenset(
    {"Relu", "LeakyRelu", "Elu", "Gelu", "QuickGelu", "Tanh", "Sigmoid", "HardSwish", "Erf"}
)
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


def row_regions(graph: ir.Graph) -> list[Region]:
    """Return the row-wise nodes, grouped: nodes that share a value of rows are one region.

    All values of a region have the same sizes but for their last axis.
    """
    rows = {node: indices for node in graph if (indices := row_inputs(node))}
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in rows:
        for value in _row_values(node, rows):
            readers.setdefault(value, []).append(node)
    regions: list[Region] = []
    seen: set[ir.Node] = set()
    for start in rows:
        front, members = [start], set[ir.Node]()
        while front:
            node = front.pop()
            if node not in seen:
                seen.add(node)
                members.add(node)
                front += [near for v in _row_values(node, rows) for near in readers[v]]
        if members:
            regions.append({node: rows[node] for node in rows if node in members})
    return regions


def _row_values(node: ir.Node, rows: Region) -> list[ir.Value]:
    inputs = (node.inputs[index] for index in rows[node])
    return [*(v for v in inputs if v is not None), node.outputs[0]]


def row_inputs(node: ir.Node) -> list[int]:
    """Return which inputs of a row-wise node hold rows: none if it is not row-wise.

    A node counts if its values have three axes or more, the sizes of the last ones are known, and
    its other inputs are constants, the same for each row.
    """
    operator, result = node.op_type, node.outputs[0] if node.outputs else None
    if node.domain not in ("", "com.microsoft") or not _holds_rows(result):
        return []
    if operator in _UNARY:
        return [0] if _holds_rows(node.inputs[0]) else []
    if operator == "MatMul" and is_constant(node.inputs[1]):
        return [0] if _holds_rows(node.inputs[0]) and _rank(node.inputs[1]) == 2 else []
    if operator in _NORMS:
        return [0] if _normalizes_rows(node) else []
    if operator not in _ELEMENTWISE:
        return []
    moving = [i for i, v in enumerate(node.inputs) if not is_row_constant(v, result)]
    return moving if all(_same_shape(node.inputs[i], result) for i in moving) else []


def is_row_constant(value: ir.Value | None, result: ir.Value | None) -> bool:
    """Say whether a constant operand of an element-wise node is the same for each row."""
    if value is None or result is None or value.shape is None or result.shape is None:
        return False
    fits = len(value.shape) <= len(result.shape)
    return fits and is_constant(value) and all(d == 1 for d in tuple(value.shape)[:-1])


def _holds_rows(value: ir.Value | None) -> bool:
    if value is None or value.shape is None or _rank(value) < 3 or is_constant(value):
        return False
    return isinstance(value.shape[-1], int) and all(d != 0 for d in value.shape)


def _normalizes_rows(node: ir.Node) -> bool:
    x, *parameters = node.inputs
    axis = node.attributes.get_int("axis", -1)
    alone = not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return (
        _holds_rows(x)
        and axis in {-1, _rank(x) - 1}
        and alone
        and all(_rank(v) == 1 for v in parameters if v is not None)
    )


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None or value.shape is None else len(value.shape)


def _same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is None or b is None or a.shape is None or b.shape is None or is_constant(a):
        return False
    named = all(isinstance(d, int) or d.value is not None for d in a.shape)
    return named and tuple(a.shape) == tuple(b.shape)
