"""Layers split by their outlier columns: golden cases, the float equivalence, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PlanError
from qcompile.graph.outlier_parts import outlier_parts
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.planning.outliers import float_nodes
from qcompile.planning.wishes import Wishes
from qcompile.remedies import Outliers, Remedies
from qcompile.runtime.ort import Session
from tests.passes.tools import check_equivalent, session
from tests.planning.tools import feeds_of, graph_of, normal, quantize_graph


@given(st.data())
def test_computes_the_same_in_float(data) -> None:
    columns, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    channels = data.draw(st.lists(st.integers(0, columns - 1), unique=True).map(sorted))
    run_time, gemm, transposed = (data.draw(st.booleans()) for _ in range(3))
    shape = (width, columns) if gemm and transposed else (columns, width)
    call = f"Gemm <transB={int(transposed)}> (x, w, b)" if gemm else "MatMul(x, w)"
    rows = "3" if gemm else "2, 3"
    model = graph_of(
        f"float[{rows}, {columns}] x",
        f"[n] p = {call}\n[o] y = Tanh(p)",
        w=normal(data.draw(st.integers(0, 99)), *shape, scale=0.3),
        b=normal(1, width),
    )
    outliers = Outliers(
        channels=[] if run_time else channels,
        columns=columns,
        threshold=data.draw(st.sampled_from([0.5, 1.0, 2.0, 9.0])),
        run_time=run_time,
    )
    step = SplitOutliers(remedies=Remedies(outliers={"n": outliers}))
    out = check_equivalent(model, step, changes=bool(run_time or channels))
    if not run_time and channels:
        masked = out.graph.initializers["w.regular"].const_value.numpy()
        assert not masked[channels].any()
        assert np.count_nonzero(masked.any(axis=1)) == columns - len(channels)


@pytest.mark.parametrize(("size", "count"), [(0.1, 0), (9.0, 3)])
def test_columns_found_at_run_time(size, count) -> None:
    """None at all, and other ones for each input."""
    model = graph_of("float[5, 8] x", "[n] y = MatMul(x, w)", w=normal(1, 8, 4))
    outliers = Outliers(channels=[], columns=8, threshold=6.0, run_time=True)
    exact = session(model)
    SplitOutliers(remedies=Remedies(outliers={"n": outliers}))(model)
    values = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend([values["x.channels"], values["x.regular"]])
    split = session(model)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1, 1, (5, 8)).astype(np.float32)
        loud = np.sort(rng.choice(8, 3, replace=False))
        x[rng.integers(0, 5, 3), loud] = -size
        y, channels, regular = split.run(None, {"x": x})
        assert channels.tolist() == loud[:count].tolist()
        assert not regular[:, channels].any()
        np.testing.assert_allclose(y, exact.run(None, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_the_float_nodes_are_found_again() -> None:
    body = "[q] a = MatMul(x, w)\n[k] b = MatMul(x, w)\n[s] y = Add(a, b)"
    model = graph_of("float[5, 8] x", body, w=normal(1, 8, 4))
    one = Outliers(channels=[2], columns=8, threshold=6.0)
    SplitOutliers(remedies=Remedies(outliers={"q": one}))(model)
    nodes = {node.name: node for node in model.graph}
    assert [n.op_type for n in outlier_parts(nodes["q"])] == ["Mul", "Gather", "MatMul", "Add"]
    assert outlier_parts(nodes["k"]) == []
    assert all(n not in (nodes["k"], nodes["s"]) for n in outlier_parts(nodes["q"]))


KERNELS = ("com.microsoft::QGemm", "com.microsoft::MatMulIntegerToFloat")


@pytest.mark.parametrize("run_time", [False, True])
@pytest.mark.parametrize(
    ("rows", "call"), [("7", "Gemm(x, w, b)"), ("N", "MatMul(x, w)"), ("2, 7", "MatMul(x, w)")]
)
def test_int8_kernels_and_what_they_lose(rows, call, run_time) -> None:
    """ONNX Runtime joins MatMul and Add to a float Gemm: that must not be the one on codes."""
    other = call.replace("w", "v")
    body = f"[q] a = {call}\n[k] c = {other}\n[t] s = Tanh(c)\ny = Add(a, s)"
    weights = {"w": normal(1, 64, 48), "v": normal(3, 64, 48), "b": normal(2, 48)}
    model = graph_of(f"float[{rows}, 64] x", body, **weights)
    samples = feeds_of(model, 3)
    for feeds in samples:
        feeds["x"][..., [5, 9]] *= 100
    plain = quantize_graph(model, samples=samples)
    channels = [] if run_time else [5, 9]
    one = Outliers(channels=channels, columns=64, threshold=20.0, run_time=run_time)
    remedies = Remedies(outliers={"q": one, "k": one})
    split = model.clone()
    SplitOutliers(remedies=remedies)(split)
    wishes = Wishes(nodes=float_nodes(split, remedies))
    quantized = quantize_graph(split, wishes=wishes, samples=samples)
    found = quantized.kernels()
    assert {found["q"], found["k"]} <= set(KERNELS)
    exact = Session(model).run(samples[0])["y"]
    lost = [
        np.linalg.norm(m.run(samples[0], optimize=True)["y"] - exact) for m in (plain, quantized)
    ]
    assert lost[1] < lost[0] / 10


LEFT = {
    "a convolution": ("float[1, 4, 5, 5] x", "[n] y = Conv(x, k)", "Conv is no product"),
    "two activations": ("float[4, 4] x", "[n] y = MatMul(x, x)", "its weight is not constant"),
    "a stack of weights": ("float[2, 4, 4] x", "[n] y = MatMul(x, t)", "its weight is no matrix"),
    "a vector": ("float[4] x", "[n] y = MatMul(x, w)", "its input is no matrix"),
    "alpha": ("float[4, 4] x", "[n] y = Gemm <alpha=2.0> (x, w)", "a Gemm with alpha or transA"),
    "transA": ("float[4, 4] x", "[n] y = Gemm <transA=1> (x, w)", "a Gemm with alpha or transA"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_split_is_left_and_counted(case) -> None:
    inputs, body, reason = LEFT[case]
    weights = {"k": (4, 4, 1, 1), "t": (2, 4, 4), "w": (4, 4)}
    used = {name: normal(1, *shape) for name, shape in weights.items() if f" {name})" in body}
    outliers = Outliers(channels=[1], columns=4, threshold=6.0)
    step = SplitOutliers(remedies=Remedies(outliers={"n": outliers}))
    assert not step(graph_of(inputs, body, **used)).modified
    (found,) = step.refusals
    assert reason in found


@pytest.mark.parametrize(
    ("name", "channels", "columns", "said"),
    [
        ("gone", [1], 8, "node gone is not in the model"),
        ("n", [1], 9, "reads 8 columns"),
        ("n", [8], 8, "reads 8 columns"),
    ],
)
def test_remedies_of_another_model(name, channels, columns, said) -> None:
    model = graph_of("float[5, 8] x", "[n] y = MatMul(x, w)", w=normal(1, 8, 4))
    outliers = Outliers(channels=channels, columns=columns, threshold=6.0)
    with pytest.raises(PlanError, match=said):
        SplitOutliers(remedies=Remedies(outliers={name: outliers})).rewrite(model)
