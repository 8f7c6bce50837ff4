"""Grids of other tools: what they stand for, and the same values in other codes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.numerics.grids import CODE_RANGE, dequantize, quantize
from qcompile.numerics.regrid import RANGES, Grid, shifted
from qcompile.planning.given import KEPT, RETARGETED, activation, weight
from qcompile.planning.tensors import weight_plan
from qcompile.targets.target import Types

SCALES = st.floats(2**-13, 8.0, width=32)
U8 = Types("uint8", "int8", reduce_range=False, why="x86")
S8 = Types("int8", "int8", reduce_range=False, why="arm")
SYMMETRIC = Types("int8", "int8", reduce_range=False, why="TensorRT", symmetric=True)
FP8 = Types("float8e4m3fn", "float8e4m3fn", reduce_range=False, why="TensorRT", symmetric=True)


def grid(kind: str, scale: float, zero: int = 0) -> Grid:
    return Grid(kind, np.asarray(scale, np.float32), np.asarray(zero, np.int64))


@given(scale=SCALES, zero=st.integers(0, 255))
@settings(max_examples=30)
def test_uint8_and_int8_are_one_grid(scale: float, zero: int) -> None:
    codes = np.arange(256)
    old = grid("uint8", scale, zero).values(codes)
    plan, change = activation(grid("uint8", scale, zero), S8, positive=False)
    new = dequantize((codes - 128).astype(np.int8), plan.scales(), plan.zero_points(), None)
    assert (change, plan.method) == (None, KEPT)
    assert np.array_equal(old, new)
    back = shifted(grid("int8", plan.scale[0], plan.zero_point[0]), "uint8")
    assert back == (float(np.float32(scale)), zero)


@given(
    kind=st.sampled_from(["uint8", "int8", "uint16", "int16", "uint4", "float8e4m3fn"]),
    scale=SCALES,
    share=st.floats(0, 1),
    target=st.sampled_from([U8, S8, SYMMETRIC, FP8]),
    positive=st.booleans(),
)
@settings(max_examples=80)
def test_another_grid_covers_the_same_range(
    kind: str, scale: float, share: float, target: Types, positive: bool
) -> None:
    """Every value is at most half a new step off, at the ends a step: zero points are whole."""
    low, high = RANGES[kind]
    zero = 0 if "float" in kind else round(low + share * (high - low))
    source = grid(kind, scale, zero)
    plan, change = activation(source, target, positive=positive and not target.symmetric)
    assert (plan.method == RETARGETED) == (change is not None)
    bottom, top = source.bounds()
    bottom = max(bottom, 0.0) if positive and not target.symmetric else bottom
    values = np.linspace(bottom, top, 500).astype(np.float32)
    form = plan.scales(), plan.zero_points(), None
    off = np.abs(dequantize(quantize(values, *form, plan.type), *form) - values)
    step = plan.scale[0]
    if target is FP8:  # three bits behind the point; below the least normal, halves of 2**-9
        assert (off <= np.maximum(np.abs(values) / 16, step * 2**-9) * 1.001).all()
    else:
        assert off.max() <= step * 1.001
        assert np.quantile(off, 0.95) <= step * 0.51
    if change is not None and target is SYMMETRIC and kind in CODE_RANGE and kind != "float8e4m3fn":
        assert 1.0 < (change.steps or 0) <= 255 / 127 * 1.001


@given(
    kind=st.sampled_from(["uint4", "int4", "uint2", "int2"]),
    scale=SCALES,
    share=st.floats(0, 1),
    target=st.sampled_from([U8, S8, SYMMETRIC]),
    positive=st.booleans(),
)
def test_values_of_few_bits_are_values_of_eight(
    kind: str, scale: float, share: float, target: Types, positive: bool
) -> None:
    """Up to the last bit of the scale; without a symmetric type, the ends are the same, too."""
    low, high = RANGES[kind]
    zero = low if positive else round(low + share * (high - low))
    source = grid(kind, scale, zero)
    values = source.values(np.arange(low, high + 1))
    plan, change = activation(source, target, positive=positive)
    form = plan.scales(), plan.zero_points(), None
    codes = quantize(values, *form, plan.type)
    np.testing.assert_allclose(dequantize(codes, *form), values, rtol=1e-6)
    assert change is not None
    assert change.what.endswith("the same values and those between")
    steps = np.diff(codes.astype(int))
    assert (steps == round(1 / (change.steps or 1))).all()
    if not target.symmetric:
        assert (codes[0], codes[-1]) == CODE_RANGE[plan.type]


@given(
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["int8", "int4", "uint8"]),
)
@settings(max_examples=40)
def test_codes_of_weights_stay(axis: int, seed: int, kind: str) -> None:
    """int8 and int4 always; uint8 where what is left of the zero point fits into int8."""
    rng = np.random.default_rng(seed)
    low, high = RANGES[kind]
    codes = rng.integers(low, high + 1, (5, 7))
    count = codes.shape[axis]
    zero = rng.integers(0, 256, count) if kind == "uint8" else np.zeros(count, np.int64)
    scale = rng.uniform(0.001, 2, count).astype(np.float32)
    source = Grid(kind, scale, zero, axis)
    values = source.values(codes)
    plan, change = weight(source, values, axis, S8, weight_plan(values, axis, S8))
    shifts = codes - source.spread(codes.shape)[1]
    fits = shifts.min() >= -128 and shifts.max() <= 127
    assert (change is None) == fits
    if fits:
        form = plan.scales(), plan.zero_points(), plan.axis
        assert np.array_equal(quantize(values, *form, plan.type), shifts)
        assert np.array_equal(plan.scales(), scale)


def test_scales_in_half_precision_keep_the_codes() -> None:
    half = Types("int8", "int8", reduce_range=False, why="", symmetric=True, scale="float16")
    source = Grid("int8", np.array([0.1, 0.3], np.float32), np.zeros(2, np.int64), 0)
    codes = np.array([[127, -128], [3, -127]])
    values = source.values(codes)
    plan, change = weight(source, values, 0, half, weight_plan(values, 0, half))
    assert change is not None
    assert "float16" in change.what
    assert plan.scale == [float(np.float16(0.1)), float(np.float16(0.3))]
    assert np.array_equal(
        quantize(values, plan.scales(), plan.zero_points(), 0, "int8"), codes.clip(-128, 127)
    )
    tiny = Grid("int8", np.array([1e-7, 0.3], np.float32), np.zeros(2, np.int64), 0)
    plan, change = weight(tiny, tiny.values(codes), 0, half, weight_plan(values, 0, half))
    assert change is not None
    assert "lose codes" in change.what


def test_seven_bits_are_asked_for() -> None:
    seven = Types("uint8", "int8", reduce_range=True, why="avx2")
    source = Grid("int8", np.ones(2, np.float32), np.zeros(2, np.int64), 0)
    for largest, kept in ((63, True), (64, False)):
        values = source.values(np.array([[largest, 1], [2, 3]]))
        plan, change = weight(source, values, 0, seven, weight_plan(values, 0, seven))
        assert (change is None) == kept == (plan.method == KEPT)


def test_values_that_left_their_grid_get_another() -> None:
    source = Grid("int8", np.ones(2, np.float32), np.zeros(2, np.int64), 0)
    values = np.array([[1.5, 1.0], [2.0, 3.0]], np.float32)  # a batch norm was folded into it
    plan, change = weight(source, values, 0, S8, weight_plan(values, 0, S8))
    assert change is not None
    assert plan.method == RETARGETED


@pytest.mark.parametrize("axis", [0, 1])
def test_groups(axis: int) -> None:
    scale = np.array([[1.0, 2.0], [4.0, 8.0]], np.float32)
    zero = np.array([[0, 1], [2, 3]])
    codes = np.arange(12).reshape((6, 2) if axis == 0 else (2, 6)) - 4
    found = Grid("int4", scale, zero, axis, block=3).values(codes.astype(ml_dtypes.int4))
    steps, shifts = (np.repeat(a, 3, axis) for a in (scale, zero))
    assert np.array_equal(found, (codes - shifts) * steps)
