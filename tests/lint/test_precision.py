"""L16, L22, L23, L25: which types may meet at a node, and from which opset on."""

from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.lint.cases import Case, Cases
from tests.lint.models import (
    BF16,
    FLOAT,
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

BFLOAT = ml_dtypes.bfloat16


# -- opsets -------------------------------------------------------------------------------------


def fp8_at(opset: int) -> ir.Model:
    weight = {"codes": reals(64, 32, dtype=fp8)}
    return matmul(opset, activation={"zero": scalar(0, fp8)}, weight=weight)


def int4_at(opset: int) -> ir.Model:
    weight = {"codes": codes(64, 32, dtype=int4, limit=7), "scale": scalar(0.02)}
    return matmul(opset, weight=weight)


def halves_at(opset: int) -> ir.Model:
    activation = {"scale": scalar(0.05, np.float16)}
    return matmul(opset, activation, {"scale": steps(32, np.float16)}, HALF)


def channels_at(opset: int) -> ir.Model:
    return conv(opset)


# -- types that meet ----------------------------------------------------------------------------


def half_input_of_float_conv() -> ir.Model:
    return conv(activation={"scale": scalar(0.05, np.float16)})


def half_conv() -> ir.Model:
    return conv_in(np.float16)


def conv_in(dtype: type) -> ir.Model:
    net = Net()
    x = net.input((1, 16, 8, 8), ir.DataType.from_numpy(np.dtype(dtype)))
    x = net.qdq(x, scalar(0.05, dtype))
    w = net.weight(codes(16, 16, 3, 3), steps(16, dtype), axis=0)
    return net.model(net.op("Conv", x, w, reals(16, dtype=dtype)))


def two(op: str, **attributes: int) -> ir.Model:
    net = Net()
    return net.model(net.op(op, net.input((4, 16)), net.input((4, 16), HALF), **attributes))


def mixed_where() -> ir.Model:
    net = Net()
    condition = net.input((4, 16), ir.DataType.BOOL)
    return net.model(net.op("Where", condition, net.input((4, 16)), net.input((4, 16), HALF)))


def float_norm_of_halves() -> ir.Model:
    net = Net()
    x = net.input((4, 16), HALF)
    return net.model(net.op("LayerNormalization", x, reals(16), reals(16)))


def float_bias_of_halves() -> ir.Model:
    net = Net()
    return net.model(
        net.op("Gemm", net.input((4, 16), HALF), reals(16, 8, dtype=np.float16), reals(8))
    )


def converted_by_the_parser() -> ir.Model:
    net = Net()
    x = net.input((1, 16, 4, 4), HALF)
    y = net.op("BatchNormalization", x, steps(16), steps(16), steps(16), steps(16))
    return net.model(net.op("Clip", y, scalar(0), scalar(6)))


def double_constant() -> ir.Model:
    net = Net()
    return net.model(net.op("Add", net.input((4, 16)), reals(16, dtype=np.float64)))


def foreign_conv() -> ir.Model:
    # Types behind com.microsoft::DequantizeLinear are inferred, too.
    return conv(activation={"scale": scalar(0.05, np.float16), "domain": "com.microsoft"})


# -- scales beside halves -----------------------------------------------------------------------


def rounded(dtype: ir.DataType, scale: np.ndarray, opset: int = 21) -> ir.Model:
    net = Net(opset)
    x = net.qdq(net.input((4, 16), dtype), scale)
    return net.model(x)


def half_scale_of_floats() -> ir.Model:
    return rounded(FLOAT, scalar(0.05, np.float16))


def half_scale_of_bfloats() -> ir.Model:
    return rounded(BF16, scalar(0.05, np.float16))


def float_scale_of_halves() -> ir.Model:
    return rounded(HALF, scalar(0.05))


def cast_scale_at_17() -> ir.Model:
    return rounded(FLOAT, scalar(0.05, np.float16), opset=17)


# -- codes that are moved -----------------------------------------------------------------------


def table(dtype: type, dequantize_first: bool = False) -> ir.Model:
    net = Net()
    rows = net.input((4,), ir.DataType.INT32)
    array = codes(64, 16, dtype=dtype, limit=7)
    if dequantize_first:
        return net.model(net.op("Gather", net.weight(array), rows))
    moved = net.op("Gather", array, rows)
    return net.model(net.op("DequantizeLinear", moved, scalar(0.1), scalar(0, dtype)))


def gathered_bytes() -> ir.Model:
    return table(np.int8)


def gathered_fp8() -> ir.Model:
    return table(fp8)


def gathered_int4() -> ir.Model:
    return table(int4)


def gathered_reals() -> ir.Model:
    return table(np.int8, dequantize_first=True)


def moved(op: str, **attributes: object) -> ir.Model:
    net = Net()
    more = [np.array([64, 32])] if op == "Reshape" else []
    w = net.op(op, codes(32, 64), *more, **attributes)
    w = w if op == "Cast" else net.op("DequantizeLinear", w, scalar(0.1), zeros())
    return net.model(net.op("MatMul", net.input((4, 64)), w))


def transposed_bytes() -> ir.Model:
    return moved("Transpose", perm=[1, 0])


def reshaped_bytes() -> ir.Model:
    return moved("Reshape")


def bytes_behind_identity() -> ir.Model:
    net = Net()
    w = net.op("DequantizeLinear", net.op("Identity", codes(64, 32)), scalar(0.1), zeros())
    return net.model(net.op("MatMul", net.input((4, 64)), w))


def cast_bytes() -> ir.Model:
    net = Net()
    return net.model(net.op("Mul", net.input((4, 16)), net.op("Cast", codes(16), to=1)))


def output_bytes() -> ir.Model:
    net = Net()
    stored = net.constant(codes(64, 32))
    w = net.op("DequantizeLinear", stored, scalar(0.1), zeros())
    return net.model(net.op("MatMul", net.input((4, 64)), w), stored)


def constant_node() -> ir.Model:
    net = Net()
    stored = net.op("Constant", value=ir.Tensor(codes(64, 32)))
    w = net.op("DequantizeLinear", stored, scalar(0.1), zeros())
    return net.model(net.op("MatMul", net.input((4, 64)), w))


def zero_point_behind_identity() -> ir.Model:
    net = Net()
    zero = net.op("Identity", zeros())
    return net.model(net.qdq(net.input((4, 16)), zero=zero))


PAIRS = ("Add", "Sub", "Mul", "Div", "Max", "Sum", "Equal", "PRelu")

BREAKS: Cases = {
    "L16": (
        Case(partial(fp8_at, 17), name="fp8_at_17"),
        Case(partial(int4_at, 19), name="int4_at_19", also=frozenset({"L33"})),
        Case(partial(halves_at, 18), name="halves_at_18"),
        Case(partial(channels_at, 12), name="channels_at_12"),
    ),
    "L22": (
        Case(half_input_of_float_conv, also=frozenset({"L23"})),
        Case(foreign_conv, also=frozenset({"L23"})),
        *(Case(partial(two, op), name=op) for op in PAIRS),
        Case(partial(two, "Concat", axis=0), name="Concat"),
        Case(mixed_where),
        Case(float_norm_of_halves),
        Case(float_bias_of_halves),
    ),
    "L23": (Case(half_scale_of_floats), Case(half_scale_of_bfloats)),
    "L25": (
        Case(gathered_bytes),
        Case(gathered_fp8),
        Case(gathered_int4),
        Case(transposed_bytes),
        Case(reshaped_bytes),
        Case(bytes_behind_identity),
        Case(cast_bytes),
        Case(output_bytes),
    ),
}
KEEPS: Cases = {
    "L16": tuple(
        Case(partial(make, opset), name=f"{make.__name__}_{opset}")
        for make, opset in ((fp8_at, 19), (int4_at, 21), (halves_at, 19), (channels_at, 13))
    ),
    "L22": (Case(half_conv), Case(converted_by_the_parser), Case(double_constant)),
    "L23": (Case(half_conv), Case(float_scale_of_halves), Case(cast_scale_at_17)),
    "L25": (Case(gathered_reals), Case(constant_node), Case(zero_point_behind_identity)),
}


def test_both_types_are_named_with_a_tensor_of_each() -> None:
    (finding,) = [f for f in found(half_input_of_float_conv()) if f.rule == "L22"]
    assert finding.where == "conv"
    assert "dequantizelinear.out is float16" in finding.what
    assert "is float," in finding.what or "is float;" in finding.what


@pytest.mark.parametrize("opset", [17, 19, 21, 23])
def test_the_scale_decides_the_type_at_any_opset(opset: int) -> None:
    assert broken(matmul(opset, {"scale": scalar(0.05, np.float16)})) >= {"L22"}


def test_output_dtype_wins_over_the_scale() -> None:
    net = Net(23)
    x = net.input((4, 64), HALF)
    w = net.weight(codes(64, 32), steps(32), axis=1, output_dtype=int(HALF))
    assert broken(net.model(net.op("MatMul", x, w))) == set()
