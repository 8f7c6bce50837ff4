"""Rounding in training: forward as the codes, backward as the papers say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.qat import library  # noqa: F401 (skips without torch)

import torch  # isort: skip

from qcompile.numerics.grids import dequantize, quantize, rounded_scales, symmetric_scales
from qcompile.qat.fake_quant import (
    ActivationFakeQuant,
    BiasFakeQuant,
    WeightFakeQuant,
    channel_scale,
    stored,
)

NUMBERS = st.floats(-8, 8, width=32)


def rounding(scale, zero, codes, *, learned=False, scale_type="float32"):
    return ActivationFakeQuant(
        torch.tensor([scale]),
        torch.tensor([zero]),
        codes,
        learned=learned,
        scale_type=scale_type,
    )


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.floats(2**-6, 1, width=32), st.booleans())
def test_activations_round_as_the_engine_does(values, scale, learned):
    values = np.asarray(values, np.float32)
    near_tie = np.abs(values / np.float32(scale) % 1 - 0.5) < 1e-3
    found = rounding(scale, 3, (0, 255), learned=learned)(torch.from_numpy(values[None]))
    codes = quantize(values, np.float32(scale), np.int64(3), None, "uint8")
    wanted = dequantize(codes, np.float32(scale), np.int64(3), None)
    np.testing.assert_allclose(
        found.detach()[0][~near_tie], wanted[~near_tie], rtol=1e-5, atol=1e-6
    )


@given(st.lists(NUMBERS, min_size=2, max_size=12), st.floats(0.125, 1, width=32))
def test_learned_scale_has_the_gradient_of_lsq(values, scale):
    """Equation 3 of arXiv:1902.08153, times 1 / sqrt(N Q) of section 2.2, by hand."""
    x = torch.tensor([values, values], requires_grad=True)
    fake = rounding(scale, 0, (-8, 7), learned=True)
    fake(x).sum().backward()
    ratio = (x.detach() / scale).double()
    inside = (ratio > -8) & (ratio < 7)
    slope = torch.where(inside, ratio.round() - ratio, ratio.round().clamp(-8, 7))
    wanted = slope.sum() / (len(values) * 7) ** 0.5
    torch.testing.assert_close(fake.scale.grad[0].double(), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x.grad, inside.float())


def test_learned_weight_scales_have_one_gradient_a_channel():
    weight = torch.tensor([[0.1, -0.7], [2.0, 0.3]], requires_grad=True)
    fake = WeightFakeQuant(weight, 0, 7, learned=True, scale_type="float32")
    scale = fake.scale.detach().clone()
    fake(weight).sum().backward()
    ratio = weight.detach() / scale[:, None]
    slope = torch.where(ratio.abs() < 7, ratio.round() - ratio, ratio.round().clamp(-7, 7))
    torch.testing.assert_close(fake.scale.grad, slope.sum(1) / (2 * 7) ** 0.5)


def test_a_scale_that_falls_below_zero_comes_back():
    fake = rounding(0.5, 0, (0, 255), learned=True)
    with torch.no_grad():
        fake.scale.fill_(-0.25)
    assert torch.equal(fake(torch.tensor([[1.1]])), torch.tensor([[1.0]]))
    assert fake.calculate_qparams()[0] > 0


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_weight_scales_are_those_of_the_planner(rows):
    weight = np.asarray(rows, np.float32)
    share = torch.ones(len(rows))
    found = channel_scale(torch.from_numpy(weight), 0, 127, share)
    np.testing.assert_allclose(found, symmetric_scales(weight, 0, 127), rtol=1e-6)


@given(st.floats(2**-20, 2**10, width=32), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_scales_are_stored_as_the_planner_stores_them(scale, kind):
    assert stored(torch.tensor([scale]), kind)[0] == rounded_scales(np.asarray([scale]), kind)[0]


def test_few_bits_begin_with_the_least_squared_error():
    weight = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    fake = WeightFakeQuant(weight, 0, 7, learned=False, scale_type="float32")
    widest = channel_scale(weight, 0, 7, torch.ones(3))
    plain = (weight / widest[:, None]).round() * widest[:, None]
    error, before = ((fake(weight) - weight).square().sum(), (plain - weight).square().sum())
    assert error < 0.8 * before
    assert (fake.share < 1).all()


def test_bias_has_the_step_of_the_products():
    data = rounding(0.25, 0, (0, 15))
    weight = WeightFakeQuant(
        torch.tensor([[7.0], [3.5]]), 0, 7, learned=False, scale_type="float32"
    )
    bias = torch.tensor([1.1, 0.2], requires_grad=True)
    found = BiasFakeQuant(data, weight)(bias)
    steps = torch.tensor([0.25 * 1.0, 0.25 * 0.5])
    torch.testing.assert_close(found, (bias.detach() / steps).round() * steps)
    found.sum().backward()
    assert torch.equal(bias.grad, torch.ones(2))
