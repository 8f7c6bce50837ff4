"""Biases moved through a Relu: golden cases, exact where the Relu never acts, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PlanError
from qcompile.passes.absorb_bias import AbsorbBias
from qcompile.remedies import Remedies, Shifted
from tests.passes.tools import random_feeds, relative_l2, session
from tests.planning.tools import graph_of, normal


def shifting(value: str, amounts: np.ndarray) -> AbsorbBias:
    shifted = Shifted(shift=[float(c) for c in amounts.astype(np.float32)])
    return AbsorbBias(remedies=Remedies(shifted={value: shifted}))


C = 8
SHAPES = {
    "dense": ("v = Relu(p)\n[y] y = Conv(v, u, d)", (6, C, 1, 1), 6),
    "without bias": ("v = Relu(p)\n[y] y = Conv(v, u)", (6, C, 1, 1), 6),
    "grouped": ("v = Relu(p)\n[y] y = Conv <group=4> (v, u, d)", (12, C // 4, 3, 3), 12),
    "depthwise": ("v = Relu(p)\n[y] y = Conv <group=8> (v, u, d)", (C, 1, 3, 3), C),
}


@given(st.integers(0, 999), st.sampled_from(sorted(SHAPES)))
def test_a_shift_below_all_values_changes_nothing(seed, case):
    """The Relu passes everything on, so that the equation is exact."""
    body, shape, outputs = SHAPES[case]
    used = {"d": normal(seed + 3, outputs)} if "d)" in body else {}
    model = graph_of(
        "float[2, 3, 6, 6] x",
        f"[p] p = Conv <pads=[1, 1, 1, 1]> (x, w, b)\n[v] {body}",
        w=normal(seed, C, 3, 3, 3, scale=0.1),
        b=np.abs(normal(seed + 1, C)) + 20,
        u=normal(seed + 2, *shape),
        **used,
    )
    feeds = random_feeds(model, seed)
    before = session(model).run(None, feeds)
    step = shifting("v", np.random.default_rng(seed).uniform(0, 10, C))
    assert step(model).modified
    assert relative_l2(before, session(model).run(None, feeds)) < 1e-5
    assert not step.refusals


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_behind_gemm(transposed):
    model = graph_of(
        "float[5, 3] x",
        f"[p] p = Gemm(x, w, b)\n[v] v = Relu(p)\n[y] y = Gemm <transB={transposed}> (v, u)",
        w=normal(0, 3, C, scale=0.1),
        b=np.full(C, 20, np.float32),
        u=normal(1, *((4, C) if transposed else (C, 4))),
    )
    feeds = random_feeds(model)
    before = session(model).run(None, feeds)
    assert shifting("v", np.arange(C) + 1.0)(model).modified
    assert relative_l2(before, session(model).run(None, feeds)) < 1e-5


CONV = "[p] p = Conv(x, w, b)\n"
LEFT = {
    "no relu": ("[v] v = Tanh(p)\n[y] y = Conv(v, u)", "Tanh makes it: a Relu alone"),
    "relu6": ("[v] v = Clip(p)\n[y] y = Conv(v, u)", "Clip makes it: a Relu alone"),
    "read before": ("[v] v = Relu(p)\n[c] q = Conv(v, u)\n[y] y = Add(p, q)", "alone makes"),
    "padded": ("[v] v = Relu(p)\n[y] y = Conv <pads=[1, 0, 0, 0]> (v, u)", "pads it with zeros"),
    "same": ('[v] v = Relu(p)\n[y] y = Conv <auto_pad="SAME_UPPER"> (v, u)', "pads it with zeros"),
    "another reader": ("[v] v = Relu(p)\n[c] q = Conv(v, u)\n[y] y = Add(v, q)", "others than"),
    "an output": ("[v] y = Relu(p)\n[c] q = Conv(y, u)", "an output of the model"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_a_shift_would_change_is_left(case):
    body, reason = LEFT[case]
    model = graph_of("float[2, 4, 5, 5] x", CONV + body, w=normal(0, 4, 4, 1, 1), b=normal(1, 4),
                     u=normal(2, 4, 4, 1, 1))  # fmt: skip
    step = shifting("y" if case == "an output" else "v", np.ones(4))
    assert not step(model).modified
    (found,) = step.refusals
    assert reason in found


def test_a_plan_that_does_not_fit_is_an_error():
    body = CONV + "[v] v = Relu(p)\n[y] y = Conv(v, u)"
    weights = {"w": normal(0, 4, 4, 1, 1), "b": normal(1, 4), "u": normal(2, 4, 4, 1, 1)}
    for step, message in (
        (shifting("gone", np.ones(4)), "no node of the graph makes value gone"),
        (shifting("v", np.ones(3)), "value v has 4 channels, not 3"),
    ):
        with pytest.raises(Exception, match=message) as caught:
            step(graph_of("float[2, 4, 5, 5] x", body, **weights))
        assert isinstance(caught.value.__cause__ or caught.value, PlanError)
