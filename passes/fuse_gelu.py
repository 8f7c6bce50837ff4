"""Pass: fuse gelu."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, remove_unread, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import consumers, is_constant, is_op, scalar

# A polynomial in two symbols: exponents (of x, of t) -> coefficient.
Polynomial = dict[tuple[int, int], float]

_ARGUMENTS: dict[str, Polynomial] = {
    "Erf": {(1, 0): math.sqrt(0.5)},
    "Tanh": {(1, 0): math.sqrt(2 / math.pi), (3, 0): 0.044715 * math.sqrt(2 / math.pi)},
}
_RESULT: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_APPROXIMATE = {"Erf": "none", "Tanh": "tanh"}
_DEPTH = 8


@dataclass(frozen=True, kw_only=True)
class FuseGelu(GraphPass):
    """Fuse a written-out GELU, in whatever order its factors stand, into the Gelu operator.

    Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2: ``x / 2 (1 + erf(x / sqrt 2))`` and
    ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``. The nodes around Erf or Tanh are read as
    polynomials, so each way of writing the same product is found.

    Before: ``y = Mul(Mul(x, 0.5), Add(Erf(Div(x, 1.4142)), 1))``.
    After:  ``y = Gelu<approximate="none">(x)``.
    Visits: the main graph. Leaves: other polynomials of erf or tanh.
    """

    name: ClassVar[str] = "fuse-gelu"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED, Fact.WORKING_OPSET})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find all, then fuse."""
        found = [m for node in model.graph if is_op(node, *_ARGUMENTS) for m in _match(node)]
        names = Names(model)
        for function, x, result in found:
            _fuse(function, x, result, names)
        return bool(found)


def _match(function: ir.Node) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
    """Yield the Erf or Tanh, the GELU's input and its output, if this is one."""
    argument, t = function.inputs[0], function.outputs[0]
    if argument is None or t.dtype is None or not t.dtype.is_floating_point():
        return
    tolerance = 8 * float(_epsilon(t.dtype))
    for x in _cone(argument):
        if not _close(polynomial(argument, x, None), _ARGUMENTS[function.op_type], tolerance):
            continue
        for result in _descendants(t):
            same_rank = x.shape and result.shape and len(x.shape) == len(result.shape)
            if same_rank and _close(polynomial(result, x, t), _RESULT, tolerance):
                yield function, x, result
                return


def _epsilon(dtype: ir.DataType) -> float:
    """Return the spacing of the type's numbers at 1; float32's for types numpy has not."""
    own = dtype in {ir.DataType.FLOAT16, ir.DataType.DOUBLE}
    return float(np.finfo(dtype.numpy() if own else np.float32).eps)


def _cone(value: ir.Value, depth: int = _DEPTH) -> Iterator[ir.Value]:
    """Yield the values that a polynomial's nodes above this one could have as their symbol."""
    yield value
    node = value.producer()
    if depth and is_op(node, "Mul", "Div", "Add", "Sub", "Pow", "Neg"):
        for source in node.inputs:
            if source is not None and not is_constant(source):
                yield from _cone(source, depth - 1)


def _descendants(value: ir.Value, depth: int = 5) -> Iterator[ir.Value]:
    for node, _ in consumers(value):
        if depth and is_op(node, "Mul", "Div", "Add", "Sub", "Neg"):
            yield node.outputs[0]
            yield from _descendants(node.outputs[0], depth - 1)


def polynomial(
    value: ir.Value, x: ir.Value, t: ir.Value | None, depth: int = _DEPTH
) -> Polynomial | None:
    """Return the value as a polynomial in x and t with scalar coefficients, or None."""
    if value is x:
        return {(1, 0): 1.0}
    if value is t:
        return {(0, 1): 1.0}
    number = scalar(value)
    if number is not None:
        return {(0, 0): number}
    node = value.producer()
    if depth == 0 or not is_op(node, "Mul", "Div", "Add", "Sub", "Pow", "Neg"):
        return None
    terms = [None if v is None else polynomial(v, x, t, depth - 1) for v in node.inputs]
    known = [term for term in terms if term is not None]
    if len(known) != len(terms):
        return None
    return _combine(node.op_type, known)


def _combine(op_type: str, terms: list[Polynomial]) -> Polynomial | None:
    minus: Polynomial = {(0, 0): -1.0}
    match op_type, terms:
        case "Neg", [a]:
            return _times(a, minus)
        case "Add", [a, b]:
            return _plus(a, b)
        case "Sub", [a, b]:
            return _plus(a, _times(b, minus))
        case "Mul", [a, b]:
            return _times(a, b)
        case "Div" | "Pow", [a, b] if b.keys() == {(0, 0)} and b[0, 0]:
            number = b[0, 0]
            return _times(a, {(0, 0): 1 / number}) if op_type == "Div" else _power(a, number)
    return None


def _power(base: Polynomial, exponent: float) -> Polynomial | None:
    if exponent not in {1.0, 2.0, 3.0}:
        return None
    result = base
    for _ in range(int(exponent) - 1):
        result = _times(result, base)
    return result


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    return {k: a.get(k, 0.0) + b.get(k, 0.0) for k in {**a, **b}}


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for (ax, at), u in a.items():
        for (bx, bt), v in b.items():
            key = (ax + bx, at + bt)
            result[key] = result.get(key, 0.0) + u * v
    return result


def _close(found: Polynomial | None, wanted: Polynomial, tolerance: float) -> bool:
    if found is None:
        return False
    found = {k: v for k, v in found.items() if v}
    return found.keys() == wanted.keys() and all(
        math.isclose(found[k], v, rel_tol=tolerance) for k, v in wanted.items()
    )


def _fuse(function: ir.Node, x: ir.Value, result: ir.Value, names: Names) -> None:
    last = result.producer()
    if last is None or last.graph is None:
        return
    gelu = ir.node(
        "Gelu", [x], {"approximate": _APPROXIMATE[function.op_type]}, name=names.fresh(last, "gelu")
    )
    last.graph.insert_before(last, gelu)
    take_over(gelu.outputs[0], result)
    remove_unread(last)
