"""Which operators nobody defines: neither the ONNX standard nor the model itself."""

import onnx
import onnx_ir as ir

from qcompile.graph.walk import all_nodes


def unknown_operators(model: ir.Model) -> list[tuple[ir.Node, str, str]]:
    """Return node, domain and operator of each node that has no known definition.

    An operator counts as known if onnx has a schema for it at the imported opset, or the model
    brings it as a function. The others may still run: engines have operators of their own.
    """
    return [
        (node, node.domain, node.op_type)
        for node, _ in all_nodes(model)
        if node.op_identifier() not in model.functions and not _has_schema(node, model)
    ]


def _has_schema(node: ir.Node, model: ir.Model) -> bool:
    opset = model.opset_imports.get(node.domain)
    return opset is not None and onnx.defs.has(node.op_type, opset, node.domain)


def describe_unknown(unknown: list[tuple[ir.Node, str, str]], reason: str) -> str:
    """Return one line that names the operators an engine refused, and the engine's reason."""
    operators = sorted({f"{domain or 'ai.onnx'}.{op}" for _, domain, op in unknown})
    node = unknown[0][0].name or "(unnamed)"
    return (
        f"the model uses {', '.join(operators)} (first at node {node}), which is not a known ONNX "
        f"operator and which ONNX Runtime cannot run: {reason}"
    )
