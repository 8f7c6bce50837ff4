"""Rule L46: options of onnxruntime's quantizer that make models TensorRT takes.

They are read from the script that calls it, or guessed from the model that it made.
"""

import ast
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qcompile.lint.qdq import (
    code_type,
    dtype,
    is_dequantize,
    is_quantize,
    numbers,
    qdq_nodes,
    zero_point,
)
from qcompile.lint.rule import Place, Rule, Setting, Severity

_PRODUCER = "onnx.quantize"
"""What onnxruntime's quantizer calls itself in the models that it writes."""

_UNKNOWN = object()
_POSITIONS: dict[str, tuple[str, ...]] = {
    "quantize_static": ("model_input", "model_output", "calibration_data_reader", "quant_format"),
    "StaticQuantConfig": ("calibration_data_reader", "calibrate_method", "quant_format"),
    "get_qdq_config": ("model_input", "calibration_data_reader", "calibrate_method"),
}
_DYNAMIC = frozenset({"quantize_dynamic", "DynamicQuantConfig"})
_TYPES = frozenset({"QInt8", "QFLOAT8E4M3FN"})
_SYMMETRIC = {"ActivationSymmetric": "activation_symmetric", "WeightSymmetric": "weight_symmetric"}


def wrong_options(tree: ast.Module, _setting: Setting) -> Iterator[Place]:
    """Yield each call of onnxruntime's quantizer with options that TensorRT refuses.

    Options that are computed are taken to be right.
    """
    if not _imports_onnxruntime(tree):
        return
    known = _assigned_once(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else _identifier(node.func)
        if name in _DYNAMIC:
            yield Place(
                str(node.lineno),
                f"{name} makes DynamicQuantizeLinear and MatMulInteger nodes, which TensorRT's "
                "parser lacks: call quantize_static",
            )
        elif name in _POSITIONS:
            wrong = list(_wrong(_arguments(node, name, known), name))
            if wrong:
                yield Place(str(node.lineno), f"{name} for TensorRT: {'; '.join(wrong)}")


def _imports_onnxruntime(tree: ast.Module) -> bool:
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
    return any(module.split(".")[0] == "onnxruntime" for module in modules)


def _identifier(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _assigned_once(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the names that are bound by one plain assignment, with what they are bound to."""
    stores: dict[str, int] = {}
    values: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            stores[node.id] = stores.get(node.id, 0) + 1
        elif isinstance(node, ast.arg):
            stores[node.arg] = stores.get(node.arg, 0) + 1
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            values[_identifier(node.targets[0])] = node.value
    changed = {
        _identifier(node.value)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.Attribute) and node.attr in {"update", "setdefault", "pop"})
    }
    return {n: v for n, v in values.items() if stores.get(n) == 1 and n not in changed}


def _arguments(call: ast.Call, name: str, known: Mapping[str, ast.expr]) -> dict[str, object]:
    """Return the values of a call's arguments; ``"*"`` where some cannot be told."""
    found: dict[str, object] = {}
    for position, value in zip(_POSITIONS[name], call.args, strict=False):
        found[position] = _value(value, known)
    if len(call.args) > len(_POSITIONS[name]) or any(isinstance(a, ast.Starred) for a in call.args):
        found["*"] = _UNKNOWN
    for keyword in call.keywords:
        found[keyword.arg or "*"] = _value(keyword.value, known)
    return found


def _value(node: ast.expr, known: Mapping[str, ast.expr]) -> object:
    """Return a constant, an enumeration's member by its name, a dict of such; or _UNKNOWN."""
    found: object = _UNKNOWN
    if isinstance(node, ast.Name) and node.id in known:
        found = _value(known[node.id], {n: v for n, v in known.items() if n != node.id})
    elif isinstance(node, ast.Constant):
        found = node.value
    elif isinstance(node, ast.Attribute):
        found = node.attr
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        found = {_key(k, known): _value(v, known) for k, v in pairs}
    elif isinstance(node, ast.Call) and _identifier(node.func) == "dict" and not node.args:
        found = {k.arg or "*": _value(k.value, known) for k in node.keywords}
    return found


def _key(node: ast.expr | None, known: Mapping[str, ast.expr]) -> str:
    """Return the key of a dict's entry; ``*`` for unpacked and computed ones."""
    key = None if node is None else _value(node, known)
    return key if isinstance(key, str) else "*"


def _wrong(arguments: Mapping[str, object], name: str) -> Iterator[str]:
    extra = arguments.get("extra_options", _UNKNOWN if "*" in arguments else {})
    options = extra if isinstance(extra, dict) else {} if extra is None else {"*": _UNKNOWN}

    def argument(key: str, default: object) -> object:
        return arguments.get(key, _UNKNOWN if "*" in arguments else default)

    def option(key: str, default: object) -> object:
        asked = arguments.get(_SYMMETRIC.get(key, ""))
        return options.get(key, _UNKNOWN if "*" in options else default) if asked is None else asked

    unsigned = "QUInt8" if name == "get_qdq_config" else "QInt8"
    activation = argument("activation_type", unsigned)
    if argument("quant_format", "QDQ") == "QOperator":
        yield "quant_format=QuantFormat.QDQ is needed (QOperator nodes have no importer)"
    if activation is not _UNKNOWN and activation not in _TYPES:
        yield f"activation_type=QuantType.QInt8 is needed, not {activation}"
    weight = argument("weight_type", "QInt8")
    if weight is not _UNKNOWN and weight not in _TYPES | {"QInt4"}:
        yield f"weight_type=QuantType.QInt8 is needed, not {weight}"
    if activation in {"QInt8", "QUInt8"} and option("ActivationSymmetric", default=False) is False:
        yield "ActivationSymmetric=True is needed (zero points must be 0)"
    if option("WeightSymmetric", default=True) is False:
        yield "WeightSymmetric=True is needed (zero points must be 0)"
    if option("QuantizeBias", default=True) is True:
        yield "QuantizeBias=False is needed in extra_options (no INT32 DequantizeLinear)"


def _made_by_onnxruntime(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    if model.producer_name != _PRODUCER:
        return
    nodes = list(qdq_nodes(model))
    points = [numbers(zero_point(node)) for node in nodes if is_quantize(node)]
    operators = any(node.op_type.startswith("QLinear") for node in model.graph)
    wanted = {
        "quant_format=QuantFormat.QDQ": operators,
        "QuantizeBias=False": operators  # their biases are int32, in whatever format
        or any(is_dequantize(node) and code_type(node) is ir.DataType.INT32 for node in nodes),
        "ActivationSymmetric=True": any(p is not None and p.any() for p in points),
        "activation_type=QuantType.QInt8": any(
            dtype(zero_point(node)) is ir.DataType.UINT8 for node in nodes if is_quantize(node)
        ),
    }
    missing = [option for option, needed in wanted.items() if needed]
    if missing:
        yield Place(
            "graph",
            "onnxruntime's quantizer made this model with options that TensorRT refuses: quantize "
            f"again with {', '.join(missing)}",
        )


L46 = Rule(
    "L46",
    "onnxruntime's quantizer is told: QDQ, QInt8 twice, symmetric activations, no quantized bias",
    Severity.ERROR,
    "experiment, onnxruntime 1.31 and TensorRT-RTX 1.7.1: each of these options at its default "
    "makes a model that the parser refuses",
    _made_by_onnxruntime,
)

RULES = (L46,)
