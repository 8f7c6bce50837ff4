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
        for what, op in RANGE_OUTPUTS:
            attributes = {} if op == "Size" else {"keepdims": 0}
            node = ir.node(op, [value], attributes, name=output_name(index, what))
            result = node.outputs[0]
            result.name = output_name(index, what)
            result.shape = ir.Shape([])
            result.type = ir.TensorType(ir.DataType.INT64) if op == "Size" else value.type
            outputs.append(result)
            copy.graph.append(node)
    return _with_outputs(copy, outputs)


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
