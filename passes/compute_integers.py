"""Computes the small integer constants that exporters leave as nodes: paddings, target shapes."""

import math

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import add_constant, bypass, remove_dead
from qcompile.graph.walk import constant, is_op
from qcompile.runtime.ort import Session

_OPERATORS = (
    "Concat",
    "ConstantOfShape",
    "Gather",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_TYPE = ir.DataType.INT64
_MOST_ELEMENTS = 1 << 10


def compute_integers(model: ir.Model) -> bool:
    """Replace nodes of the main graph that only move small integer constants by what they give.

    The values are ONNX Runtime's. Larger operands, other operators and nodes that make a graph
    output are left.

    Args:
        model: Changed in place; results keep their names.

    Returns:
        Whether there was one.
    """
    modified = False
    # a wave at a time: the sizes of its results are bounded by its operands, which are known
    while wave := [node for node in model.graph if _is_known(node)]:
        _replace(model, wave)
        modified = True
    return modified


def _is_known(node: ir.Node) -> bool:
    result = node.outputs[0]
    if not is_op(node, *_OPERATORS) or result.is_graph_output() or result.dtype != _TYPE:
        return False
    operands = [constant(v, _MOST_ELEMENTS) for v in node.inputs if v is not None]
    if any(array is None or array.dtype != _TYPE.numpy() for array in operands):
        return False
    if node.op_type == "ConstantOfShape":
        shape = operands[0]
        return shape is not None and 0 <= math.prod(shape.tolist()) <= _MOST_ELEMENTS
    return True


def _replace(model: ir.Model, nodes: list[ir.Node]) -> None:
    results = Session(_apart(model, nodes), optimize=False).run({})
    for node in nodes:
        old = node.outputs[0]
        name, old.name = str(old.name), None
        bypass(old, add_constant(model.graph, name, np.asarray(results[name])))
        remove_dead([node])


def _apart(model: ir.Model, nodes: list[ir.Node]) -> ir.Model:
    """Return a model of these nodes alone; all that they read is constant."""
    constants: dict[ir.Value, ir.Value] = {}
    for value in (v for node in nodes for v in node.inputs if v is not None):
        tensor = ir.convenience.get_const_tensor(value)
        constants[value] = ir.Value(name=value.name, type=value.type, const_value=tensor)
    copies = [
        ir.node(
            node.op_type,
            [None if value is None else constants[value] for value in node.inputs],
            node.attributes,
            outputs=[ir.Value(name=node.outputs[0].name, type=ir.TensorType(_TYPE))],
        )
        for node in nodes
    ]
    graph = ir.Graph(
        [],
        [node.outputs[0] for node in copies],
        nodes=copies,
        initializers=list(constants.values()),
        opset_imports=model.opset_imports,
        name="constants",
    )
    return ir.Model(graph, ir_version=model.ir_version)
