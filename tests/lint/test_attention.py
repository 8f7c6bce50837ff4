"""L32: Q/DQ inside attention."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.lint.cases import Cases
from tests.lint.made import RTX, case
from tests.lint.models import (
    HALF,
    Net,
    broken,
    fp8,
    zeros,
)
from tests.lint.test_placement import HALF_SCALE

E4M3 = zeros(dtype=fp8)


def attention(
    rounded: str = "qkpv",
    zero: np.ndarray | None = None,
    keys: int | str = 16,
    head: int = 64,
    scores: bool = False,
) -> ir.Model:
    """softmax(q k / 8) v; Q/DQ on q, k, p (the Softmax's output) and v, where named."""
    net = Net()
    zero = zeros() if zero is None else zero
    values = {
        "q": net.input((1, 4, 16, head), HALF),
        "k": net.input((1, 4, head, keys), HALF),
        "v": net.input((1, 4, keys, head), HALF),
    }

    def maybe(name: str, value: ir.Value) -> ir.Value:
        return net.qdq(value, HALF_SCALE, zero) if name in rounded else value

    q, k, v = (maybe(name, value) for name, value in values.items())
    product = net.op("MatMul", q, k)
    product = net.qdq(product, HALF_SCALE, zero) if scores else product
    weights = net.op("Softmax", net.op("Mul", product, np.array(0.125, np.float16)))
    return net.model(net.op("MatMul", maybe("p", weights), v))


BREAKS: Cases = {
    "L32": (
        case(attention, setting=RTX),
        case(attention, "qk", setting=RTX),
        case(attention, "", scores=True, setting=RTX, also={"L28"}),
        case(attention, keys=1024),
        case(attention, keys="keys", also={"L39"}),
        case(attention, "qkv", E4M3, also={"L21"}),
        case(attention, "qk", E4M3),
        case(attention, zero=E4M3, head=8),
        case(attention, zero=E4M3, head=512),
        case(attention, zero=E4M3, scores=True, also={"L28"}),
    ),
}
KEEPS: Cases = {
    "L32": (
        case(attention, "", setting=RTX),
        case(attention, keys=512),
        case(attention, zero=E4M3),
        case(attention, zero=E4M3, setting=RTX),
    ),
}


@pytest.mark.parametrize("fp8_too", [False, True])
def test_attention_with_a_mask_is_found(*, fp8_too: bool) -> None:
    net = Net()
    zero = E4M3 if fp8_too else zeros()
    q, k, v = (net.qdq(net.input((1, 4, 16, 16), HALF), HALF_SCALE, zero) for _ in range(3))
    scores = net.op("Div", net.op("MatMul", q, k), np.array(8, np.float16))
    masked = net.op("Add", scores, net.input((1, 1, 16, 16), HALF))
    weights = net.op("Softmax", masked)
    weights = weights if fp8_too else net.qdq(weights, HALF_SCALE, zero)
    assert "L32" in broken(net.model(net.op("MatMul", weights, v)), RTX)
