"""Grids: 0.0 is a code, the range is covered, and rounding is what ONNX QuantizeLinear does."""

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from qcompile.numerics.grids import (
    CODE_RANGE,
    TINY,
    affine_grid,
    code_dtype,
    dequantize,
    quantize,
    rounded_scales,
    symmetric_grid,
    symmetric_scales,
)

TYPES = {"uint8": (0, 255), "int8": (-128, 127)}
REALS = st.floats(-(2.0**100), 2.0**100, width=32)
EDGES = st.tuples(REALS, REALS).map(sorted)


@given(EDGES, st.sampled_from(list(TYPES)))
def test_affine_grid_covers_the_range_and_zero(edges, kind):
    low, high = edges
    first, last = TYPES[kind]
    scale, zero = affine_grid(low, high, first, last)
    assert scale > 0
    assert scale == np.float32(scale)
    assert isinstance(zero, int)
    assert first <= zero <= last, "0.0 is a code exactly"
    slack = scale * (0.5 + 1e-4)
    assert scale * (first - zero) <= min(low, 0.0) + slack
    assert scale * (last - zero) >= max(high, 0.0) - slack


@given(st.floats(2.0**-60, 2.0**100, width=32), st.sampled_from(list(TYPES)))
def test_one_sided_ranges_have_zero_at_the_outermost_code(edge, kind):
    first, last = TYPES[kind]
    assert affine_grid(0.0, edge, first, last)[1] == first, "Relu vanishes into the rounding"
    assert affine_grid(edge / 2, edge, first, last) == affine_grid(0.0, edge, first, last)
    assert affine_grid(-edge, 0.0, first, last)[1] == last


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("edges", [(0.0, 0.0), (-1e-45, 1e-45), (0.0, 1e-40), (-1e-40, 0.0)])
def test_degenerate_ranges_round_to_zero_without_a_fault(kind, edges):
    scale, zero = affine_grid(*edges, *TYPES[kind])
    assert scale == 1.0
    values = np.asarray(edges, np.float32)
    codes = quantize(values, np.float32(scale), np.asarray(zero), None, kind)
    assert (dequantize(codes, np.float32(scale), np.asarray(zero), None) == 0).all()


@given(st.data(), st.sampled_from(list(TYPES)), st.floats(2**-60, 2**60, width=32))
def test_grid_values_survive_a_round_trip(data, kind, scale):
    first, last = TYPES[kind]
    zero = np.asarray(data.draw(st.integers(first, last)))
    codes = np.arange(first, last + 1).astype(kind)
    values = dequantize(codes, np.float32(scale), zero, None)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(quantize(values, np.float32(scale), zero, None, kind), codes)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=REALS),
    st.sampled_from([63, 127]),
    st.data(),
)
def test_symmetric_scales_fit_each_channel(weight, high, data):
    axis = data.draw(st.sampled_from([None, *range(weight.ndim)]))
    scales = symmetric_scales(weight, axis, high)
    assert scales.dtype == np.float32
    assert scales.shape == ((1,) if axis is None else (weight.shape[axis],))
    channels = [weight] if axis is None else np.moveaxis(weight, axis, 0)
    for channel, scale in zip(channels, scales, strict=True):
        largest = np.abs(channel).max()
        assert scale >= TINY
        if largest / high >= TINY:
            np.testing.assert_allclose(scale, largest / high, rtol=1e-6)
        else:
            assert scale == (scales.max() if np.abs(weight).max() / high >= TINY else 1.0)
    codes = quantize(weight, scales, np.zeros(scales.shape, np.int8), axis, "int8")
    assert np.abs(codes.astype(int)).max() <= high, "the fitted scale never saturates"


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 6)),
        elements=st.floats(-(2.0**20), 2.0**20, width=32),
    ),
    st.sampled_from(list(TYPES)),
    st.integers(0, 1),
    st.integers(0, 999),
)
def test_quantize_is_the_quantize_linear_of_onnx_runtime(values, kind, axis, seed):
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.integers(-8, 9, values.shape[axis])).astype(np.float32)
    zero = rng.integers(*TYPES[kind], values.shape[axis]).astype(kind)
    expected = reference(values, scale, zero, axis)
    np.testing.assert_array_equal(quantize(values, scale, zero, axis, kind), expected)


def test_halves_round_to_even():
    values = np.asarray([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    codes = quantize(values, np.float32(1), np.asarray(0), None, "int8")
    assert codes.tolist() == [-2, -2, 0, 0, 2, 2]
    np.testing.assert_array_equal(
        codes, reference(values[None], np.ones(1, np.float32), np.zeros(1, np.int8), 0)[0]
    )


# -- FP8 -------------------------------------------------------------------------------------

E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
"""What each code stands for, of the type's definition (arXiv:2209.05433, table 1)."""
NUMBERS = np.unique(E4M3[np.isfinite(E4M3)])


def fp8(values: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return FP8 codes as numbers."""
    codes = quantize(values, np.float32(scale), np.asarray(0), None, "float8e4m3fn")
    assert codes.dtype == code_dtype("float8e4m3fn") == ml_dtypes.float8_e4m3fn
    return codes.astype(np.float64)


def test_fp8_ends_where_its_table_says():
    assert (NUMBERS.min(), NUMBERS.max()) == CODE_RANGE["float8e4m3fn"] == (-448, 448)
    np.testing.assert_array_equal(fp8(NUMBERS), NUMBERS)


@given(hnp.arrays(np.float32, 20, elements=st.floats(-600, 600, width=32)))
def test_fp8_codes_are_the_nearest_numbers_half_to_even(values):
    found = fp8(values)
    distances = np.abs(values.astype(np.float64)[:, None] - NUMBERS)
    np.testing.assert_array_equal(np.abs(found - values), distances.min(axis=1))


def test_fp8_ties_go_to_the_even_code():
    between = (NUMBERS[:-1] + NUMBERS[1:]) / 2
    even = {float(E4M3[code]) for code in range(256) if code % 2 == 0}
    found = fp8(between.astype(np.float32))
    assert all(number in even for number in found)
    for end, numbers in ((np.inf, NUMBERS[1:]), (-np.inf, NUMBERS[:-1])):
        beside = np.nextafter(between.astype(np.float32), np.float32(end))
        np.testing.assert_array_equal(fp8(beside), numbers)


def test_fp8_saturates_and_keeps_nan():
    found = fp8(np.asarray([np.inf, 1e9, 464, 449, -464, -np.inf, np.nan], np.float32))
    assert found[:-1].tolist() == [448, 448, 448, 448, -448, -448]
    assert np.isnan(found[-1])


@given(hnp.arrays(np.float32, (2, 9), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_fp8_is_the_quantize_linear_of_onnx_runtime(values):
    scale = np.asarray([0.5, 16], np.float32)  # powers of two: the division is exact
    zero = np.zeros(2, ml_dtypes.float8_e4m3fn)
    codes = quantize(values, scale, zero, 0, "float8e4m3fn")
    np.testing.assert_array_equal(
        dequantize(codes, scale, zero, 0), reference_fp8(values, scale), strict=True
    )


def reference_fp8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Round and restore in ONNX Runtime, with codes of FP8 in between."""
    kind, float_ = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0),
    ]
    inputs = [
        helper.make_tensor_value_info("x", float_, values.shape),
        helper.make_tensor_value_info("s", float_, scale.shape),
    ]
    output = helper.make_tensor_value_info("y", float_, values.shape)
    zero = helper.make_tensor("z", kind, scale.shape, [0.0] * scale.size)
    graph = helper.make_graph(nodes, "g", inputs, [output], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": values, "s": scale})[0]


# -- symmetric grids, and scales in half precision -------------------------------------------


@given(EDGES, st.sampled_from([127, 448]))
def test_a_symmetric_grid_covers_the_range_with_0_in_the_middle(edges, high):
    low, top = edges
    scale, zero = symmetric_grid(low, top, high)
    assert zero == 0
    assert scale == np.float32(scale)
    assert scale > 0
    largest = max(-low, top, 0.0)
    if largest / high >= TINY:
        np.testing.assert_allclose(scale * high, largest, rtol=1e-6)
    else:
        assert scale == 1.0
    assert symmetric_grid(-top, -low, high) == (scale, zero)


HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@given(
    hnp.arrays(np.float32, 8, elements=st.floats(float(np.float32(TINY)), 2.0**100, width=32)),
    st.sampled_from(list(HALVES)),
)
def test_rounded_scales_are_numbers_of_the_type_or_too_large_for_it(scales, dtype):
    found = rounded_scales(scales, dtype)
    assert found.dtype == np.float32
    assert (found > 0).all()
    assert np.isfinite(found).all()
    largest = float(ml_dtypes.finfo(HALVES[dtype]).max)
    beyond = found > largest
    np.testing.assert_array_equal(found[beyond], scales[beyond])
    kept = found[~beyond]
    np.testing.assert_array_equal(kept.astype(HALVES[dtype]).astype(np.float32), kept)
    least = 2.0**-17 if dtype == "float16" else 0.0
    near = np.maximum(scales[~beyond], np.float32(least))
    np.testing.assert_allclose(kept, near, rtol=2.0**-8)
    np.testing.assert_array_equal(rounded_scales(found, dtype), found)


def test_rounded_scales_of_float32_stay():
    scales = np.asarray([TINY, 1 / 3, 1e30], np.float32)
    np.testing.assert_array_equal(rounded_scales(scales, "float32"), scales)
    assert rounded_scales(np.asarray(1e-9), "float16") == 2.0**-17
    assert rounded_scales(np.asarray(65504.0), "float16") == 65504
    assert rounded_scales(np.asarray(1e5), "float16") == 1e5, "beyond: its node stays in float32"


def reference(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray:
    """Run QuantizeLinear of ONNX Runtime."""
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis)
    kind = helper.np_dtype_to_tensor_dtype(zero.dtype)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, scale.shape),
        helper.make_tensor_value_info("z", kind, zero.shape),
    ]
    output = helper.make_tensor_value_info("y", kind, values.shape)
    graph = helper.make_graph([node], "g", inputs, [output])
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values, "s": scale, "z": zero})[0]
