"""Rules L17, L24 and L35: what a version's parser knows, and what a device computes with."""

from collections.abc import Iterator

import onnx_ir as ir

from qcompile.graph.walk import all_nodes
from qcompile.lint.operators import ABSENT, FEW_BITS, FUSED, INTEGER, RTX_ABSENT, RTX_ONLY
from qcompile.lint.qdq import code_type, label, qdq_nodes
from qcompile.lint.rule import Place, Rule, Setting, Severity

_OLDEST_OPSET, _NEWEST_OPSET = 9, 24
_FP4 = ir.DataType.FLOAT4E2M1
_LEAST_SM = {ir.DataType.INT4: 80, ir.DataType.FLOAT8E4M3FN: 89, _FP4: 100}
_NAMES = {ir.DataType.INT4: "INT4", ir.DataType.FLOAT8E4M3FN: "FP8", _FP4: "FP4"}
_BLOCKS = {"TRT_FP4DynamicQuantize": 16, "TRT_MXFP8DynamicQuantize": 32}


def _opset(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    version = model.opset_imports.get("", 1)
    if not _OLDEST_OPSET <= version <= _NEWEST_OPSET:
        yield Place(
            "graph",
            f"opset {version} lies outside {_OLDEST_OPSET} to {_NEWEST_OPSET}, which TensorRT's "
            "parser is documented for: export for one of these",
        )


def _no_importer(model: ir.Model, setting: Setting) -> Iterator[Place]:
    functions = {(function.domain, function.name) for function in model.functions.values()}
    for node, _ in all_nodes(model):
        why = _why_absent(node.op_type, setting)
        if why is not None and (node.domain, node.op_type) not in functions:
            yield Place(label(node), f"TensorRT's parser has no {node.op_type}: {why}")


def _why_absent(op_type: str, setting: Setting) -> str | None:
    if op_type in INTEGER:
        return "quantize in the QDQ format (QuantizeLinear, DequantizeLinear around float nodes)"
    if op_type in FEW_BITS:
        return "it needs a plugin; write INT4 weights as DequantizeLinear with blocks and a MatMul"
    if op_type in FUSED or (op_type in RTX_ONLY and setting.flavour == "tensorrt"):
        return "ONNX Runtime's optimizer fused it; take the model from before that"
    absent = op_type in ABSENT or (op_type in RTX_ABSENT and setting.flavour == "tensorrt-rtx")
    return (
        "write it in other operators, or give the parser a plugin of this name" if absent else None
    )


def _unknown_to_device(model: ir.Model, setting: Setting) -> Iterator[Place]:
    nodes: dict[ir.DataType, list[ir.Node]] = {}
    for node in qdq_nodes(model):
        kind = code_type(node)
        if kind in _LEAST_SM:
            nodes.setdefault(kind, []).append(node)
    for kind, found in nodes.items():
        least = _LEAST_SM[kind]
        lacking = [sm for sm in setting.sms if sm < least]
        if lacking:
            yield Place(
                label(found[0]),
                f"{_NAMES[kind]} ({len(found)} Q/DQ nodes) needs compute capability "
                f"{_dotted(least)} or newer, which {' and '.join(map(_dotted, lacking))} is not: "
                "quantize to INT8 for that device",
            )
    yield from _block_sizes(model)


def _dotted(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"


def _block_sizes(model: ir.Model) -> Iterator[Place]:
    for node, _ in all_nodes(model):
        wanted = _BLOCKS.get(node.op_type)
        size = node.attributes.get_int("block_size", wanted or 0)
        if wanted is not None and size != wanted:
            kind = "NVFP4" if wanted == 16 else "MXFP8"
            yield Place(
                label(node),
                f"{node.op_type} has blocks of {size}; {kind} has blocks of {wanted} only: set "
                f"block_size to {wanted}",
            )


L17 = Rule(
    "L17",
    f"the opset lies between {_OLDEST_OPSET} and {_NEWEST_OPSET}",
    Severity.WARNING,
    "onnx-tensorrt's operators.md for 10.15 and 11.1; not enforced: TensorRT-RTX 1.7.1 takes 27",
    _opset,
)
L24 = Rule(
    "L24",
    "every operator has an importer",
    Severity.ERROR,
    "onnx-tensorrt's operators.md for 10.15; experiment, TensorRT-RTX 1.7.1: supports_operator; "
    "MatMulNBits is said to be supported there, but needs a plugin",
    _no_importer,
)
L35 = Rule(
    "L35",
    "devices have the types of the codes, and dynamic FP4 and MXFP8 their blocks of 16 and 32",
    Severity.ERROR,
    "header NvInfer.h; documentation; experiment, TensorRT-RTX 1.7.1: 'contains HW-specific "
    "datatypes', for INT4 on 7.5, too; constant FP4 weights build there in blocks of any size, and "
    "MXFP8 ones with float activations",
    _unknown_to_device,
)

RULES = (L17, L24, L35)
