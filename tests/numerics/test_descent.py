"""Codes that are settled: no single one could be better, and the error never rises."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.numerics.descent import settle
from qcompile.numerics.gptq import DAMPING, solve
from qcompile.numerics.groups import SolvedWeight, WeightFormat, round_nearest


def layer(seed, rows, columns):
    """Weights, and inputs that share a few directions."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((4 * columns + 8, 1 + columns // 8))
    inputs = common @ rng.standard_normal((1 + columns // 8, columns))
    inputs = (inputs + rng.standard_normal(inputs.shape)) * rng.uniform(0.1, 3, columns)
    return rng.standard_normal((rows, columns)), inputs


def errors(weights, solved, hessian):
    moved = weights - solved.values().astype(np.float64)
    return np.einsum("rk,rk->r", moved @ hessian, moved)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 999),
    st.integers(1, 70),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
    st.booleans(),
)
def test_no_single_code_could_be_better(seed, columns, bits, symmetric, scaled):
    weights, inputs = layer(seed, 3, columns)
    hessian, form = inputs.T @ inputs, WeightFormat(bits, 16, symmetric)
    scale = np.exp2(np.random.default_rng(seed).integers(-2, 3, columns)).astype(np.float32)
    plain = round_nearest(weights * scale if scaled else weights, form)
    plain = SolvedWeight(
        form, plain.codes, plain.scales, plain.zeros, input_scale=scale if scaled else None
    )
    found = settle(weights, plain, hessian)
    assert found.scales is plain.scales
    assert found.codes.max() <= form.high
    best = errors(weights, found, hessian)
    assert (best <= errors(weights, plain, hessian) * (1 + 1e-6)).all()
    if (settle(weights, found, hessian).codes != found.codes).any():
        return  # it stopped after its last sweep
    for column in range(columns):
        for step in (-1, 1):
            codes = found.codes.astype(int)
            codes[:, column] = np.clip(codes[:, column] + step, 0, form.high)
            other = SolvedWeight(
                form, codes.astype(np.uint8), plain.scales, plain.zeros, None, found.input_scale
            )
            assert (errors(weights, other, hessian) >= best * (1 - 1e-5)).all()


def test_gptqs_codes_gain_on_inputs_that_were_not_seen():
    weights, inputs = layer(1, 64, 128)
    seen, held = inputs[::2], inputs[1::2]
    hessian = seen.T @ seen
    plain = solve(weights, hessian, WeightFormat(3, 32))
    found = settle(weights, plain, hessian, damping=DAMPING)
    judged = [errors(weights, one, held.T @ held).sum() for one in (plain, found)]
    assert judged[1] < 0.99 * judged[0]


def test_columns_without_input_keep_their_codes():
    weights = np.random.default_rng(0).standard_normal((4, 32))
    plain = round_nearest(weights, WeightFormat(3, 16))
    np.testing.assert_array_equal(settle(weights, plain, np.zeros((32, 32))).codes, plain.codes)
