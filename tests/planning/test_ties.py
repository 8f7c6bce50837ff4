"""Branches of a Concat share its grid where nobody else reads them, and nowhere else."""

import numpy as np
import pytest

from qcompile.planning.select import select
from qcompile.planning.switchboard import Switchboard
from qcompile.planning.wishes import Wishes
from qcompile.samples import InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.test_planner import floats, made, pictures
from tests.planning.tools import feeds_of, graph_of, normal, quantize_graph

PICTURE = "float[1, 16, 14, 14] x"
ONE = "[c1] a = Conv(x, v)\n"
TWO = ONE + "[c2] e = Conv(x, u)\n"
END = "[c3] y = Conv(j, t)"
JOIN = "[j] j = Concat <axis=1> "
WEIGHTS = {
    "v": normal(1, 16, 16, 1, 1),
    "u": normal(2, 16, 16, 1, 1, scale=3),
    "t": normal(3, 16, 32, 1, 1),
    "s": normal(4, 16, 48, 1, 1),
    "k": np.abs(normal(5, 1, 16, 14, 14)),
    "zero": np.zeros((), np.float32),
    "two": np.full((), 2, np.float32),
    "six": np.full((), 6, np.float32),
    "halves": np.array([8, 8], np.int64),
}
CASES = {
    "plain branches": (TWO + JOIN + "(a, e)\n" + END, {"a": "j", "e": "j"}),
    "branches behind Relu": (
        TWO + "[r1] p = Relu(a)\n[r2] q = Relu(e)\n" + JOIN + "(p, q)\n" + END,
        {"p": "j", "q": "j"},
    ),
    "one Relu: it needs a grid from 0": (
        TWO + "[r1] p = Relu(a)\n" + JOIN + "(p, e)\n" + END,
        {"e": "j"},
    ),
    "two bounds": (
        TWO
        + "[r1] p = Clip(a, zero, six)\n[r2] q = Clip(e, zero, two)\n"
        + JOIN
        + "(p, q)\n"
        + END,
        {},
    ),
    "equal bounds": (
        TWO
        + "[r1] p = Clip(a, zero, two)\n[r2] q = Clip(e, zero, two)\n"
        + JOIN
        + "(p, q)\n"
        + END,
        {"p": "j", "q": "j"},
    ),
    "a branch with another reader": (
        TWO + JOIN + "(a, e)\n[n] z = Exp(e)\n" + END,
        {"a": "j"},
    ),
    "a branch that is twice in it": (ONE + JOIN + "(a, a)\n" + END, {"a": "j"}),
    "a constant branch": (ONE + JOIN + "(a, k)\n" + END, {"a": "j"}),
    "a constant branch beside a Relu": (
        ONE + "[r1] p = Relu(a)\n" + JOIN + "(p, k)\n" + END,
        {},
    ),
    "pools of a branch": (
        TWO
        + "[m] m = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (e)\n"
        + JOIN
        + "(a, e, m)\n[c3] y = Conv(j, s)",
        {"a": "j", "e": "j", "m": "j"},
    ),
    "half of a branch": (
        "[c1] a = Conv(x, v)\n[p] p, q = Split <axis=1> (a, halves)\n[c2] e = Conv(x, u)\n"
        + JOIN
        + "(p, e)\n[c3] y = Conv(j, h)\n[c4] z = Conv(q, g)",
        {"p": "a", "q": "a", "e": "j"},
    ),
    "one Concat in another": (
        TWO
        + JOIN
        + "(a, e)\n[c5] b = Conv(x, v)\n[l] l = Concat <axis=1> (j, b)\n[c3] y = Conv(l, s)",
        {"a": "l", "e": "l", "j": "l", "b": "l"},
    ),
    "a Concat of Relus in another": (
        TWO
        + "[r1] p = Relu(a)\n[r2] q = Relu(e)\n"
        + JOIN
        + "(p, q)\n[c5] b = Conv(x, v)\n[l] l = Concat <axis=1> (j, b)\n[c3] y = Conv(l, s)",
        {"p": "j", "q": "j", "b": "l"},
    ),
    "a Concat that absorbs a Relu": (
        TWO + "[j] i = Concat <axis=1> (a, e)\n[r] j = Relu(i)\n" + END,
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ties_and_the_kernels_behind_them(case):
    body, ties = CASES[case]
    more = {"h": normal(6, 16, 24, 1, 1), "g": normal(7, 16, 8, 1, 1)}
    weights = {n: w for n, w in {**WEIGHTS, **more}.items() if f" {n})" in body or f" {n}," in body}
    outputs = "y, z" if "] z =" in body else "y"
    model = graph_of(PICTURE, body, outputs, **weights)
    assert select(model, ORT_CPU, "int8", Wishes()).tied == ties
    quantized = quantize_graph(model, samples=feeds_of(model, 4))
    assert not quantized.missing()
    grids = quantized.plan.tensors
    for name, source in ties.items():
        assert (grids[name].scale, grids[name].zero_point) == (
            grids[source].scale,
            grids[source].zero_point,
        )


def test_an_exported_branch_keeps_its_grid():
    model = graph_of(PICTURE, TWO + JOIN + "(a, e)\n" + END, "y, e", **_used("v", "u", "t"))
    assert select(model, ORT_CPU, "int8", Wishes()).tied == {"a": "j"}


def test_a_branch_is_rounded_once():
    model = graph_of(PICTURE, TWO + JOIN + "(a, e)\n" + END, "y", **_used("v", "u", "t"))
    samples = feeds_of(model, 1)
    quantized = quantize_graph(model, samples=samples)
    values = {v.name: v for node in quantized.model.graph for v in node.outputs}
    tapped = ("a", "e", "j.quantized")
    quantized.model.graph.outputs.extend(values[name] for name in tapped)
    found = quantized.run(samples[0], optimize=False)
    grid = quantized.plan.tensors["j"]
    raw = np.concatenate([found["a"], found["e"]], axis=1)
    steps = np.rint(raw / np.float32(grid.scale[0])) + grid.zero_point[0]
    once = (np.clip(steps, 0, 255) - grid.zero_point[0]) * np.float32(grid.scale[0])
    np.testing.assert_allclose(found["j.quantized"], once, rtol=1e-6)


def test_tied_branches_are_still_measured():
    model = graph_of(PICTURE, TWO + JOIN + "(a, e)\n" + END, "y", **_used("v", "u", "t"))
    quantized = quantize_graph(model, samples=feeds_of(model, 2))
    samples = InMemory(feeds_of(model, 2))
    types = ORT_CPU.types("int8", "vnni")
    board = Switchboard(model, quantized.selection, quantized.plan, types, {}, samples, 1)
    assert sorted(board.units) == ["c1", "c2", "c3", "j"]
    assert board.tensors["j"] == board.tensors["c3"] == ["j"]
    assert board.noise({"x": (-4.0, 4.0), "j": (-50.0, 50.0)}, ["j"]) > 0


POOLED = """
[m] j = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (p)
"""
JOINED = """
[c9] b = Conv <pads=[1,1,1,1]> (x, w1)
[r9] q = Relu(b)
[j] j = Concat <axis=1> (p, q)
"""


@pytest.mark.parametrize(
    ("between", "untied"), [(POOLED, {"j"}), (JOINED, {"p", "q"})], ids=["pooled", "joined"]
)
def test_a_value_that_is_no_longer_tied_still_has_a_range(between, untied):
    """A loud Conv before it is left in float: what was tied needs a grid of its own."""
    quiet = normal(1, 16, 16, 3, 3, scale=0.1)
    quiet[:, 3] /= 3000
    weights = {"w0": quiet, "w1": normal(2, 16, 16, 3, 3, scale=0.1)}
    weights["w1"][:, 3] = 0
    weights["w2"] = normal(3, 16, 32 if "Concat" in between else 16, 3, 3, scale=0.1)
    weights["w3"] = normal(4, 16, 16, 5, 5, scale=0.1)
    weights["w4"] = normal(5, 16, 16, 5, 5, scale=0.1)
    body = f"""
    [c1] a = Conv <pads=[1,1,1,1]> (x, w0)
    [r1] p = Relu(a)
    {between}
    [c2] d = Conv <pads=[1,1,1,1]> (j, w2)
    [c3] f = Conv <pads=[2,2,2,2]> (d, w3)
    [c4] y = Conv <pads=[2,2,2,2]> (f, w4)
    """
    model = graph_of(PICTURE, body, **{n: w for n, w in weights.items() if f", {n})" in body})
    plan, _, _ = made(model, pictures(model, outlier=300.0))
    assert {"c1", "c9"} & floats(plan).keys()
    assert plan.precision("c2") == "int8"
    assert any(t.method != "tied" for name, t in plan.tensors.items() if name in untied)


def _used(*names: str) -> dict[str, np.ndarray]:
    return {name: WEIGHTS[name] for name in names}
