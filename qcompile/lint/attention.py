"""Rule L32: attention that Q/DQ nodes keep from running as one fused kernel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.graph.walk import all_nodes, consumers, is_constant, is_op
from qcompile.lint.operands import dequantized
from qcompile.lint.qdq import code_type, is_dequantize, is_quantize, label
from qcompile.lint.rule import Place, Rule, Setting, Severity

_INT8, _FP8 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
_BETWEEN = (
    *("Mul", "Div", "Add", "Sub", "Where", "Cast", "Identity", "Dropout", "Clip", "Tanh"),
    *("Reshape", "Squeeze", "Unsqueeze"),
)
_FAR = 12
"""Nodes between Softmax and a product of the same attention, at most."""
_LONG = 512
_LEAST_HEAD, _LARGEST_HEAD = 8, 256


@dataclass(frozen=True)
class _Attention:
    """``softmax(q k) v``.

    Attributes:
        scores: MatMul of q and k, ``(..., S, H) x (..., H, T)``.
        softmax: The Softmax.
        mix: MatMul of the weights and v, ``(..., S, T) x (..., T, H)``.
        codes: Type of the codes of q, k, weights, v; None where it is float.
        rounds_scores: Whether the product of q and k is rounded.
    """

    scores: ir.Node
    softmax: ir.Node
    mix: ir.Node
    codes: tuple[ir.DataType | None, ...]
    rounds_scores: bool


def _attentions(model: ir.Model) -> Iterator[_Attention]:
    origins = dequantized(model)
    for softmax, _ in all_nodes(model):
        if not is_op(softmax, "Softmax"):
            continue
        scores, passed = _search(softmax, _makers)
        mix, _ = _search(softmax, _readers)
        if scores is None or mix is None:
            continue
        found = (origins.get(v) for n in (scores, mix) for v in n.inputs[:2] if v is not None)
        codes = tuple(None if d is None else code_type(d) for d in found)
        yield _Attention(scores, softmax, mix, codes, any(is_quantize(n) for n in passed))


def _search(
    start: ir.Node, neighbours: Callable[[ir.Node], list[ir.Node]]
) -> tuple[ir.Node | None, list[ir.Node]]:
    """Return the nearest product of two activations in one direction, and the nodes before it."""
    passed: list[ir.Node] = []
    frontier, seen = neighbours(start), {start}
    while frontier and len(passed) < _FAR:
        node = frontier.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if is_op(node, "MatMul") and not any(is_constant(value) for value in node.inputs):
            return node, passed
        if is_op(node, *_BETWEEN) or is_quantize(node) or is_dequantize(node):
            passed.append(node)
            frontier += neighbours(node)
    return None, passed


def _makers(node: ir.Node) -> list[ir.Node]:
    made = [value.producer() for value in node.inputs if value is not None]
    return [maker for maker in made if maker is not None]


def _readers(node: ir.Node) -> list[ir.Node]:
    return [reader for output in node.outputs for reader, _ in consumers(output)]


def _split_attention(model: ir.Model, setting: Setting) -> Iterator[Place]:
    for attention in _attentions(model):
        told = _unfused(attention, setting)
        if told is not None:
            yield Place(label(attention.softmax), told)


def _unfused(attention: _Attention, setting: Setting) -> str | None:
    names = f"MatMul {label(attention.scores)} and {label(attention.mix)}"
    if _INT8 in attention.codes or (attention.rounds_scores and _FP8 not in attention.codes):
        length = _last(attention.scores.outputs[0])
        if setting.flavour == "tensorrt" and length is not None and length <= _LONG:
            return None
        why = (
            "TensorRT-RTX has no fused INT8 attention"
            if setting.flavour == "tensorrt-rtx"
            else f"past {_LONG} keys, or an unknown number, a fused float attention is faster"
        )
        return (
            f"Q/DQ inside the attention of {names} split it into INT8 kernels: {why}; remove them"
        )
    if _FP8 not in attention.codes:
        return None
    if set(attention.codes) != {_FP8} or attention.rounds_scores:
        return (
            f"FP8 attention of {names} is one kernel only where q, k, v and Softmax's output are "
            "quantized and the product of q and k is not: quantize exactly these four, or none"
        )
    head = _last(attention.scores.inputs[0])
    if head is not None and not _LEAST_HEAD < head <= _LARGEST_HEAD:
        return (
            f"heads of {head} elements in {names}: the fused FP8 attention wants more than "
            f"{_LEAST_HEAD} and at most {_LARGEST_HEAD}; leave it in float"
        )
    return None


def _last(value: ir.Value | None) -> int | None:
    """Return the last size of a value, where known."""
    dims = None if value is None or value.shape is None else tuple(value.shape)
    return dims[-1] if dims and isinstance(dims[-1], int) else None


L32 = Rule(
    "L32",
    "attention is left to the fused kernel: no INT8 in it, FP8 for all of it or none",
    Severity.WARNING,
    "ModelOpt's filters (INT8 up to 512 keys, FP8 heads of 9 to 256); experiment, TensorRT-RTX "
    "1.7.1: INT8, FP8 without the Softmax's output and heads of 512 are not fused, FP16 and whole "
    "FP8 are",
    _split_attention,
)
