"""High-bias absorption: what is measured, what is moved, how little it changes."""

import numpy as np

from qcompile.graph.runner import run_passes
from qcompile.passes.absorb_bias import AbsorbBias
from qcompile.passes.expand_prelu import ExpandPrelu
from qcompile.planning.absorb import absorbed
from qcompile.progress import Silent
from qcompile.remedies import Remedies
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from tests.planning.tools import HOLDS, all_values, feeds_of, graph_of, normal

BODY = "[a] p = Conv <pads=[1, 1, 1, 1]> (x, w, b)\n[r] v = Relu(p)\n[c] y = Conv(v, u, d)"


def net(body: str = BODY, **more):
    return graph_of(
        "float[2, 3, 8, 8] x",
        body,
        w=normal(0, 6, 3, 3, 3, scale=0.2),
        b=np.array([9, 0.5, -9, 30, 0, 4], np.float32),
        u=normal(1, 4, 6, 1, 1),
        d=normal(2, 4),
        **more,
    )


def test_shifts_are_three_deviations_below_the_mean_and_hardly_move_outputs():
    model = net()
    samples = feeds_of(model, count=4)
    found, refused = absorbed(model, {"a", "c"}, InMemory(samples), 1, Silent())
    before = np.concatenate([s["p"] for s in all_values(model, samples)]).astype(np.float64)
    mean, deviation = before.mean(axis=(0, 2, 3)), before.std(axis=(0, 2, 3))
    wanted = np.maximum(0, mean - 3 * deviation)
    np.testing.assert_allclose(found["v"].shifts(), wanted, rtol=1e-4)
    assert (wanted > 0).tolist() == [True, False, False, True, False, True]
    assert refused == {}
    moved = model.clone()
    run_passes(moved, [AbsorbBias(remedies=Remedies(shifted=found))], holds=HOLDS)
    seen = np.concatenate([s["v"] for s in all_values(moved, samples)])
    assert seen.max() < 0.5 * before.max()
    exact, other = (Session(m).run(samples[0])["y"] for m in (model, moved))
    assert np.linalg.norm(other - exact) / np.linalg.norm(exact) < 2e-3


def test_nothing_is_moved_where_nothing_is_high_or_a_reader_pads():
    samples = InMemory(feeds_of(net(), count=1))
    padded = net(BODY.replace("Conv(v, u, d)", "Conv <pads=[1, 1, 1, 1]> (v, u, d)"))
    found, refused = absorbed(padded, {"c"}, samples, 1, Silent())
    assert found == {}
    assert refused == {"a Conv that reads it pads it with zeros": 1}
    assert absorbed(net(), {"a"}, samples, 1, Silent()) == ({}, {})


def test_a_prelu_that_is_written_out_is_left_and_counted():
    model = net(BODY.replace("[r] v = Relu(p)", "[r] v = PRelu(p, s)"), s=normal(3, 6, 1, 1))
    run_passes(model, [ExpandPrelu()], holds=HOLDS)
    assert "PRelu" not in {node.op_type for node in model.graph}
    found, refused = absorbed(model, {"a", "c"}, InMemory(feeds_of(model)), 1, Silent())
    assert (found, refused) == ({}, {"PRelu makes it: a Relu alone passes a shift on": 1})
