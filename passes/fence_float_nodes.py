"""Keeps ONNX Runtime from quantizing, at load time, what the plan leaves in float."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, is_op
from qcompile.numerics.grids import symmetric_scales

CODE_HIGH = 2**30

MOVING = ("MaxPool", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Flatten")
"""What a DequantizeLinear is moved behind."""


@dataclass(frozen=True, kw_only=True)
class FenceFloatNodes(GraphPass):
    """Store the bias of a float node behind codes as int32, which ONNX Runtime does not touch.

    Before: ``Conv(DequantizeLinear(x), W, b)``, W and b float.
    After:  the same with ``b = DequantizeLinear(int32 codes)``; a node without bias gets zeros.

    ONNX Runtime's WeightBiasQuantization turns float weights of a Conv, ConvTranspose or Gemm
    behind a DequantizeLinear into per-tensor int8, silently (recent versions only where a
    QuantizeLinear follows); nodes between that only move data do not stop it, for QDQPropagation
    moves the DequantizeLinear behind them first. It leaves a node alone whose bias is no
    initializer, and never folds a DequantizeLinear. The codes use 31 bits: the bias moves by less
    than float32 rounding. Visits: the main graph.
    """

    name: ClassVar[str] = "fence-float-nodes"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find the float nodes between codes, then fence each."""
        names = Names(model)
        found = [node for node in model.graph if _is_exposed(node)]
        for node in found:
            _fence(model.graph, names, node)
        return bool(found)


def _is_exposed(node: ir.Node) -> bool:
    if not is_op(node, "Conv", "ConvTranspose", "Gemm"):
        return False
    data, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    while data is not None and is_op(mover := data.producer(), *MOVING):
        data = mover.inputs[0]
    dequantized = data is not None and is_op(data.producer(), "DequantizeLinear")
    if not dequantized or weight is None or not weight.is_initializer():
        return False
    return bias is None or bias.is_initializer()


def _fence(graph: ir.Graph, names: Names, node: ir.Node) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    values = constant(bias) if bias is not None else None
    if values is None:
        values = np.zeros(_channels(node), np.float32)
    scale = symmetric_scales(values, None, CODE_HIGH)[0]
    codes = np.rint(values.astype(np.float64) / scale).astype(np.int32)
    dequantize = ir.node(
        "DequantizeLinear",
        [
            add_constant(graph, names.fresh(node, "bias.codes"), codes),
            add_constant(graph, names.fresh(node, "bias.scale"), np.asarray(scale, np.float32)),
        ],
        name=names.fresh(node, "bias.DequantizeLinear"),
    )
    real = dequantize.outputs[0]
    real.name = names.fresh(node, "bias")
    real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(values.shape)
    graph.insert_before(node, dequantize)
    if len(node.inputs) > 2:
        node.replace_input_with(2, real)
        if bias is not None and not bias.uses() and not bias.is_graph_output():
            graph.initializers.pop(bias.name or "", None)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, real)


def _channels(node: ir.Node) -> int:
    weight = node.inputs[1]
    assert weight is not None  # noqa: S101 - the pattern has one
    assert weight.const_value is not None  # noqa: S101
    shape = weight.const_value.shape.numpy()
    if node.op_type == "Conv":
        return int(shape[0])
    if node.op_type == "ConvTranspose":
        return int(shape[1]) * node.attributes.get_int("group", 1)
    return int(shape[0 if node.attributes.get_int("transB", 0) else 1])
