"""Pass: fuse layer norm."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant, remove_unread, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import (
    constant,
    consumers,
    is_op,
    only_consumer,
    producer,
    scalar,
)


@dataclass(frozen=True, kw_only=True)
class FuseLayerNorm(GraphPass):
    """Fuse a written-out layer norm over the last axes into LayerNormalization.

    Ba, Kiros and Hinton 2016, arXiv:1607.06450, equation 4.

    Before: ``d = x - ReduceMean(x); y = d / Sqrt(ReduceMean(d * d) + eps) * scale + bias``, where
            the square may be a Pow, the division a Reciprocal and Mul, and scale and bias absent.
    After:  ``y = LayerNormalization<axis, epsilon>(x, scale, bias)``.
    Visits: the main graph. Leaves: norms over axes that are not the last, or of unknown size.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED, Fact.WORKING_OPSET})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find all, then fuse."""
        found = []
        for node in model.graph:
            core = _core_before(node)
            if core is None:
                continue
            sizes = _last_sizes(core.x, core.axes)
            if sizes is None:
                self.refuse("it is not over the last axes, or their size is unknown")
            else:
                found.append((core, sizes))
        names = Names(model)
        for core, sizes in found:
            _fuse(core, sizes, names)
        return bool(found)


@dataclass(frozen=True)
class _Core:
    """``normal = (x - mean) / sqrt(variance + epsilon)``, with the variance over these axes."""

    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    normal: ir.Value


def _core_before(sqrt: ir.Node) -> _Core | None:
    """Return the normalization around a Sqrt, if it is one."""
    inside = producer(sqrt.inputs[0], "Add") if is_op(sqrt, "Sqrt") else None
    if inside is None:
        return None
    variance, epsilon = _with_scalar(inside)
    mean_of_squares = producer(variance, "ReduceMean")
    centred = _square_root(mean_of_squares.inputs[0]) if mean_of_squares else None
    subtraction = producer(centred, "Sub")
    if epsilon is None or centred is None or subtraction is None:
        return None
    x, mean = subtraction.inputs
    mean_node = producer(mean, "ReduceMean")
    if x is None or mean_node is None or mean_node.inputs[0] is not x:
        return None
    axes, normal = _axes(mean_node), _normal(centred, sqrt.outputs[0])
    if axes is None or axes != _axes(mean_of_squares) or normal is None:
        return None
    return _Core(x, axes, epsilon, normal)


def _with_scalar(add: ir.Node) -> tuple[ir.Value | None, float | None]:
    left, right = add.inputs
    number = scalar(right)
    return (left, number) if number is not None else (right, scalar(left))


def _square_root(value: ir.Value | None) -> ir.Value | None:
    node = producer(value, "Mul", "Pow")
    if node is None:
        return None
    base, other = node.inputs
    is_square = base is other if node.op_type == "Mul" else scalar(other) == 2.0
    return base if is_square else None


def _axes(mean: ir.Node | None) -> tuple[int, ...] | None:
    """Return the reduced axes as negative numbers, or None: computed, all of them, or dropped."""
    if mean is None or mean.attributes.get_int("keepdims", 1) != 1 or len(mean.inputs) < 2:
        return None
    axes, x = constant(mean.inputs[1]), mean.inputs[0]
    if axes is None or axes.size == 0 or x is None or x.shape is None:
        return None
    rank = len(x.shape)
    return tuple(sorted(int(a) - rank if a >= 0 else int(a) for a in axes.reshape(-1)))


def _normal(centred: ir.Value, root: ir.Value) -> ir.Value | None:
    """Return ``centred / root``, whether written as a division or with a reciprocal."""
    for node, index in consumers(root):
        if is_op(node, "Div") and index == 1 and node.inputs[0] is centred:
            return node.outputs[0]
        inverts = is_op(node, "Reciprocal") or (
            is_op(node, "Div") and index == 1 and scalar(node.inputs[0]) == 1.0
        )
        for product, _ in consumers(node.outputs[0]) if inverts else []:
            if is_op(product, "Mul") and centred in product.inputs:
                return product.outputs[0]
    return None


def _last_sizes(x: ir.Value, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    if axes != tuple(range(-len(axes), 0)) or x.shape is None:
        return None
    sizes = tuple(d for d in tuple(x.shape)[-len(axes) :] if isinstance(d, int))
    return sizes if len(sizes) == len(axes) else None


def _fuse(core: _Core, sizes: tuple[int, ...], names: Names) -> None:
    result = core.normal
    scale, result = _parameter(result, "Mul", sizes)
    bias, result = _parameter(result, "Add", sizes)
    last = result.producer()
    if last is None or last.graph is None:
        return
    dtype = core.normal.dtype.numpy() if core.normal.dtype else np.float32
    if scale is None:
        scale = np.ones(sizes, dtype)
    inputs = [core.x, add_constant(last.graph, names.fresh(result, "scale"), scale)]
    if bias is not None:
        inputs.append(add_constant(last.graph, names.fresh(result, "bias"), bias))
    attributes = {"axis": -len(sizes), "epsilon": core.epsilon}
    norm = ir.node("LayerNormalization", inputs, attributes, name=names.fresh(last, "norm"))
    last.graph.insert_before(last, norm)
    take_over(norm.outputs[0], result)
    remove_unread(last)


def _parameter(
    value: ir.Value, op_type: str, sizes: tuple[int, ...]
) -> tuple[np.ndarray | None, ir.Value]:
    """Return the constant that the only reader applies, of shape ``sizes``, and that result."""
    node = only_consumer(value)
    if not is_op(node, op_type):
        return None, value
    left, right = node.inputs
    array = constant(right if left is value else left, max_elements=math.prod(sizes))
    if array is None or value.shape is None or array.ndim > len(value.shape):
        return None, value
    # Only the normalized axes may vary: the leading ones must have size 1.
    if any(d != 1 for d in array.shape[: max(array.ndim - len(sizes), 0)]):
        return None, value
    core_shape = array.shape[max(array.ndim - len(sizes), 0) :]
    spread = np.broadcast_to(array.reshape(core_shape), sizes)
    return np.ascontiguousarray(spread), node.outputs[0]
