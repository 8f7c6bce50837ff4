"""How an axis of scales is followed through the nodes behind a DQ."""

import math

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.lint.operands import dequantized, operand, track_axis
from tests.lint.models import Net, codes, found, steps, zeros

DIMS = st.lists(st.integers(2, 4), min_size=1, max_size=4).map(tuple)


def along(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Return an array that counts along one axis and is the same along all others."""
    wide = [-1 if i == axis else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[axis]).reshape(wide), shape)


@st.composite
def factorized(draw: st.DrawFn, volume: int) -> tuple[int, ...]:
    """Draw a shape of a volume."""
    shape: list[int] = []
    while volume > 1:
        divisors = [d for d in range(2, volume + 1) if volume % d == 0]
        shape.append(draw(st.sampled_from(divisors)))
        volume //= shape[-1]
    return tuple(shape)


@settings(max_examples=200, deadline=None)
@given(st.data(), DIMS)
def test_an_axis_is_followed_as_numpy_moves_it(data: st.DataObject, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    net = Net()
    real = net.weight(codes(*shape), steps(shape[axis]), axis=axis)
    value, counted = real, along(shape, axis)
    lost = False
    for turn in data.draw(st.lists(st.booleans(), max_size=4)):
        if turn:
            order = data.draw(st.permutations(range(counted.ndim)))
            value, counted = net.op("Transpose", value, perm=order), counted.transpose(order)
        else:
            wanted = data.draw(factorized(math.prod(shape)))
            value = net.op("Reshape", value, np.array(wanted, np.int64))
            counted = counted.reshape(wanted)
        lost = lost or not places(counted, shape[axis])
    model = net.model(value)
    factor = operand(value, dequantized(model))
    assert factor.dequantize is real.producer()
    there, culprit = track_axis(axis, factor.moves)
    if there is None:
        assert lost
        assert culprit in factor.moves
    else:
        assert there in places(counted, shape[axis])


def places(counted: np.ndarray, size: int) -> list[int]:
    """Return the axes along which an array counts."""
    axes = [i for i, n in enumerate(counted.shape) if n == size]
    return [i for i in axes if np.array_equal(counted, along(counted.shape, i))]


SHAPES = st.lists(st.sampled_from([1, 2, 4, 8, 16, 64]), max_size=4).map(tuple)


@settings(max_examples=100, deadline=None)
@given(SHAPES, SHAPES, st.integers(-5, 5), st.integers(-5, 5), st.booleans())
def test_rules_survive_any_scale(
    activation: tuple[int, ...],
    weight: tuple[int, ...],
    first: int,
    second: int,
    product: bool,
) -> None:
    """Shapes and axes that contradict the data are other rules' business, and no crash."""
    net = Net()
    x = net.input((4, 16) if product else (1, 16, 8, 8))
    x = net.qdq(x, np.full(activation, 0.1, np.float32), axis=first)
    stored = codes(16, 16) if product else codes(16, 16, 3, 3)
    scale = np.full(weight, 0.1, np.float32)
    w = net.op("Transpose", net.weight(stored, scale, zeros(*weight), axis=second))
    y = net.op("MatMul" if product else "Conv", x, w)
    y.type = ir.TensorType(ir.DataType.FLOAT)
    found(net.model(y))
