"""Corrected biases: golden cases, the outputs move by the correction, grids follow, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PlanError
from qcompile.graph.bias_place import NoBias, bias_place
from qcompile.graph.runner import run_passes
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.planning.bias import with_corrected_biases
from qcompile.remedies import Correction, Remedies
from qcompile.runtime.ort import Session, kernel_nodes
from qcompile.targets.ort_cpu import ORT_CPU
from tests.passes.tools import random_feeds, session
from tests.planning.tools import HOLDS, feeds_of, graph_of, normal, quantize_graph


def corrections(**bias: np.ndarray) -> Remedies:
    """Return corrections by the names of nodes."""
    return Remedies(
        corrected={
            name: Correction(how="empirical", bias=[float(b) for b in values])
            for name, values in bias.items()
        }
    )


@given(
    values=st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4),
    biased=st.booleans(),
    kind=st.sampled_from(["conv", "gemm", "matmul"]),
)
def test_outputs_move_by_the_correction(values: list[float], biased: bool, kind: str) -> None:
    bias = "b" if biased or kind == "matmul" else ""
    body = {
        "conv": f"[n] y = Conv(x, w, {bias})",
        "gemm": f"[n] y = Gemm(x, w, {bias})",
        "matmul": "[n] p = MatMul(x, w)\ny = Add(p, b)",
    }[kind]
    inputs = "float[2, 3, 5] x" if kind == "conv" else "float[2, 3] x"
    weight = normal(1, 4, 3, 1) if kind == "conv" else normal(1, 3, 4)
    weights = {"w": weight, "b": normal(2, 4)} if bias else {"w": weight}
    model = graph_of(inputs, body.replace(", )", ")"), **weights)
    feeds = random_feeds(model)
    before = session(model).run(None, feeds)[0]
    assert CorrectBias(remedies=corrections(n=np.asarray(values)))(model).modified
    moved = session(model).run(None, feeds)[0] - before
    shape = (1, 4, 1) if kind == "conv" else (1, 4)
    np.testing.assert_allclose(
        moved, np.broadcast_to(np.reshape(values, shape), moved.shape), atol=1e-5
    )


def test_another_number_of_channels_is_an_error() -> None:
    model = graph_of("float[2, 3] x", "[n] y = Gemm(x, w)", w=normal(1, 3, 4))
    with pytest.raises(PlanError, match="node n has 4 channels, not 2"):
        CorrectBias(remedies=corrections(n=np.zeros(2)))(model)


@pytest.mark.parametrize("bias", ["b", ""])
def test_codes_of_the_new_bias_keep_the_integer_kernel(bias: str) -> None:
    weights = {"w": normal(1, 16, 16, 3, 3, scale=0.1), **({"b": normal(3, 16)} if bias else {})}
    body = f"[n] y = Conv(x, w, {bias})".replace(", )", ")")
    made = quantize_graph(graph_of("float[1, 16, 12, 12] x", body, **weights))
    remedies = corrections(n=np.linspace(-1, 1, 16))
    plan = with_corrected_biases(
        made.plan.model_copy(update={"remedies": remedies}), made.source, ORT_CPU
    )
    written = made.source.clone()
    run_passes(written, [CorrectBias(remedies=remedies), InsertQdq(plan=plan)], holds=HOLDS)
    assert "com.microsoft::QLinearConv" in {kernel.op for kernel in kernel_nodes(written)}
    feeds = feeds_of(made.source)[0]
    moved = Session(written).run(feeds)["y"] - made.run(feeds, optimize=True)["y"]
    inside = np.abs(Session(made.source).run(feeds)["y"]) < 1  # the range is that of y as it was
    wanted = np.broadcast_to(np.linspace(-1, 1, 16).reshape(1, 16, 1, 1), moved.shape)
    step = made.plan.tensors["y"].scale[0]
    np.testing.assert_allclose(moved[inside], wanted[inside], atol=1.01 * step)


def test_a_bias_that_two_layers_share_is_split() -> None:
    body = "[m] p = Conv(x, w, b)\n[n] y = Conv(p, w, b)"
    model = graph_of("float[1, 4, 6] x", body, w=normal(1, 4, 4, 1), b=normal(2, 4))
    CorrectBias(remedies=corrections(n=np.ones(4)))(model)
    biases = {node.name: bias_place(node).bias for node in model.graph}
    assert biases["m"] is not None
    assert biases["m"].name == "b"
    assert biases["n"] is not None
    assert biases["n"].name == "b.corrected"


def test_a_product_of_two_activations_has_no_bias() -> None:
    model = graph_of("float[2, 2] x, float[2, 2] z", "[n] y = MatMul(x, z)")
    with pytest.raises(NoBias, match="no constant weight"):
        bias_place(model.graph[0])
