"""Types and shapes of a model as it is, also behind the Q/DQ nodes of other domains."""

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.lint.qdq import qdq_nodes, scale


def infer(model: ir.Model) -> None:
    """Write down the type and shape of every value, as far as onnx can tell.

    TensorRT reads the Q/DQ nodes of any domain as the standard operators, so they are inferred as
    such; afterwards the nodes are as before. Contradictions are left for the rules to find.
    """
    foreign = [node for node in qdq_nodes(model) if node.domain and scale(node)]
    spelled = [(node.domain, node.op_type) for node in foreign]
    for node in foreign:
        node.domain, node.op_type = "", _standard(node.op_type)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        for node, (domain, op_type) in zip(foreign, spelled, strict=True):
            node.domain, node.op_type = domain, op_type


def _standard(op_type: str) -> str:
    return "DequantizeLinear" if "Dequantize" in op_type else "QuantizeLinear"
