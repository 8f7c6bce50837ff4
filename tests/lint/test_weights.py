"""L18 to L20, L31, L33, L34: scales, axes, blocks and sizes that keep low precision."""

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.lint.rule import Setting
from tests.lint.cases import Cases
from tests.lint.made import RTX, case
from tests.lint.models import (
    HALF,
    Net,
    broken,
    codes,
    conv,
    found,
    fp8,
    int4,
    matmul,
    scalar,
    steps,
    zeros,
)


def one_scale(rank: int) -> ir.Model:
    """Conv whose activations have one scale, as scalar or in a list."""
    return conv(activation={"scale": np.full((1,) * rank, 0.05, np.float32)})


def rank_behind_pool(rank: int) -> ir.Model:
    net = Net()
    x = net.qdq(net.input((1, 16, 8, 8)), np.full((1,) * rank, 0.05, np.float32))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.op("Conv", x, net.weight(codes(16, 16, 3, 3), steps(16), axis=0)))


def rank_of_quantize() -> ir.Model:
    net = Net()
    q = net.op("QuantizeLinear", net.input((1, 16, 8, 8)), np.full(1, 0.05, np.float32), zeros(1))
    x = net.op("DequantizeLinear", q, scalar(0.05), zeros())
    return net.model(net.op("Conv", x, net.weight(codes(16, 16, 3, 3), steps(16), axis=0)))


def activation_channels() -> ir.Model:
    return conv(activation={"scale": steps(16), "axis": 1})


def sum_channels() -> ir.Model:
    return matmul(activation={"scale": steps(64), "axis": 1})


def conv_axis(axis: int) -> ir.Model:
    return conv(weight={"axis": axis})


def matmul_axis(axis: int, activation: dict[str, Any] | None) -> ir.Model:
    return matmul(
        activation=activation, weight={"codes": codes(64, 64), "scale": steps(64), "axis": axis}
    )


def gemm_axis(axis: int, *, transposed: int) -> ir.Model:
    net = Net()
    weight = net.weight(codes(64, 64), steps(64), axis=axis)
    return net.model(net.op("Gemm", net.qdq(net.input((4, 64))), weight, transB=transposed))


def first_factor_axis(axis: int) -> ir.Model:
    net = Net()
    weight = net.weight(codes(64, 64), steps(64), axis=axis)
    return net.model(net.op("MatMul", weight, net.qdq(net.input((64, 32)))))


def transposed_axis(axis: int) -> ir.Model:
    """The wanted axis is the one before the Transpose."""
    net = Net()
    weight = net.op("Transpose", net.weight(codes(64, 64), steps(64), axis=axis), perm=[1, 0])
    return net.model(net.op("MatMul", net.qdq(net.input((4, 64))), weight))


def deconvolution_axis(axis: int) -> ir.Model:
    net = Net()
    weight = net.weight(codes(16, 16, 2, 2), steps(16), axis=axis)
    return net.model(net.op("ConvTranspose", net.qdq(net.input((1, 16, 8, 8))), weight))


def small_conv(outputs: int, inputs: int, kernel: int = 3, group: int = 1) -> ir.Model:
    """A Conv behind another one, so that it does not read the model's input."""
    net = Net()
    channels = inputs * group
    first = net.weight(codes(channels, 16, 3, 3), steps(channels), axis=0)
    x = net.op("Conv", net.qdq(net.input((1, 16, 16, 16))), first)
    weight = net.weight(codes(outputs, inputs, kernel, kernel), steps(outputs), axis=0)
    return net.model(net.op("Conv", net.qdq(net.op("Relu", x)), weight, group=group))


def first_conv(outputs: int) -> ir.Model:
    return conv(
        weight={"codes": codes(outputs, 3, 3, 3), "scale": steps(outputs)}, shape=(1, 3, 8, 8)
    )


def fp8_conv(kernel: int) -> ir.Model:
    net = Net()
    half = partial(np.asarray, dtype=np.float16)
    x = net.qdq(net.input((1, 16, 16, 16), HALF), half(0.05), zeros(dtype=fp8))
    weight = net.weight(codes(16, 16, kernel, kernel, dtype=fp8), half(steps(16)), axis=0)
    return net.model(net.op("Conv", x, weight))


def narrow_matmul(depth: int, width: int) -> ir.Model:
    net = Net()
    weight = net.weight(codes(depth, width), steps(width), axis=1)
    return net.model(net.op("MatMul", net.qdq(net.input((4, depth))), weight))


def one_row(rows: int | str) -> ir.Model:
    net = Net()
    weight = net.weight(codes(64, 32), steps(32), axis=1)
    return net.model(net.op("Gemm", net.qdq(net.input((rows, 64))), weight))


def four_bits(block: int, depth: int = 512) -> ir.Model:
    return product_of_four_bits(depth, np.full((depth // block, 32), 0.02, np.float32), axis=0)


def product_of_four_bits(depth: int, scale: np.ndarray, **attributes: int) -> ir.Model:
    net = Net()
    weight = net.weight(codes(depth, 32, dtype=int4, limit=7), scale, **attributes)
    return net.model(net.op("MatMul", net.input((4, depth)), weight))


def four_bits_per_channel() -> ir.Model:
    return product_of_four_bits(512, steps(32), axis=1)


def four_bits_per_tensor() -> ir.Model:
    return product_of_four_bits(512, scalar(0.02))


def four_bit_conv(*, rounded: bool) -> ir.Model:
    net = Net()
    x = net.input((1, 16, 8, 8))
    weight = net.weight(codes(16, 16, 3, 3, dtype=int4, limit=7), steps(16), axis=0)
    return net.model(net.op("Conv", net.qdq(x) if rounded else x, weight))


def four_bit_blocks_of_conv() -> ir.Model:
    net = Net()
    weight = net.weight(
        codes(32, 64, 1, 1, dtype=int4, limit=7), np.full((32, 2, 1, 1), 0.02, np.float32), axis=1
    )
    return net.model(net.op("Conv", net.input((1, 64, 8, 8)), weight))


BREAKS: Cases = {
    "L18": (case(activation_channels), case(sum_channels)),
    "L19": (case(one_scale, 1), case(rank_behind_pool, 1)),
    "L20": (
        case(conv_axis, 1),
        case(matmul_axis, 0, {}),
        case(gemm_axis, 1, transposed=1),
        case(gemm_axis, 0, transposed=0),
        case(first_factor_axis, 1),
        case(transposed_axis, 1),
        case(deconvolution_axis, 0),
    ),
    "L31": (
        case(small_conv, 15, 17),
        case(small_conv, 8, 8),
        case(small_conv, 12, 1, 3, 12),
        case(small_conv, 16, 1, 1, 16),
        case(first_conv, 10),
        case(fp8_conv, 7),
        case(narrow_matmul, 8, 32),
        case(narrow_matmul, 64, 10),
        case(one_row, 1),
    ),
    "L33": (
        case(four_bits, 32),
        case(four_bits, 256),
        case(four_bits_per_channel),
        case(four_bits_per_tensor),
        case(four_bits, 64, 64, setting=RTX),
        case(four_bits_per_channel, setting=RTX),
        case(four_bits_per_tensor, setting=RTX),
        case(four_bit_conv, rounded=False),
    ),
    "L34": (case(four_bit_conv, rounded=True), case(four_bit_blocks_of_conv, also={"L13"})),
}
KEEPS: Cases = {
    "L18": (case(conv), case(matmul)),
    "L19": (case(one_scale, 0), case(rank_behind_pool, 0), case(rank_of_quantize)),
    "L20": (
        case(conv_axis, 0),
        case(matmul_axis, 1, {}),
        case(matmul_axis, 0, None),
        case(gemm_axis, 0, transposed=1),
        case(gemm_axis, 1, transposed=0),
        case(first_factor_axis, 0),
        case(transposed_axis, 0),
        case(deconvolution_axis, 1),
    ),
    "L31": (
        case(small_conv, 16, 16),
        case(small_conv, 16, 8),
        case(small_conv, 16, 1, 3, 16),
        case(first_conv, 8),
        case(fp8_conv, 5),
        case(narrow_matmul, 64, 32),
        case(one_row, 2),
        case(one_row, "batch"),
    ),
    "L33": (
        case(four_bits, 64),
        case(four_bits, 128),
        *(case(four_bits, size, setting=RTX) for size in (16, 32, 64, 128, 256)),
    ),
    "L34": (case(four_bit_conv, rounded=False), case(conv)),
}


def test_a_scale_of_shape_1_does_not_disturb_a_matmul() -> None:
    assert broken(matmul(activation={"scale": np.full(1, 0.05, np.float32)})) == set()


def test_the_wanted_axis_is_told() -> None:
    [finding] = found(gemm_axis(1, transposed=1))
    assert "axis 0" in finding.what
    assert "transB=1" in finding.what


@pytest.mark.parametrize("setting", [Setting(), RTX])
def test_activations_of_a_shared_scale_are_reported_once(setting: Setting) -> None:
    net = Net()
    x = net.qdq(net.input((1, 16, 8, 8)), np.full(1, 0.05, np.float32))
    outputs = [net.op("Conv", x, net.weight(codes(16, 16, 1, 1))) for _ in range(2)]
    assert [f.rule for f in found(net.model(*outputs), setting)] == ["L19"]
