"""L28, L29, L30, L37, L40: Q/DQ where they keep layers from being fused."""

import numpy as np
import onnx_ir as ir

from tests.lint.cases import Cases
from tests.lint.made import RTX, case
from tests.lint.models import (
    Net,
    reals,
    scalar,
)
from tests.lint.test_placement import IMAGE, int8_conv, int8_matmul

# L28


def activation_behind(kind: str, *, bias: bool = False) -> ir.Model:
    """Conv, Q/DQ, activation, Q/DQ, Conv."""
    net = Net()
    y = int8_conv(net, net.qdq(net.input(IMAGE)))
    y = net.op("Add", y, reals(1, 16, 1, 1)) if bias else y
    y = net.op(kind, net.qdq(y))
    return net.model(int8_conv(net, net.qdq(y)))


def rounded_silu() -> ir.Model:
    net = Net()
    y = net.qdq(int8_conv(net, net.qdq(net.input(IMAGE))))
    return net.model(net.op("Mul", y, net.op("Sigmoid", y)))


def rounded_normalization() -> ir.Model:
    net = Net()
    y = net.qdq(int8_conv(net, net.qdq(net.input(IMAGE))))
    ones = np.ones(16, np.float32)
    return net.model(net.op("BatchNormalization", y, ones, ones, ones, ones))


def activation_before(kind: str) -> ir.Model:
    net = Net()
    y = net.op(kind, int8_conv(net, net.qdq(net.input(IMAGE))))
    return net.model(int8_conv(net, net.qdq(y)))


def no_activation() -> ir.Model:
    """Conv, Q/DQ, Conv: the first Conv's activation was fused, or there is none."""
    net = Net()
    y = int8_conv(net, net.qdq(net.input(IMAGE)))
    return net.model(int8_conv(net, net.qdq(y)))


# L29


def residual(*, main: bool = False, skip: bool = True) -> ir.Model:
    """x + Conv(Relu(Conv(x))), with Q/DQ on the branches that are named."""
    net = Net()
    x = net.op("Relu", net.input(IMAGE))
    rounded = net.qdq(x)
    y = net.op("Relu", int8_conv(net, rounded))
    y = int8_conv(net, net.qdq(y))
    total = net.op("Add", net.qdq(y) if main else y, rounded if skip else x)
    return net.model(net.op("Relu", total))


def two_convs(first: bool, second: bool) -> ir.Model:
    net = Net()
    x = net.qdq(net.input(IMAGE))
    left, right = int8_conv(net, x), int8_conv(net, x)
    left, right = net.qdq(left) if first else left, net.qdq(right) if second else right
    return net.model(net.op("Relu", net.op("Add", left, right)))


def linear_bottleneck() -> ir.Model:
    """MobileNetV2: the skip is a Conv's output, rounded for the next Conv."""
    net = Net()
    x = net.qdq(int8_conv(net, net.qdq(net.input(IMAGE))))
    y = int8_conv(net, net.qdq(net.op("Relu", int8_conv(net, x))))
    return net.model(net.op("Add", y, x))


def float_residual() -> ir.Model:
    net = Net()
    x = net.input(IMAGE)
    return net.model(net.op("Add", net.op("Conv", x, reals(16, 16, 1, 1)), x))


def transformer_residual() -> ir.Model:
    """The residual stream of a transformer stays in float: only convolutions are judged."""
    net = Net()
    x = net.input((4, 64))
    return net.model(net.op("Add", int8_matmul(net, net.qdq(x)), x))


# L30


def concat(*scales: float, last: float) -> ir.Model:
    net = Net()
    branches = [net.qdq(net.input((1, 8, 8, 8)), scalar(scale)) for scale in scales]
    joined = net.op("Concat", *branches, axis=1)
    return net.model(int8_conv(net, net.qdq(joined, scalar(last))))


# L37


def again(scale: float) -> ir.Model:
    net = Net()
    y = net.qdq(net.input(IMAGE), scalar(0.05))
    return net.model(int8_conv(net, net.qdq(y, scalar(scale))))


def two_grids(scale: float) -> ir.Model:
    net = Net()
    x = net.op("Relu", net.input(IMAGE))
    return net.model(*(int8_conv(net, net.qdq(x, scalar(s))) for s in (0.05, scale)))


# L40


def between(kind: str, *, shared: bool = False) -> ir.Model:
    net = Net()
    x = net.qdq(net.input(IMAGE))
    rest = (np.ones(8, np.float32),) if kind == "LayerNormalization" else ()
    size = {"kernel_shape": [2, 2]} if kind.endswith("Pool") and "Global" not in kind else {}
    y = int8_conv(net, net.qdq(net.op(kind, x, *rest, **size)))
    return net.model(y, int8_conv(net, x)) if shared else net.model(y)


def ending(kind: str) -> ir.Model:
    net = Net()
    return net.model(net.op(kind, net.qdq(net.input(IMAGE))))


BREAKS: Cases = {
    "L28": (
        *(case(activation_behind, kind) for kind in ("Relu", "HardSwish", "Sigmoid")),
        case(activation_behind, "Relu", bias=True),
        case(rounded_silu),
        case(rounded_normalization),
    ),
    "L29": (
        case(residual, skip=False),
        case(residual, main=True),
        case(residual, main=True, skip=False),
        case(two_convs, False, False),
        case(two_convs, True, True),
    ),
    "L30": (case(concat, 0.05, 0.1, last=0.1), case(concat, 0.05, 0.05, last=0.1)),
    "L37": (case(again, 0.05), case(again, 0.07), case(two_grids, 0.07)),
    "L40": tuple(
        case(between, kind, setting=RTX)
        for kind in ("AveragePool", "GlobalAveragePool", "Softmax", "Sigmoid", "LayerNormalization")
    ),
}
KEEPS: Cases = {
    "L28": (
        *(case(activation_before, kind) for kind in ("Relu", "HardSwish", "Sigmoid")),
        case(no_activation),
        case(linear_bottleneck),
    ),
    "L29": (
        case(residual),
        case(two_convs, True, False),
        case(linear_bottleneck),
        case(float_residual),
        case(transformer_residual),
    ),
    "L30": (case(concat, 0.1, 0.1, last=0.1),),
    "L37": (case(two_grids, 0.05), case(no_activation)),
    "L40": (
        case(between, "MaxPool", setting=RTX),
        case(between, "AveragePool"),
        case(between, "AveragePool", shared=True, setting=RTX),
        case(ending, "GlobalAveragePool", setting=RTX),
    ),
}
