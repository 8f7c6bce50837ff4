"""Rules L16, L22, L23 and L25: which types may meet at a node, and from which opset on."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qcompile.graph.walk import all_nodes, consumers
from qcompile.lint.qdq import (
    CODES,
    Form,
    code_type,
    constants,
    data,
    dtype,
    form,
    is_dequantize,
    is_quantize,
    label,
    opset_of,
    qdq_nodes,
    real_type,
    scale,
    spelled,
)
from qcompile.lint.rule import Place, Rule, Setting, Severity

_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

# Inputs that must have one type, None for all. BatchNormalization, Clip, Pad, Pow are not here: the
# parser converts for them.
_SAME: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "PRelu")),
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization")),
    "Where": (1, 2),
}
# They take codes themselves, and none of them is imported: rule L24.
_INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})


def _old_opset(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    opset = opset_of(model)
    for node in qdq_nodes(model):
        if node.domain:
            continue
        needed, why = max(_needs(node))
        if needed > opset:
            yield Place(
                label(node),
                f"{why} from opset {needed} on, the model is of opset {opset}: TensorRT takes it, "
                "ONNX Runtime and the checker may not; export for a later opset",
            )


def _needs(node: ir.Node) -> Iterator[tuple[int, str]]:
    """Yield the opsets that a Q/DQ node needs, and what for."""
    kind = code_type(node)
    yield 10, f"{node.op_type} exists"
    if form(node) is Form.AXIS:
        yield 13, "a scale for each channel exists"
    if {dtype(scale(node)), dtype(data(node))} & _HALVES:
        yield 19, "scales and inputs may be float16 or bfloat16"
    if kind == ir.DataType.FLOAT8E4M3FN:
        yield 19, "fp8 codes exist"
    if kind == ir.DataType.INT4:
        yield 21, "int4 codes exist"
    if form(node) is Form.BLOCK:
        yield 21, "blocks exist"
    if kind == ir.DataType.FLOAT4E2M1:
        yield 23, "fp4 codes exist"
    if "output_dtype" in node.attributes:
        yield (21 if is_quantize(node) else 23), f"output_dtype of {node.op_type} exists"


def _mixed_types(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, _ in all_nodes(model):
        if node.domain or node.op_type not in _SAME:
            continue
        chosen = _SAME[node.op_type]
        used = [v for i, v in enumerate(node.inputs) if v and (chosen is None or i in chosen)]
        types: dict[ir.DataType, ir.Value] = {}
        for value in used:
            kind = _type(value)
            if kind is not None:
                types.setdefault(kind, value)
        if len(types) > 1:
            listed = ", ".join(f"{v.name} is {spelled(k)}" for k, v in types.items())
            yield Place(
                label(node),
                f"{node.op_type} reads different types: {listed}; store constants and scales (they "
                "decide what a DQ makes) in one type, or put a Cast in front",
            )


def _type(value: ir.Value) -> ir.DataType | None:
    node = value.producer()
    kind = real_type(node) if is_dequantize(node) else dtype(value)
    return ir.DataType.FLOAT if kind == ir.DataType.DOUBLE else kind  # double is narrowed


def _scale_of_other_type(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    if opset_of(model) < 19:
        return  # the parser casts the scale
    for node in qdq_nodes(model):
        wanted, found = dtype(data(node)), dtype(scale(node))
        if is_quantize(node) and wanted is not None and found in _HALVES and found != wanted:
            yield Place(
                label(node),
                f"scale is {spelled(found)}, input is {spelled(wanted)}: TensorRT's "
                "headers want one type; store the scale in float or in that of the input",
            )


def _moved_codes(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for value in constants(model):
        if dtype(value) not in CODES:
            continue
        for node, index in consumers(value):
            if not _may_read_codes(node, index):
                yield Place(
                    label(node),
                    f"{node.op_type} reads the constant {value.name}, which holds "
                    f"{spelled(dtype(value))} codes: only a DQ may; dequantize first, then move",
                )
        if value.is_graph_output():
            yield Place(
                str(value.name),
                f"this constant of {spelled(dtype(value))} codes is an output of the graph: only "
                "a DQ may read it",
            )


def _may_read_codes(node: ir.Node, index: int) -> bool:
    if is_quantize(node) or is_dequantize(node):
        return index == 2 or (index == 0 and is_dequantize(node))
    if node.domain or node.op_type in _INTEGER:
        return True  # a plugin, or an operator that another rule refuses
    behind = [use for output in node.outputs for use in consumers(output)]
    is_zero_point = all(i == 2 and (is_quantize(n) or is_dequantize(n)) for n, i in behind)
    return node.op_type in {"Identity", "Cast"} and bool(behind) and is_zero_point


RULES = (
    Rule(
        "L16",
        "the opset has what the Q/DQ nodes use",
        Severity.WARNING,
        "schemas of onnx; ModelOpt; TensorRT-RTX 1.7.1 takes fp8, int4 and blocks at any opset",
        _old_opset,
    ),
    Rule(
        "L22",
        "inputs of a node have one type: networks are strongly typed",
        Severity.ERROR,
        "experiment, TensorRT-RTX 1.7.1; it converts for BatchNormalization, Clip, Pad and Pow",
        _mixed_types,
    ),
    Rule(
        "L23",
        "a half-precision scale has the type of what it divides",
        Severity.WARNING,
        "header NvInfer.h; not enforced by TensorRT-RTX 1.7.1",
        _scale_of_other_type,
    ),
    Rule(
        "L25",
        "a quantized constant feeds DQ nodes alone",
        Severity.ERROR,
        "experiment, TensorRT-RTX 1.7.1: Identity, Cast and graph outputs are refused, too",
        _moved_codes,
    ),
)
