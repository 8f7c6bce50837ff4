"""Copies of a graph that hand out what calibration looks at, and compute nothing else."""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qcompile.errors import StatisticsError

RANGE_OUTPUTS = (
    ("low", "ReduceMin"),
    ("high", "ReduceMax"),
    ("sum", "ReduceSum"),
    ("size", "Size"),
)
"""What ``ranged`` computes of each tensor. Only the sum carries a NaN through."""


def output_name(index: int, what: str) -> str:
    """Return the name of ``ranged``'s output for the tensor at ``index``."""
    return f"qcompile.range.{index}.{what}"


def tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy whose outputs are the named tensors.

    Raises:
        StatisticsError: A name is no tensor of the main graph.
    """
    copy = model.clone()
    return _with_outputs(copy, _found(copy, names))


def ranged(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy whose outputs are four scalars for each named tensor: ``RANGE_OUTPUTS``.

    The tensors stay inside the runtime, which frees each one after its last reader.

    Raises:
        StatisticsError: A name is no tensor of the main graph.
    """
    copy = model.clone()
    outputs = []
    for index, value in enumerate(_found(copy, names)):
        nodes = [_scalar(value, op, output_name(index, what)) for what, op in RANGE_OUTPUTS]
        # straight behind the tensor, which can then be freed before the next one is computed
        if (producer := value.producer()) is not None:
            copy.graph.insert_after(producer, nodes)
        elif len(copy.graph):
            copy.graph.insert_before(copy.graph[0], nodes)
        else:
            copy.graph.extend(nodes)
        outputs += [node.outputs[0] for node in nodes]
    return _with_outputs(copy, outputs)


def _scalar(value: ir.Value, op: str, name: str) -> ir.Node:
    size = op == "Size"
    result = ir.Value(
        name=name,
        shape=ir.Shape([]),
        type=ir.TensorType(ir.DataType.INT64) if size else value.type,
    )
    attributes = {} if size else {"keepdims": 0}
    return ir.node(op, [value], attributes, outputs=[result], name=name)


def _found(model: ir.Model, names: Sequence[str]) -> list[ir.Value]:
    graph = model.graph
    values = {value.name: value for value in graph.inputs}
    values |= {value.name: value for node in graph for value in node.outputs if value.name}
    for name in names:
        if name not in values:
            raise StatisticsError(f"{name!r} is no activation of the model's main graph")
        dtype = values[name].dtype
        if dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16}:
            raise StatisticsError(f"{name!r} is {dtype}; only float tensors have statistics")
    return [values[name] for name in names]


def _with_outputs(model: ir.Model, outputs: Sequence[ir.Value]) -> ir.Model:
    model.graph.outputs[:] = list(outputs)
    RemoveUnusedNodesPass()(model)
    return model
