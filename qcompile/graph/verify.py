"""Checks that must hold of every graph between two stages."""

import onnx
import onnx_ir as ir

from qcompile.errors import PassError
from qcompile.graph.slim import slim_proto
from qcompile.graph.walk import subgraphs

_UNKNOWN_OPERATOR = "No Op registered for"


def verify(model: ir.Model) -> None:
    """Check names, order and definitions, then onnx.checker with weights of large tensors left out.

    Raises:
        PassError: A value or node has no name, a name is taken twice, a node reads a value that is
            not defined before it, or the checker refuses the model.
    """
    _verify_scope(model.graph, set(), set(), set())
    problem = checker_problem(model)
    if problem:
        raise PassError(f"the graph is not valid ONNX: {problem}")


def checker_problem(model: ir.Model) -> str | None:
    """Return what onnx.checker has against the model, in one line, or None.

    Operators without a schema are no problem here: whether they run is up to the engine.
    """
    try:
        onnx.checker.check_model(slim_proto(model), full_check=False)
    except (onnx.checker.ValidationError, ValueError) as error:
        text = " ".join(str(error).split("\n\n==>")[0].split())
        return None if _UNKNOWN_OPERATOR in text else text
    return None


def _verify_scope(
    graph: ir.Graph, defined: set[ir.Value], names: set[str], node_names: set[str]
) -> None:
    defined, names = set(defined), set(names)
    for value in dict.fromkeys([*graph.inputs, *graph.initializers.values()]):
        _define(value, defined, names)
    for node in graph:
        if not node.name or node.name in node_names:
            raise PassError(f"node name {node.name!r} ({node.op_type}) is empty or taken twice")
        node_names.add(node.name)
        for source in node.inputs:
            if source is not None and source not in defined:
                raise PassError(f"node {node.name} reads {source.name} before it is defined")
        for inner in subgraphs(node):
            _verify_scope(inner, defined, names, node_names)
        for value in node.outputs:
            _define(value, defined, names)
    for value in graph.outputs:
        if value not in defined:
            raise PassError(f"graph output {value.name} is not defined")


def _define(value: ir.Value, defined: set[ir.Value], names: set[str]) -> None:
    if value.name is None or (value.name and value.name in names):
        raise PassError(f"value name {value.name!r} is missing or taken twice")
    defined.add(value)
    names.add(value.name)
