"""Rules L28, L29, L30, L37 and L40: Q/DQ nodes where they keep layers from being fused."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.graph.walk import all_nodes, consumers, is_constant, is_op
from qcompile.lint.operands import WEIGHTED, dequantized, weighted_nodes
from qcompile.lint.qdq import (
    code_type,
    data,
    is_dequantize,
    is_quantize,
    label,
    numbers,
    quantizer,
    scale,
)
from qcompile.lint.rule import Place, Rule, Setting, Severity

_ELEMENTWISE = (
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Softplus"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Gelu", "Tanh", "Erf", "Softsign"),
    *("BatchNormalization", "Mul", "Div", "Sub", "Pow"),
)
# These compute in float between int8 neighbours, too (TensorRT-RTX).
_NO_GAIN = (
    *("AveragePool", "GlobalAveragePool", "Softmax", "LogSoftmax", "Sigmoid"),
    *("LayerNormalization", "RMSNormalization"),
)


def _split_fusion(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, _ in all_nodes(model):
        layer = _layer_before(data(node)) if is_quantize(node) else None
        readers = _readers_of_codes(node) if layer is not None else []
        if layer is None or not readers or not all(_is_elementwise(r) for r in readers):
            continue
        names = " and ".join(dict.fromkeys(f"{r.op_type} {label(r)}" for r in readers))
        yield Place(
            label(node),
            f"these Q/DQ lie between {layer.op_type} {label(layer)} and {names}, which could be "
            "one kernel: round behind them, or not at all",
        )


def _is_elementwise(node: ir.Node) -> bool:
    adds_bias = is_op(node, "Add") and any(is_constant(value) for value in node.inputs)
    return adds_bias or is_op(node, *_ELEMENTWISE)


def _readers_of_codes(node: ir.Node) -> list[ir.Node]:
    """Return the readers of all DQs of a Q's codes; none where the model shows codes or reals."""
    codes = node.outputs[0]
    dequantizes = [reader for reader, _ in consumers(codes)]
    if codes.is_graph_output() or not all(is_dequantize(reader) for reader in dequantizes):
        return []
    reals = [dequantize.outputs[0] for dequantize in dequantizes]
    if any(real.is_graph_output() for real in reals):
        return []
    return [reader for real in reals for reader, _ in consumers(real)]


def _layer_before(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """Return the weighted node that made a value, bias and batch normalization apart."""
    while value is not None:
        node = value.producer()
        if is_op(node, *(kinds or WEIGHTED)):
            return node
        if is_op(node, "Add"):
            inner = [v for v in node.inputs if not is_constant(v)]
            value = inner[0] if len(inner) == 1 else None
        else:
            value = node.inputs[0] if is_op(node, "BatchNormalization") else None
    return None


@dataclass(frozen=True)
class _Branch:
    """One input of an Add: its value, whether it is rounded, and the Conv right before it."""

    value: ir.Value
    rounded: bool
    conv: ir.Node | None


def _residual_adds(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    origins = dequantized(model)
    quantized = {w.node for w in weighted_nodes(model) if w.data.codes and w.weight.codes}
    for node, _ in all_nodes(model):
        values = [v for v in node.inputs if v is not None and not is_constant(v)]
        if not is_op(node, "Add") or len(values) != 2:
            continue
        first, second = (_branch(value, value in origins) for value in values)
        if first.conv in quantized or second.conv in quantized:
            told = _misplaced(first, second)
            if told is not None:
                yield Place(label(node), told)


def _branch(value: ir.Value, rounded: bool) -> _Branch:  # noqa: FBT001
    node = value.producer()
    rounding = quantizer(data(node)) if is_dequantize(node) else None
    source = value if rounding is None else data(rounding)
    return _Branch(value, rounded, _layer_before(source, "Conv"))


def _misplaced(first: _Branch, second: _Branch) -> str | None:
    if first.conv is not None and second.conv is not None:
        if first.rounded != second.rounded:
            return None
        what = "both are" if first.rounded else "neither is"
        return (
            f"its inputs {first.value.name} and {second.value.name} both come from a Conv and "
            f"{what} quantized: round exactly one of them, so that the other Conv can do the Add"
        )
    main, skip = (first, second) if first.conv is not None else (second, first)
    if main.rounded:
        return (
            f"its input {main.value.name} is rounded between Conv and Add, which could be one "
            "kernel: remove these Q/DQ"
            + ("" if skip.rounded else f", and round the other input, {skip.value.name}")
        )
    if not skip.rounded:
        return (
            f"its input {skip.value.name} is float, so the Conv before the other input writes "
            f"float for it: round {skip.value.name} by Q/DQ"
        )
    return None


def _concat_scales(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    origins = dequantized(model)
    for node, _ in all_nodes(model):
        if not is_op(node, "Concat"):
            continue
        reads = [origins[v] for v in node.inputs if v is not None and v in origins]
        rounds = [reader for reader, _ in consumers(node.outputs[0]) if is_quantize(reader)]
        scales = [_scalar_scale(qdq) for qdq in (*reads, *rounds)]
        known = dict.fromkeys(s for s in scales if s is not None)
        if reads and len(known) > 1:
            listed = ", ".join(f"{value:.6g}" for value in known)
            yield Place(
                label(node),
                f"the scales of its inputs and output differ ({listed}), so codes are scaled "
                "again: give all of them the largest one",
            )


def _scalar_scale(node: ir.Node) -> float | None:
    values = numbers(scale(node))
    return float(values.reshape(())) if values is not None and values.size == 1 else None


def _rounded_twice(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    told: set[ir.Value] = set()
    for node, _ in all_nodes(model):
        value = data(node) if is_quantize(node) else None
        if value is None:
            continue
        before = value.producer()
        if is_dequantize(before):
            same = _grid(before) == _grid(node)
            why = "on the same grid, which changes nothing" if same else "on another grid"
            yield Place(
                label(node),
                f"{value.name}, just dequantized by {label(before)}, is quantized again {why}: "
                "keep one pair of Q/DQ",
            )
        grids = dict.fromkeys(_grid(r) for r, _ in consumers(value) if is_quantize(r))
        if len(grids) > 1 and value not in told:
            told.add(value)
            yield Place(
                value.name or label(node),
                f"{len(grids)} QuantizeLinear nodes round this tensor on different grids: one "
                "for all its readers saves kernels",
            )


def _grid(node: ir.Node) -> tuple[ir.DataType | None, object]:
    """Return what tells grids apart: type of the codes and scales, or the scale's tensor."""
    value = scale(node)
    values = numbers(value)
    if values is None or values.size > 4096:
        return code_type(node), value
    return code_type(node), tuple(values.ravel().tolist())


def _no_gain(model: ir.Model, setting: Setting) -> Iterator[Place]:
    if setting.flavour != "tensorrt-rtx":
        return
    for node, _ in all_nodes(model):
        if not is_op(node, *_NO_GAIN):
            continue
        value = data(node)
        before = None if value is None else value.producer()
        after = [reader for reader, _ in consumers(node.outputs[0])]
        if not is_dequantize(before) or not after or not all(is_quantize(r) for r in after):
            continue
        codes = data(before)
        if (
            len(consumers(before.outputs[0])) == 1
            and codes is not None
            and len(consumers(codes)) == 1
        ):
            yield Place(
                label(node),
                f"TensorRT-RTX computes {node.op_type} in float between int8 neighbours, too: "
                f"remove the Q/DQ in front ({label(before)})",
            )


L28 = Rule(
    "L28",
    "no Q/DQ stand between a weighted node and its activation",
    Severity.WARNING,
    "documentation (explicit quantization); ModelOpt",
    _split_fusion,
)
L29 = Rule(
    "L29",
    "of the inputs of a residual Add, the skip input is quantized and the Conv's output is not",
    Severity.WARNING,
    "documentation (explicit quantization); ModelOpt",
    _residual_adds,
)
L30 = Rule(
    "L30",
    "inputs and output of a Concat share one scale",
    Severity.WARNING,
    "ModelOpt (concat elimination)",
    _concat_scales,
)
L37 = Rule(
    "L37",
    "a tensor is rounded once",
    Severity.WARNING,
    "documentation (explicit quantization)",
    _rounded_twice,
)
L40 = Rule(
    "L40",
    "pooling by average, Softmax, norms and Sigmoid are not put between Q/DQ (TensorRT-RTX)",
    Severity.WARNING,
    "experiment, TensorRT-RTX: one float kernel that rounds at both ends",
    _no_gain,
)
