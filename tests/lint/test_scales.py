"""L11 to L15, L27, L45: the shape of a scale, where it comes from, how small it is."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.lint.rule import Setting
from tests.lint.cases import Case, Cases
from tests.lint.models import (
    BF16,
    HALF,
    Net,
    broken,
    codes,
    conv,
    found,
    fp8,
    int4,
    matmul,
    reals,
    scalar,
    steps,
    zeros,
)

RTX = Setting("tensorrt-rtx")
FEW = frozenset({"L33"})


def even(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.full(shape, 0.01, dtype)


def blocks(*scales: int, **more: object) -> ir.Model:
    """MatMul of int4 weights [64, 32] in blocks."""
    weight = {"codes": codes(64, 32, dtype=int4, limit=7), "scale": even(*scales), "axis": 0}
    return matmul(weight=weight | {"block_size": 64 // scales[0]} | more)


def weight_of(array: np.ndarray, *scales: int, **attributes: int) -> ir.Model:
    """DQ of a constant alone, added to the input."""
    net = Net()
    w = net.weight(array, even(*scales), **attributes)
    return net.model(net.op("Add", net.input(array.shape), w))


# -- per axis -----------------------------------------------------------------------------------


def too_few_scales() -> ir.Model:
    return conv(weight={"scale": steps(15)})


def no_such_axis() -> ir.Model:
    return conv(weight={"axis": 7})


def vector() -> ir.Model:
    return weight_of(codes(16), 16)  # the default axis is 1


def vector_axis_0() -> ir.Model:
    return weight_of(codes(16), 16, axis=0)


def axis_from_the_end() -> ir.Model:
    return conv(weight={"axis": -4})


def one_scale_and_any_axis() -> ir.Model:
    return conv(activation={"axis": 7})


def axis_of_old_opset() -> ir.Model:
    # Before opset 13 there was no axis: the parser takes 0.
    net = Net(12)
    return net.model(net.op("Relu", net.weight(codes(16, 3), steps(16))))


# -- blocks -------------------------------------------------------------------------------------


def two_blocked_dimensions() -> ir.Model:
    return blocks(2, 16)


def blocks_of_one() -> ir.Model:
    return blocks(64, 32)


def ragged_blocks() -> ir.Model:
    return blocks(3, 32)


def rank_too_high() -> ir.Model:
    return blocks(1, 1, 32)


def blocks_along_another_axis() -> ir.Model:
    return blocks(2, 32, axis=1, block_size=32)


def whole_blocks() -> ir.Model:
    return blocks(2, 32)


def blocks_of_images() -> ir.Model:
    weight = codes(16, 16, 1, 1, dtype=int4, limit=7)
    return weight_of(weight, 16, 1, 1, 1, axis=1, block_size=16)


def blocks_of_batches() -> ir.Model:
    return weight_of(codes(64, 4, 4, dtype=int4, limit=7), 2, 4, 4, axis=0, block_size=32)


def blocks_of_rows() -> ir.Model:
    return weight_of(codes(4, 64, 4, dtype=int4, limit=7), 4, 2, 4, axis=1, block_size=32)


def bytes_in_blocks() -> ir.Model:
    return matmul(
        weight={"codes": codes(64, 32), "scale": even(2, 32), "axis": 0, "block_size": 32}
    )


def fp8_in_blocks() -> ir.Model:
    weight = {"codes": reals(64, 32, dtype=fp8), "scale": even(2, 32), "axis": 0, "block_size": 32}
    return matmul(weight=weight)


def bytes_by_channel() -> ir.Model:
    return matmul()


# -- four bits ----------------------------------------------------------------------------------


def odd_codes() -> ir.Model:
    return weight_of(codes(9, 7, dtype=int4, limit=7))


def odd_activation() -> ir.Model:
    net = Net()
    return net.model(net.qdq(net.input((3, 5)), zero=scalar(0, int4)))


def odd_bytes() -> ir.Model:
    return weight_of(codes(9, 7))


# -- where a scale comes from -------------------------------------------------------------------


def scaled_by(kind: str) -> ir.Model:
    net = Net()
    x = net.input((4, 64))
    if kind == "computed":
        scale = net.op("Div", net.op("ReduceMax", net.op("Abs", x), keepdims=0), scalar(127))
    elif kind == "input":
        scale = net.input(())
    elif kind == "folded":
        scale = net.op("Mul", scalar(0.05), scalar(2))
    else:
        scale = net.op(kind, scalar(0.05, np.float16), **({"to": 1} if kind == "Cast" else {}))
    x = net.qdq(x, scale, zeros())
    return net.model(net.op("MatMul", x, net.weight(codes(64, 32), steps(32), axis=1)))


def computed_scale() -> ir.Model:
    return scaled_by("computed")


def scale_that_is_an_input() -> ir.Model:
    return scaled_by("input")


def folded_scale() -> ir.Model:
    return scaled_by("folded")


def cast_scale() -> ir.Model:
    return scaled_by("Cast")


def scale_of_a_scale() -> ir.Model:
    # NVFP4: the blocks' scales are fp8 codes themselves.
    net = Net(23)
    scales = net.weight(np.ones((4, 32), np.float32).astype(fp8), scalar(0.1))
    w = net.op(
        "DequantizeLinear", codes(64, 32, dtype=int4, limit=7), scales, axis=0, block_size=16
    )
    return net.model(net.op("MatMul", net.input((4, 64)), w))


# -- how small ----------------------------------------------------------------------------------


def tiny_half_scale() -> ir.Model:
    return half_scales(np.float16(1e-7))


def half_scales(weight: np.float16) -> ir.Model:
    how = {"scale": np.full(32, weight)}
    return matmul(activation={"scale": scalar(0.05, np.float16)}, weight=how, dtype=HALF)


def usual_half_scale() -> ir.Model:
    return half_scales(np.float16(0.02))


def scale_that_becomes_half() -> ir.Model:
    # Before opset 19 the parser casts the scale to the type of what it divides.
    net = Net(17)
    scale = scalar(1e-7)
    return net.model(net.op("QuantizeLinear", net.input((4, 64), HALF), scale, zeros()))


def the_same_scale_at_opset_19() -> ir.Model:
    net = Net(19)
    return net.model(net.op("QuantizeLinear", net.input((4, 64), HALF), scalar(1e-7), zeros()))


BREAKS: Cases = {
    "L11": (Case(too_few_scales), Case(no_such_axis, also=frozenset({"L20"})), Case(vector)),
    "L12": (
        Case(two_blocked_dimensions),
        Case(blocks_of_one),
        Case(ragged_blocks, also=FEW),
        Case(rank_too_high),
        Case(blocks_along_another_axis, also=FEW),
    ),
    "L13": (Case(blocks_of_images), Case(blocks_of_batches)),
    "L14": (Case(bytes_in_blocks),),
    "L15": (Case(odd_codes), Case(odd_activation)),
    "L27": (Case(computed_scale), Case(scale_that_is_an_input, RTX)),
    "L45": (
        Case(tiny_half_scale),
        Case(scale_that_becomes_half, also=frozenset({"L16", "L38"})),
    ),
}
KEEPS: Cases = {
    "L11": (
        Case(conv),
        Case(vector_axis_0),
        Case(axis_from_the_end),
        Case(one_scale_and_any_axis),
        Case(axis_of_old_opset),
    ),
    "L12": (Case(whole_blocks), Case(conv)),
    "L13": (Case(blocks_of_rows), Case(whole_blocks)),
    "L14": (Case(bytes_by_channel), Case(fp8_in_blocks), Case(whole_blocks)),
    "L15": (Case(odd_bytes), Case(whole_blocks)),
    "L27": (Case(folded_scale), Case(cast_scale), Case(scale_of_a_scale)),
    "L45": (Case(usual_half_scale), Case(the_same_scale_at_opset_19)),
}


# -- properties: a rule holds where numpy can dequantize ----------------------------------------

SIZES = st.integers(1, 6)


@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(2, 6), st.data())
def test_a_scale_for_each_element_of_the_axis(
    dims: list[int], count: int, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-len(dims), len(dims) - 1))
    model = weight_of(codes(*dims), count, axis=axis)
    try:
        spread = [count if i == axis % len(dims) else 1 for i in range(len(dims))]
        fits = (np.ones(dims) * np.ones(spread)).shape == tuple(dims)
    except ValueError:
        fits = False
    assert ("L11" in broken(model)) == (not fits)


@given(st.lists(SIZES, min_size=2, max_size=3), st.data())
def test_blocks_divide_one_dimension(dims: list[int], data: st.DataObject) -> None:
    scales = [data.draw(st.integers(1, size)) for size in dims]
    axis = data.draw(st.integers(0, len(dims) - 1))
    if math.prod(scales) == 1:
        return  # per-tensor
    model = weight_of(codes(*dims), *scales, axis=axis)
    repeated = np.ones(scales).repeat(dims[axis] // scales[axis], axis)
    fits = repeated.shape == tuple(dims) and scales[axis] != dims[axis]
    assert ("L12" in broken(model)) == (not fits)


@given(st.lists(SIZES, min_size=1, max_size=3))
def test_four_bit_codes_fill_whole_bytes(dims: list[int]) -> None:
    model = weight_of(codes(*dims, dtype=int4, limit=7))
    assert ("L15" in broken(model)) == (math.prod(dims) % 2 == 1)


@given(st.integers(1, 5), st.integers(1, 5))
def test_a_zero_point_for_each_scale(scales: int, zero_points: int) -> None:
    net = Net()
    w = net.weight(codes(4, scales), even(scales), zeros(zero_points), axis=1)
    model = net.model(net.op("Relu", w))
    assert ("L05" in broken(model)) == (scales != zero_points)


def test_a_dynamic_axis_fits_any_number_of_scales_but_no_blocks() -> None:
    net = Net()
    x = net.input(("n", 4))
    by_row = net.qdq(x, steps(3), axis=0)
    in_blocks = net.qdq(x, even(2, 4), zeros(2, 4, dtype=int4), axis=0)
    model = net.model(by_row, in_blocks)
    assert [f.what for f in found(model) if f.rule == "L11"] == []
    assert all("must be known" in f.what for f in found(model) if f.rule == "L12")


@pytest.mark.parametrize("setting", [Setting(), RTX])
def test_what_a_computed_scale_costs_depends_on_the_flavour(setting: Setting) -> None:
    said = [f.what for f in found(computed_scale(), setting) if f.rule == "L27"]
    assert all(("products compute in float" in what) == (setting is RTX) for what in said)
    assert len(said) == 2


def test_bfloat16_has_the_range_of_float() -> None:
    import ml_dtypes

    tiny = scalar(1e-7, ml_dtypes.bfloat16)
    assert broken(matmul(activation={"scale": tiny}, dtype=BF16)) == {"L22"}
