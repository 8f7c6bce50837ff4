"""Shared constants: without own copies ONNX Runtime drops kernels, or computes wrong numbers."""

import numpy as np
import pytest

from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.own_constants import OwnConstants
from qcompile.runtime.ort import Session
from tests.planning.tools import Quantized, feeds_of, graph_of, normal, quantize_graph

PICTURE = "float[1, 16, 12, 12] x"
ROWS = "float[7, 32] x"
SQUARE = normal(4, 32, 32, scale=0.2)
CASES = {
    "bias of two convs": (
        PICTURE,
        "[p] a = Conv(x, v, b)\n[r] q = Relu(a)\n[n] y = Conv(q, w, b)",
        {"v": normal(1, 16, 16, 3, 3), "w": normal(2, 16, 16, 1, 1), "b": normal(3, 16)},
    ),
    "bias of two gemms": (
        ROWS,
        "[p] a = Gemm(x, s, b)\n[r] q = Relu(a)\n[n] y = Gemm(q, t, b)",
        {"s": SQUARE, "t": normal(5, 32, 32), "b": normal(3, 32)},
    ),
    "weight along both axes": (
        ROWS,
        "[p] a = Gemm(x, s)\n[n] y = Gemm <transB=1> (a, s)",
        {"s": SQUARE * np.geomspace(0.01, 1, 32, dtype=np.float32)},
    ),
    "bias that is also added": (
        ROWS,
        "[p] a = Gemm(x, s, b)\n[add] q = Add(a, b)\n[n] y = Gemm(q, s)",
        {"s": SQUARE, "b": normal(3, 32)},
    ),
    "one number for all columns": (
        ROWS,
        "[n] y = Gemm(x, s, b)",
        {"s": SQUARE, "b": np.full((1,), 0.3, np.float32)},
    ),
    "a row": (ROWS, "[n] y = Gemm(x, s, b)", {"s": SQUARE, "b": normal(3, 1, 32)}),
}


def owned(case: str) -> Quantized:
    inputs, body, weights = CASES[case]
    model = graph_of(inputs, body, **weights)
    assert OwnConstants()(model).modified
    InferShapes()(model)
    return quantize_graph(model)


@pytest.mark.parametrize("case", CASES)
def test_engine_is_as_good_as_the_plain_qdq_graph(case):
    done = owned(case)
    assert set(done.precision().values()) == {"int8"}
    assert not done.missing()
    feeds = feeds_of(done.source)[0]
    exact = Session(done.source, optimize=False).run(feeds)["y"]
    for optimize in (False, True):
        found = done.run(feeds, optimize=optimize)["y"]
        assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)


def test_without_own_copies_the_engine_is_wrong():
    """What the pass is for; if ONNX Runtime computes this right one day, it can go."""
    inputs, body, weights = CASES["bias of two gemms"]
    done = quantize_graph(graph_of(inputs, body, **weights))
    feeds = feeds_of(done.source)[0]
    plain, fused = (done.run(feeds, optimize=o)["y"] for o in (False, True))
    assert np.linalg.norm(plain - fused) > 0.03 * np.linalg.norm(plain)
