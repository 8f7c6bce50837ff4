"""Corrections of biases: the mean error goes to 0, also behind corrected layers; judged apart."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.graph.runner import run_passes
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.plan import Plan
from qcompile.planning.bias import BiasCorrection, with_corrected_biases
from qcompile.progress import Silent
from qcompile.remedies import Correction, Remedies
from qcompile.samples import InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.tools import HOLDS, all_values, graph_of, normal, quantize_graph

BODY = """
    [c1] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
    [r1] p = Relu(a)
    [c2] d = Conv <pads=[1,1,1,1]> (p, w2)
    [r2] q = Relu(d)
    [c3] y = Conv(q, w3)
"""


def network() -> ir.Model:
    """Three convolutions whose weights are coarse on 8 bits: one weight of each channel is huge."""
    weights = {
        "w1": normal(1, 8, 4, 3, 3, scale=0.1),
        "b1": normal(2, 8, scale=0.1),
        "w2": normal(3, 8, 8, 3, 3, scale=0.1),
        "w3": normal(4, 8, 8, 1, 1, scale=0.2),
    }
    for name in ("w1", "w2", "w3"):
        weights[name].reshape(8, -1)[:, 0] = 6
    return graph_of("float[1, 4, 12, 12] x", BODY, **weights)


def pictures(count: int) -> InMemory:
    rng = np.random.default_rng(7)
    return InMemory(
        [{"x": rng.uniform(0, 1, (1, 4, 12, 12)).astype(np.float32)} for _ in range(count)]
    )


def rounded(model: ir.Model, plan: Plan) -> ir.Model:
    written = model.clone()
    remedies = plan.remedies
    steps = [CorrectBias(remedies=remedies)] if remedies else []
    plan = with_corrected_biases(plan, model, ORT_CPU)
    run_passes(written, [*steps, InsertQdq(plan=plan)], holds=HOLDS)
    return written


def corrected(
    model: ir.Model, plan: Plan, samples: InMemory, folder: Path, how: str
) -> dict[str, Correction]:
    work = BiasCorrection(
        model,
        rounded(model, plan),
        plan,
        samples,
        1,
        Silent(),
        folder,
        how=how,  # type: ignore[arg-type]
    )
    found = work.corrections()
    assert not list(folder.iterdir())
    return found


def mean_errors(model: ir.Model, written: ir.Model, samples: InMemory) -> dict[str, np.ndarray]:
    """Return the mean error of each channel behind each Conv."""
    exact, found = (all_values(m, samples.feeds) for m in (model, written))
    names = {"c1": "a", "c2": "d", "c3": "y"}
    made = {node.name: node.outputs[0].name for node in written.graph}
    return {
        node: np.mean(
            [
                (f[str(made[node])] - e[name]).mean(axis=(0, 2, 3))
                for e, f in zip(exact, found, strict=True)
            ],
            axis=0,
        )
        for node, name in names.items()
    }


def test_the_mean_error_falls_to_nothing_on_the_data_that_was_seen(tmp_path: Path) -> None:
    model, samples = network(), pictures(3)  # no fourth sample: none is held back
    plan = quantize_graph(model, samples=samples.feeds).plan
    before = mean_errors(model, rounded(model, plan), samples)
    found = corrected(model, plan, samples, tmp_path, "empirical")
    assert found.keys() == {"c1", "c2", "c3"}
    plan = plan.model_copy(update={"remedies": Remedies(corrected=found)})
    after = mean_errors(model, rounded(model, plan), samples)
    for node in found:
        assert np.abs(before[node]).max() > 0.01
        assert np.abs(after[node]).max() < 0.02 * np.abs(before[node]).max(), node


@pytest.mark.parametrize("how", ["empirical", "analytic"])
def test_outputs_come_closer_on_data_that_was_not_seen(tmp_path: Path, how: str) -> None:
    model, samples = network(), pictures(20)
    seen, fresh = InMemory(samples.feeds[:12]), InMemory(samples.feeds[12:])
    plan = quantize_graph(model, samples=samples.feeds).plan
    found = corrected(model, plan, seen, tmp_path, how)
    assert all(correction.how == how for correction in found.values())
    better = plan.model_copy(update={"remedies": Remedies(corrected=found)})
    errors = [
        np.abs(mean_errors(model, rounded(model, p), fresh)["c3"]).mean() for p in (plan, better)
    ]
    assert errors[1] < 0.4 * errors[0]


def test_a_correction_that_does_not_carry_over_is_dropped(tmp_path: Path) -> None:
    model = graph_of("float[64, 16] x", "[n] y = Gemm(x, w)", w=normal(1, 16, 8))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(64, 16)).astype(np.float32)} for _ in range(4)]
    feeds[3] = {"x": -feeds[0]["x"]}  # judges, and errs the other way
    plan = quantize_graph(model, samples=feeds).plan
    mean = np.mean([feed["x"].mean(axis=0) for feed in feeds[:3]], axis=0)
    feeds[3]["x"] += -3 * mean - feeds[3]["x"].mean(axis=0)
    assert corrected(model, plan, InMemory(feeds), tmp_path, "analytic") == {}


def test_what_has_no_bias_is_told(tmp_path: Path) -> None:
    model = graph_of("float[2, 7, 32] x", "[n] y = MatMul(x, w)", w=normal(1, 32, 16))
    made = quantize_graph(model)
    progress = Silent()
    samples = InMemory([{"x": normal(5, 2, 7, 32)}])
    work = BiasCorrection(model, made.model, made.plan, samples, 1, progress, tmp_path)
    assert work.corrections() == {}
    assert progress.notices == [
        "bias correction: 1 nodes are left alone: no Add alone reads the product, so it has no bias"
    ]
