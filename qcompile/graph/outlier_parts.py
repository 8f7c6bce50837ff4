"""What a linear layer consists of once its outlier columns were split off (LLM.int8())."""

import onnx_ir as ir

from qcompile.graph.walk import only_consumer, producer


def outlier_parts(node: ir.Node) -> list[ir.Node]:
    """Return the float nodes around the regular product of a split layer, or none.

    Args:
        node: A MatMul or Gemm; ``passes/split_outliers.py`` shows what it looks like when split.

    Returns:
        The Mul before it, the Gather of the outlier columns, their product, the sum of both.
    """
    mask = producer(node.inputs[0], "Mul") if node.inputs else None
    total = only_consumer(node.outputs[0])
    if mask is None or total is None or total.op_type != "Add":
        return []
    product = producer(total.inputs[1], "MatMul")
    loud = producer(product.inputs[0], "Gather") if product is not None else None
    if product is None or loud is None or loud.inputs[0] is not mask.inputs[0]:
        return []
    return [mask, loud, product, total]
