"""What stays in float between codes really stays in float when ONNX Runtime loads the engine."""

from collections import Counter

import numpy as np
import pytest

from qcompile.graph.protocol import Fact
from qcompile.graph.runner import run_passes
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.planning.wishes import Wishes
from qcompile.runtime.ort import Session, kernels
from tests.passes.tools import relative_l2
from tests.planning.tools import Quantized, feeds_of, graph_of, normal, quantize_graph

PICTURE = "float[1, 16, 12, 12] x"
WEIGHTS = {"v": normal(1, 16, 16, 3, 3), "b": normal(2, 16), "w": normal(3, 16, 16, 1, 1)}
MIDDLE = {
    "conv": "[m] c = Conv(q, v, b)",
    "conv without bias": "[m] c = Conv(q, v)",
    "transposed conv": "[m] c = ConvTranspose(q, v)",
}


def between(middle: str, *, fence: bool, outputs: str = "y", size: float = 1.0) -> Quantized:
    body = f"[a] p = Conv(x, w)\n[r] q = Relu(p)\n{middle}\n[d] y = Conv(c, w)"
    used = {**WEIGHTS, "b": WEIGHTS["b"] * np.float32(size)}
    model = graph_of(PICTURE, body, outputs, **used)
    return quantize_graph(model, wishes=Wishes(nodes={"m": "a test"}), fence=fence)


@pytest.mark.parametrize("case", MIDDLE)
def test_a_fenced_node_is_exact(case):
    done = between(MIDDLE[case], fence=True)
    assert done.precision()["m"] == "float"
    assert not done.missing()
    for feeds in feeds_of(done.source):
        fused, plain = (done.run(feeds, optimize=o)["y"] for o in (True, False))
        assert np.linalg.norm(fused - plain) < 2e-3 * np.linalg.norm(plain)


@pytest.mark.parametrize("case", ["conv", "conv without bias"])
def test_without_the_fence_the_runtime_quantizes_it(case):
    bare = kernels(between(MIDDLE[case], fence=False).model)
    assert bare["com.microsoft::QLinearConv"] == 3
    fenced = kernels(between(MIDDLE[case], fence=True).model)
    assert fenced["com.microsoft::QLinearConv"] == 2


@pytest.mark.parametrize("form", ["", " <transB=1>"])
@pytest.mark.parametrize("bias", ["", ", c"])
def test_gemm_between_gemms(form, bias):
    square = normal(4, 32, 32, scale=0.2)
    body = f"[a] p = Gemm(x, s)\n[m] q = Gemm{form}(p, t{bias})\n[d] y = Gemm(q, s)"
    given = {"c": normal(6, 32)} if bias else {}
    model = graph_of("float[7, 32] x", body, s=square, t=normal(5, 32, 32), **given)
    done = quantize_graph(model, wishes=Wishes(nodes={"m": "a test"}))
    assert Counter(done.kernels().values())["com.microsoft::QGemm"] == 2
    feeds = feeds_of(model)[0]
    fused, plain = (done.run(feeds, optimize=o)["y"] for o in (True, False))
    assert np.linalg.norm(fused - plain) < 2e-3 * np.linalg.norm(plain)


@pytest.mark.parametrize("case", MIDDLE)
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_the_bias_moves_by_less_than_float_rounding(case, size):
    done = between(MIDDLE[case], fence=False, outputs="y, c", size=size)
    feeds = feeds_of(done.source)[0]
    before = Session(done.model, optimize=False).run(feeds)["c"]
    step = FenceFloatNodes()
    run_passes(done.model, [step], holds=frozenset({Fact.QDQ}))
    after = Session(done.model, optimize=False).run(feeds)["c"]
    assert relative_l2([before], [after]) <= step.effect.value
    assert not step(done.model).modified, "the second run must find nothing"
