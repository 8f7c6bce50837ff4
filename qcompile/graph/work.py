"""How much a node computes."""

import math

import onnx_ir as ir

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def multiply_adds(node: ir.Node) -> float:
    """Estimate the multiply-adds of a Conv, ConvTranspose, MatMul or Gemm with constant weights.

    Each weight is used once for each position of the output (ConvTranspose: of the input);
    positions along a dynamic dimension count as one. Other nodes count as 0.
    """
    if node.op_type not in WEIGHTED or node.domain:
        return 0.0
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return 0.0
    value = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    dims = list(value.shape) if value is not None and value.shape is not None else []
    positions = dims[:-1] if node.op_type in ("MatMul", "Gemm") else dims[2:]
    return float(weight.const_value.size) * math.prod(d for d in positions if isinstance(d, int))
