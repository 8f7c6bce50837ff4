"""L21, L26, L36, L41, L47, L48: which factors of a weighted node are codes, and how."""

from typing import Any

import numpy as np
import onnx_ir as ir

from tests.lint.cases import Cases
from tests.lint.made import RTX, case
from tests.lint.models import (
    FLOAT,
    FP8,
    HALF,
    Net,
    codes,
    conv,
    found,
    fp8,
    int4,
    matmul,
    reals,
    steps,
    zeros,
)

IMAGE = (1, 16, 8, 8)
HALF_SCALE = np.array(0.05, np.float16)


def kernels(net: Net, channels: int = 16, size: int = 3) -> ir.Value:
    return net.weight(codes(channels, channels, size, size), steps(channels), axis=0)


def int8_conv(net: Net, x: ir.Value) -> ir.Value:
    """Conv of rounded values, its output float."""
    return net.op("Conv", x, kernels(net), reals(16), pads=[1, 1, 1, 1])


def int8_matmul(net: Net, x: ir.Value, depth: int = 64, width: int = 64) -> ir.Value:
    return net.op("MatMul", x, net.weight(codes(depth, width), steps(width), axis=1))


# L21


def float_weight() -> ir.Model:
    net = Net()
    return net.model(net.op("Conv", net.qdq(net.input(IMAGE)), reals(16, 16, 3, 3)))


def float_weight_of_matmul() -> ir.Model:
    net = Net()
    return net.model(net.op("MatMul", net.qdq(net.input((4, 64))), reals(64, 32)))


def float_input() -> ir.Model:
    net = Net()
    return net.model(int8_conv(net, net.input(IMAGE)))


def relu_behind_dequantize() -> ir.Model:
    net = Net()
    return net.model(int8_conv(net, net.op("Relu", net.qdq(net.input(IMAGE)))))


def one_float_branch() -> ir.Model:
    net = Net()
    branches = net.qdq(net.input((1, 8, 8, 8))), net.op("Abs", net.input((1, 8, 8, 8)))
    return net.model(int8_conv(net, net.op("Concat", *branches, axis=1)))


def products(*, both: bool) -> ir.Model:
    net = Net()
    right = net.input((4, 64, 32))
    left = net.qdq(net.input((4, 16, 64)))
    return net.model(net.op("MatMul", left, net.qdq(right) if both else right))


def moved_codes() -> ir.Model:
    """Pooling, Concat and Transpose between DQ and Conv move codes."""
    net = Net()
    x = net.qdq(net.input((1, 8, 16, 16)))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Transpose", net.op("Concat", x, x, axis=1), perm=[0, 1, 3, 2])
    return net.model(int8_conv(net, x))


def rounded_float_weight() -> ir.Model:
    net = Net()
    weight = net.qdq(net.constant(reals(16, 16, 3, 3)), steps(16), axis=0)
    return net.model(net.op("Conv", net.qdq(net.input(IMAGE)), weight))


# L26


def cast_weight(kind: str) -> ir.Model:
    net = Net()
    scale = steps(64, np.float16)
    weight = net.op("Cast", net.weight(codes(64, 64), scale, axis=1), to=FLOAT)
    return net.model(net.op(kind, net.qdq(net.input((4, 64))), weight))


def cast_four_bits() -> ir.Model:
    net = Net()
    scale = np.full((8, 32), 0.02, np.float16)
    weight = net.weight(codes(512, 32, dtype=int4, limit=7), scale, axis=0, block_size=64)
    return net.model(net.op("MatMul", net.input((4, 512)), net.op("Cast", weight, to=FLOAT)))


def reshaped(before: tuple[int, ...], axis: int) -> ir.Model:
    net = Net()
    weight = net.weight(codes(*before), steps(before[axis]), axis=axis)
    weight = net.op("Reshape", weight, np.array([64, 64]))
    return net.model(net.op("MatMul", net.qdq(net.input((4, 64))), weight))


def reshaped_kernels() -> ir.Model:
    net = Net()
    weight = net.weight(codes(16, 144), steps(16), axis=0)
    weight = net.op("Reshape", weight, np.array([16, 16, 3, 3]))
    return net.model(net.op("Conv", net.qdq(net.input(IMAGE)), weight))


def moved(kind: str) -> ir.Model:
    """Moves that a weight's DQ survives."""
    net = Net()
    weight = net.weight(codes(64, 64), steps(64), axis=0 if kind == "Transpose" else 1)
    attributes = {"perm": [1, 0]} if kind == "Transpose" else {}
    weight = net.op(kind, weight, **attributes)
    return net.model(net.op("MatMul", net.qdq(net.input((4, 64))), weight))


# L36, L47


def blocks(dtype: Any, zero: Any, *, rounded: bool = True) -> ir.Model:
    """MatMul [4, 512] x [512, 32], its weight in blocks of 64."""
    net = Net()
    x = net.input((4, 512))
    scale = np.full((8, 32), 0.02, np.float32)
    weight = net.weight(codes(512, 32, dtype=dtype, limit=7), scale, axis=0, block_size=64)
    return net.model(net.op("MatMul", net.qdq(x, zero=zeros(dtype=zero)) if rounded else x, weight))


def four_bit_channels() -> ir.Model:
    weight = {"codes": codes(64, 32, dtype=int4, limit=7)}
    return matmul(activation={}, weight=weight)


def mixed(activation: Any, weight: Any) -> ir.Model:
    net = Net()
    x = net.qdq(net.input((4, 64), HALF), HALF_SCALE, zeros(dtype=activation))
    stored = net.weight(codes(64, 32, dtype=weight, limit=7), steps(32, np.float16), axis=1)
    return net.model(net.op("MatMul", x, stored))


# L41


def deconvolution(*, quantized: bool = True) -> ir.Model:
    net = Net()
    x = net.input(IMAGE)
    if not quantized:
        return net.model(net.op("ConvTranspose", x, reals(16, 16, 2, 2)))
    weight = net.weight(codes(16, 16, 2, 2), steps(16), axis=1)
    return net.model(net.op("ConvTranspose", net.qdq(x), weight))


# L48


def computed_scale(
    kind: str = "Conv", *, pooled: bool = False, weight: bool = True, dtype: Any = np.int8
) -> ir.Model:
    """The scale of what a convolution reads is the largest number of the input."""
    net = Net()
    x = net.input(IMAGE)
    data = net.qdq(x, net.op("ReduceMax", net.op("Abs", x), keepdims=0), zeros(dtype=dtype))
    if pooled:
        data = net.op("MaxPool", data, kernel_shape=[2, 2])
    stored = net.weight(
        codes(16, 16, 3, 3, dtype=dtype, limit=7), steps(16), axis=int(kind != "Conv")
    )
    return net.model(net.op(kind, data, stored if weight else reals(16, 16, 3, 3)))


BREAKS: Cases = {
    "L21": (
        case(float_weight),
        case(float_weight_of_matmul),
        case(float_input),
        case(relu_behind_dequantize),
        case(one_float_branch),
        case(products, both=False),
    ),
    "L26": (
        case(cast_weight, "MatMul"),
        case(cast_weight, "Gemm"),
        case(cast_four_bits),
        case(reshaped, (4, 16, 64), 0),
        case(reshaped, (64, 4, 16), 1),
    ),
    "L36": (
        case(blocks, int4, np.int8),
        case(blocks, np.int8, np.int8, also={"L14"}),
        case(blocks, fp8, fp8),
        case(four_bit_channels),
    ),
    "L41": (case(deconvolution, setting=RTX),),
    "L47": (case(mixed, np.int8, fp8), case(mixed, fp8, np.int8), case(mixed, fp8, int4)),
    "L48": (
        case(computed_scale, also={"L27"}, setting=RTX),
        case(computed_scale, pooled=True, also={"L27"}, setting=RTX),
        case(computed_scale, dtype=fp8, also={"L27"}, setting=RTX),
    ),
}
KEEPS: Cases = {
    "L21": (
        case(conv),
        case(matmul),  # weight-only
        case(matmul, activation={}),
        case(products, both=True),
        case(moved_codes),
        case(rounded_float_weight),
    ),
    "L26": (
        case(conv),
        case(reshaped, (8, 8, 64), 2),
        case(reshaped_kernels),
        case(moved, "Transpose"),
        case(moved, "Identity"),
    ),
    "L36": (case(blocks, int4, np.int8, rounded=False), case(matmul, activation={})),
    "L41": (case(deconvolution), case(deconvolution, quantized=False, setting=RTX)),
    "L47": (
        case(mixed, np.int8, np.int8),
        case(mixed, fp8, fp8),
        case(mixed, np.uint8, np.int8),  # L06 and L07
    ),
    "L48": (
        case(conv, setting=RTX),
        case(computed_scale, "ConvTranspose", setting=RTX),
        case(computed_scale, weight=False, setting=RTX),
    ),
}


def test_of_tensorrt_it_is_not_known_whether_a_computed_scale_crashes() -> None:
    assert {finding.rule for finding in found(computed_scale())} == {"L27"}


def test_the_float_factor_is_named() -> None:
    [finding] = found(float_weight())
    assert finding.where == "conv"
    assert "dequantizelinear.out is quantized and the other, c4, is float" in finding.what


def test_a_wrong_permutation_is_no_crash() -> None:
    net = Net()
    weight = net.op("Transpose", net.weight(codes(64, 64), steps(64), axis=5), perm=[1, 0])
    found(net.model(net.op("MatMul", net.qdq(net.input((4, 64))), weight)))


def test_codes_of_both_factors_are_told() -> None:
    [finding] = found(mixed(np.int8, fp8))
    assert "INT8" in finding.what
    assert FP8.name in finding.what
