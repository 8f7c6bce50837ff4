"""SiLU between convolutions: one operator, with the numbers of the two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.passes.fuse_silu import FuseSilu
from tests.passes.tools import check_equivalent
from tests.planning.tools import graph_of, normal, quantize_graph

PICTURE = "float[1, 16, 12, 12] x"
BODY = "[c] a = Conv(x, v, b)\n[s] g = Sigmoid(a)\n[m] q = Mul({factors})\n[d] y = Conv(q, w)"
WEIGHTS = {"v": normal(1, 16, 16, 3, 3), "b": normal(2, 16), "w": normal(3, 16, 16, 1, 1)}


FACTORS = ["a, g", "g, a"]


@given(
    st.sampled_from(FACTORS),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 999),
)
def test_one_operator_computes_the_same(factors, shape, seed):
    body = f"[e] a = Mul(x, k)\n[s] g = Sigmoid(a)\n[m] y = Mul({factors})"
    model = graph_of(f"float{shape} x", body, k=normal(seed, *shape, scale=5))
    check_equivalent(model, FuseSilu(), changes=True)


@pytest.mark.parametrize("factors", FACTORS)
def test_fuses_and_keeps_both_convs_in_int8(factors):
    model = graph_of(PICTURE, BODY.format(factors=factors), **WEIGHTS)
    assert FuseSilu()(model).modified
    done = quantize_graph(model)
    assert done.precision()["c"] == done.precision()["d"] == "int8"
    assert not done.missing()
    assert done.engine_error() < 0.03


def test_leaves_a_gate_that_others_read_and_says_so():
    body = "[s] g = Sigmoid(x)\n[m] q = Mul(x, g)\n[a] y = Add(q, g)"
    step = FuseSilu()
    assert not step(graph_of("float[2, 3] x", body)).modified
    assert step.refusals == {"its Sigmoid has other readers": 1}


@pytest.mark.parametrize(
    "body",
    [
        "[s] g = Sigmoid(z)\n[m] y = Mul(x, g)",
        "[s] g = Sigmoid(x)\n[m] y = Div(x, g)",
        "[s] g = Tanh(x)\n[m] y = Mul(x, g)",
    ],
)
def test_leaves_what_is_no_silu(body):
    step = FuseSilu()
    assert not step(graph_of("float[2, 3] x, float[2, 3] z", body)).modified
    assert not step.refusals
