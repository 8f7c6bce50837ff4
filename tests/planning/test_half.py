"""Nets that overflow or lose in one known node, and nets that do neither."""

import itertools
import sys

import numpy as np
import pytest

from qcompile.frontend import load
from qcompile.graph.halves import HALVES
from qcompile.graph.runner import run_passes
from qcompile.passes.cast_floats import CastFloats
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from qcompile.passes.round_floats import RoundFloats
from qcompile.planning.half import HEADROOM, MEASURED, float32_nodes
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from tests.assets import asset, needs_assets
from tests.planning.tools import feeds_of, graph_of, normal

PLAIN = """
[a] h = MatMul(x, w)
[r] q = Relu(h)
[b] p = MatMul(q, v)
[n] l = LayerNormalization(p, g)
[m] e = ReduceMean(l)
[d] c = Sub(l, e)
[s] y = Softmax(c)
"""
WEIGHTS = {"w": normal(1, 16, 16), "v": normal(2, 16, 16), "g": normal(3, 16)}


def kept(model, dtype="float16", feeds=None, **options):
    return float32_nodes(model, InMemory(feeds or feeds_of(model)), dtype, **options)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_well_behaved_net_keeps_nothing(dtype):
    assert kept(graph_of("float[4, 16] x", PLAIN, **WEIGHTS), dtype) == {}


def scaled(factor, rest, **constants):
    numbers = {name: np.asarray(c, np.float32) for name, c in constants.items()}
    return graph_of(
        "float[4, 16] x", f"[big] h = Mul(x, k)\n{rest}", k=np.float32(factor), **numbers
    )


def test_overflow_names_the_nodes_on_both_sides():
    model = scaled(6e4, "[r] q = Relu(h)\n[back] p = Mul(q, j)\n[end] y = Relu(p)", j=1e-4)
    found = kept(model)
    assert list(found) == ["big", "r", "back"]
    assert "h reaches" in found["big"]
    assert "65504" in found["big"]
    assert kept(model, "bfloat16") == {}


@pytest.mark.parametrize(("share", "count"), [(1.1, 2), (0.9, 0)])
def test_headroom_is_left_for_other_data(share, count):
    model = scaled(65504 / HEADROOM * share, "[end] y = Relu(h)")
    feeds = [{"x": np.ones((4, 16), np.float32)}]
    assert len(kept(model, feeds=feeds)) == count


@pytest.mark.parametrize(
    ("rest", "factor", "why"),
    [
        ("[n] y = LayerNormalization(h, g)", 200, "sums up to"),
        ("[n] y = LayerNormalization(h, g)", 1e-3, "variance"),
        ("[n] y = ReduceSumSquare(h)", 100, "reaches"),
        ("[n] y = ReduceMean(h)", 4000, "sums up to"),
        ("[n] y = MatMul(h, j)", 4096, "sums up to"),
    ],
)
def test_sums_inside_a_node(rest, factor, why):
    used = {"g": np.ones(16)} if "g)" in rest else {}
    used |= {"j": np.where(np.arange(16) % 2, 1, -1)[:, None]} if "j)" in rest else {}
    feeds = [{"x": np.tile(np.float32([1, 1.0625]), (4, 8))}]
    if "Layer" in rest or "Square" in rest:
        feeds = [{"x": normal(5, 4, 16)}]
    model = scaled(factor, rest, **used)
    found = kept(model, feeds=feeds)
    assert list(found) == ["n"]
    assert why in found["n"]
    assert kept(model, "bfloat16", feeds) == {}


@pytest.mark.parametrize(("dtype", "terms"), [("float16", 2048), ("bfloat16", 256)])
@pytest.mark.parametrize("op", ["ReduceMean(x, one)", "Softmax(x)", "GlobalAveragePool(u)"])
def test_long_sums_stand_still(dtype, terms, op):
    body = f"[u] u = Unsqueeze(x, one)\n[n] y = {op}"
    for count, expected in ((terms, []), (terms + 1, ["n"])):
        model = graph_of(f"float[2, {count}] x", body, one=np.asarray([1]))
        assert list(kept(model, dtype)) == expected


def test_what_a_node_loses_reaches_its_makers():
    body = "[w] a = Mul(x, k)\n[f] c = Floor(a)\n[t] b = Mul(c, e)\n[s] y = Sin(b)"
    model = graph_of("float[4, 16] x", body, k=np.float32(900), e=np.float32(0.37))
    found = kept(model)
    assert {"t", "s"} <= set(found)
    assert "loses" in found["s"]
    assert "s reads b" in found["t"]


def test_large_logits_move_a_softmax():
    model = graph_of("float[4, 16] x", "[a] h = Add(x, k)\n[s] y = Softmax(h)", k=np.float32(900))
    assert list(kept(model)) == ["a", "s"]
    assert kept(graph_of("float[4, 16] x", "[s] y = Softmax(x)")) == {}


def test_integers_that_halves_do_not_have():
    body = "[c] f = Cast<to=1>(i)\n[a] g = Add(f, half)\n[e] y = Cast<to=7>(g)"
    model = graph_of("int64[8] i", body, "int64 y", half=np.float32(0.5))
    feeds = [{"i": np.arange(5001, 5017, 2)}]
    assert "e" in kept(model, feeds=feeds)


@pytest.mark.parametrize("dtype", HALVES)
def test_inputs_that_stay_float32_are_not_rounded(dtype):
    """Rounded scales would give another size of the picture."""
    body = '[r] y = Resize<mode="linear">(x, , scales)'
    scales = np.asarray([1, 1, 1.9999, 1.3333], np.float32)
    assert kept(graph_of("float[1, 2, 60, 60] x", body, scales=scales), dtype) == {}


def test_what_takes_no_half_is_not_listed():
    body = "[r] r = Range(zero, n, one)\n[m] y = Mul(r, k)"
    numbers = {"zero": np.float32(0), "one": np.float32(1), "k": np.float32(0.5)}
    model = graph_of("float n", body, **numbers)
    assert list(kept(model, feeds=[{"n": np.asarray(9e4, np.float32)}])) == ["m"]


def test_infinity_in_a_mask_is_no_overflow():
    body = "[m] h = Add(x, k)\n[s] y = Softmax(h)"
    mask = np.where(np.tri(16), 0, -np.inf).astype(np.float32)
    assert kept(graph_of("float[16, 16] x", body, k=mask)) == {}
    finite = np.where(np.tri(16), 0, -1e9).astype(np.float32)
    found = kept(graph_of("float[16, 16] x", body, k=finite))
    assert list(found) == ["m", "s"]
    assert "1e+09" in found["m"]


def test_the_result_does_not_depend_on_order_or_jobs():
    model = scaled(3e4, "[r] q = Relu(h)\n[n] y = Sin(q)")
    feeds = feeds_of(model, count=6)
    assert kept(model, feeds=feeds) == kept(model, feeds=feeds[::-1], jobs=3)


def test_without_samples_types_decide_and_say_so():
    progress = Silent()
    model = graph_of("float[4, 16] x", PLAIN, **WEIGHTS)
    found = float32_nodes(model, None, "float16", progress=progress)
    assert list(found) == ["n", "m", "s"]
    assert "no samples" in progress.notices[0]


def test_more_samples_than_are_measured_is_said():
    progress = Silent()
    model = graph_of("float[4, 16] x", "y = Relu(x)")
    kept(model, feeds=feeds_of(model, count=MEASURED + 1), progress=progress)
    assert str(MEASURED) in progress.notices[0]


def test_what_is_largest_is_taken_over_all_samples():
    model = graph_of("float[4, 16] x", "[e] y = Exp(x)")
    feeds = [{"x": np.full((4, 16), i / 8, np.float32)} for i in range(3 * MEASURED)]
    assert kept(model, feeds=feeds) == {}
    for outlier in range(0, len(feeds), 7):
        loud = list(feeds)
        loud[outlier] = {"x": np.full((4, 16), 11, np.float32)}
        assert list(kept(model, feeds=loud)) == ["e"]


def test_a_variance_of_two_large_numbers_loses():
    body = """
        [m] m = ReduceMean(x, last)
        [q] q = Mul(x, x)
        [s] s = ReduceMean(q, last)
        [p] p = Mul(m, m)
        [v] v = Sub(s, p)
        [r] y = Sqrt(v)
    """
    model = graph_of("float[4, 16] x", body, last=np.asarray([1]))
    feeds = [{"x": normal(1, 4, 16, scale=0.2) + np.float32(2)}]
    for dtype in HALVES:
        assert {"v", "s", "p"} <= set(kept(model, dtype, feeds))


@pytest.mark.parametrize("rest", ["[n] y = LayerNormalization(h, g)", "[n] y = Sin(h)"])
def test_keeping_helps(rest):
    """The kept nodes bring the simulated model close to the float one."""
    model = scaled(3000, rest, **({"g": np.ones(16)} if "g)" in rest else {}))
    feeds = feeds_of(model)[0]
    exact = Session(model, optimize=False).run(feeds)["y"]

    def error(nodes):
        written = model.clone()
        CastFloats(kept=nodes)(written)
        RoundFloats(dtype="float16")(written)
        found = Session(written, optimize=False).run(feeds)["y"]
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    assert error(kept(model)) < 0.01


SCORES = {
    "resnet20_cifar10": ("top1", 0.005, 0.01, 0),
    "kwt1_kws": ("top1", 0.005, 0.02, 6),
    "espcn_x3": ("psnr_y", 0.05, 1.0, 0),
}
"""Asset to its score, the margins of float16 and bfloat16, and most nodes that float16 keeps."""


def simulated(name, dtype):
    """Return the float graph and what computes the half one, with the nodes kept in float32."""
    sys.path.insert(0, str(asset()))
    try:
        from calib import SETS
    finally:
        sys.path.pop(0)
    path = asset("models", f"{name}.onnx")
    loaded = load(path, "ort-cpu", "weight-only", threads=2, dump_dir=None, progress=Silent())
    feeds = list(itertools.islice(SETS[name](), 8))
    model = loaded.model
    later = [ConvertOpset(opset=22), NameValues(), InferShapes()]
    run_passes(model, later, holds=loaded.holds)
    nodes = float32_nodes(model, InMemory(feeds), dtype, jobs=2)
    step = CastFloats(dtype=dtype, kept=nodes)
    written = model.clone()
    run_passes(written, [step, RoundFloats(dtype=dtype)], holds=loaded.holds)
    return model, written, nodes


@pytest.mark.slow
@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", SCORES)
def test_real_models_keep_their_scores(name, dtype):
    sys.path.insert(0, str(asset()))
    try:
        from score import score
    finally:
        sys.path.pop(0)
    figure, *margins, most = SCORES[name]
    model, written, nodes = simulated(name, dtype)
    assert len(nodes) <= most or dtype == "bfloat16", nodes

    def run(graph):
        session = Session(graph, threads=2)
        return score(name, lambda feed: list(session.run(feed).values()))[figure]

    exact, found = run(model), run(written)
    assert found >= exact - margins[list(HALVES).index(dtype)], (exact, found)
