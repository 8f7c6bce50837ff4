"""L01 to L10: what the parser asserts of scale, zero point and code type."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.lint.cases import Case, Cases
from tests.lint.models import (
    INT8,
    UINT8,
    Net,
    broken,
    codes,
    conv,
    found,
    fp8,
    matmul,
    reals,
    scalar,
    steps,
    zeros,
)

E5M2 = ml_dtypes.float8_e5m2


def no_scale() -> ir.Model:
    # The checker lets this through in a foreign domain only.
    net = Net()
    q = net.op("QuantizeLinear", net.input((4, 16)), domain="com.microsoft")
    return net.model(net.op("DequantizeLinear", q, domain="com.microsoft"))


def foreign() -> ir.Model:
    return conv(activation={"domain": "com.microsoft"})


def scaled(scale: np.ndarray) -> ir.Model:
    return conv(weight={"scale": scale})


def zero_scale() -> ir.Model:
    return scaled(np.append(steps(15), np.float32(0)))


def negative_scale() -> ir.Model:
    return scaled(-steps(16))


def infinite_scale() -> ir.Model:
    return scaled(np.append(steps(15), np.float32(np.inf)))


def whole_scale() -> ir.Model:
    return conv(activation={"scale": scalar(1, np.int32)})


def double_scale() -> ir.Model:
    return scaled(steps(16, np.float64))


def asymmetric() -> ir.Model:
    return conv(activation={"zero": scalar(3, np.int8)})


def asymmetric_unsigned() -> ir.Model:
    return conv(activation={"zero": scalar(128, np.uint8)})


def asymmetric_behind_a_cast() -> ir.Model:
    return cast_zero_point(3)


def cast_zero_point(value: int = 0) -> ir.Model:
    net = Net()
    zero = net.op("Cast", scalar(value, np.int32), to=int(INT8))
    return net.model(net.qdq(net.input((4, 16)), zero=zero))


def asymmetric_weight() -> ir.Model:
    return conv(weight={"zero": np.append(zeros(15), np.int8(1))})


def fp8_matmul(zero: float) -> ir.Model:
    weight = {"codes": reals(64, 32, dtype=fp8)}
    return matmul(activation={"zero": scalar(zero, fp8)}, weight=weight)


def asymmetric_fp8() -> ir.Model:
    return fp8_matmul(1)


def symmetric_fp8() -> ir.Model:
    return fp8_matmul(0)


def one_zero_point_for_all() -> ir.Model:
    return conv(weight={"zero": scalar(0, np.int8)})


def a_zero_point_missing() -> ir.Model:
    return conv(weight={"zero": zeros(15)})


def ranks_0_and_1() -> ir.Model:
    one = np.array([0.02], np.float32)
    return conv(weight={"scale": one, "zero": scalar(0, np.int8)})


def fp8_sizes_differ() -> ir.Model:
    return matmul(weight={"codes": reals(64, 32, dtype=fp8), "zero": zeros(3, dtype=fp8)})


def unsigned() -> ir.Model:
    return conv(activation={"zero": scalar(0, np.uint8)})


def without_zero_point(**attributes: int) -> ir.Model:
    net = Net(23)
    q = net.op("QuantizeLinear", net.input((4, 16)), scalar(0.05), **attributes)
    return net.model(net.op("DequantizeLinear", q, scalar(0.05)))


def signed_without_zero_point() -> ir.Model:
    return without_zero_point(output_dtype=int(INT8))


def unsigned_weight() -> ir.Model:
    return conv(weight={"codes": codes(16, 16, 3, 3).astype(np.uint8)})


def unsigned_input() -> ir.Model:
    net = Net()
    codes_ = net.input((4, 16), UINT8)
    return net.model(net.op("DequantizeLinear", codes_, scalar(0.1), scalar(0, np.uint8)))


def signed_input() -> ir.Model:
    net = Net()
    codes_ = net.input((4, 16), INT8)
    return net.model(net.op("DequantizeLinear", codes_, scalar(0.1), scalar(0, np.int8)))


def stored_as(dtype: type[Any], node: bool = False) -> ir.Model:
    net = Net()
    array = np.ones(16, np.float32).astype(dtype)
    value = net.op("Constant", value=ir.Tensor(array)) if node else array
    return net.model(net.op("Add", net.input((16,)), net.op("Cast", value, to=1)))


def stored(*dtypes: type[Any], node: bool = False) -> tuple[Case, ...]:
    return tuple(Case(partial(stored_as, t, node), name=np.dtype(t).name) for t in dtypes)


def bias(dtype: type[Any]) -> ir.Model:
    net = Net()
    x = net.qdq(net.input((1, 16, 8, 8)))
    w = net.weight(codes(16, 16, 3, 3), steps(16), axis=0)
    b = net.weight(codes(16, dtype=dtype), steps(16), axis=0)
    return net.model(net.op("Conv", x, w, b))


def quantized_bias() -> ir.Model:
    return bias(np.int32)


def byte_bias() -> ir.Model:
    return bias(np.int8)


def words() -> ir.Model:
    return without_zero_point(output_dtype=int(ir.DataType.INT16))


def word_input() -> ir.Model:
    net = Net()
    codes_ = net.input((4, 16), ir.DataType.INT16)
    return net.model(net.op("DequantizeLinear", codes_, scalar(0.05)))


BREAKS: Cases = {
    "L01": (Case(no_scale),),
    "L02": (
        Case(zero_scale),
        Case(negative_scale),
        Case(infinite_scale, builds=True),
        Case(whole_scale, also=frozenset({"L22"})),
    ),
    "L03": (
        Case(asymmetric),
        Case(asymmetric_unsigned),
        Case(asymmetric_behind_a_cast),
        Case(asymmetric_weight),
    ),
    "L04": (Case(asymmetric_fp8),),
    "L05": (Case(one_zero_point_for_all), Case(a_zero_point_missing)),
    "L06": (Case(unsigned), Case(without_zero_point)),
    "L07": (
        Case(unsigned_weight),
        Case(unsigned_input, also=frozenset({"L38"})),
    ),
    "L08": (
        *stored(np.int16, np.uint16, np.uint32, np.uint64, E5M2, ml_dtypes.float8_e4m3fnuz),
        *stored(ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu, ml_dtypes.uint4),
        *stored(ml_dtypes.int2, ml_dtypes.uint2),
        *stored(np.int16, E5M2, node=True),
    ),
    "L09": (Case(quantized_bias),),
    "L10": (Case(words), Case(word_input, also=frozenset({"L38"}))),
}
KEEPS: Cases = {
    "L01": (Case(foreign),),
    "L02": (Case(conv), Case(double_scale)),
    "L03": (Case(conv), Case(cast_zero_point)),
    "L04": (Case(symmetric_fp8),),
    "L05": (Case(conv), Case(ranks_0_and_1), Case(fp8_sizes_differ)),
    "L06": (Case(conv), Case(signed_without_zero_point)),
    "L07": (Case(signed_input), Case(unsigned)),
    "L08": stored(np.int32, np.int64, np.float16, np.float64, np.bool_),
    "L09": (Case(byte_bias),),
    "L10": (Case(conv), Case(symmetric_fp8)),
}


def said(model: ir.Model, rule: str) -> list[tuple[str, str]]:
    return [(f.where, f.what) for f in found(model) if f.rule == rule]


def test_a_bad_scale_is_named_with_its_worst_element() -> None:
    (where, what), *others = said(zero_scale(), "L02")
    assert (where, others) == ("dequantizelinear1", [])
    assert "holds 0 (1 of 16 elements)" in what


def test_an_unsigned_quantizer_is_one_finding_though_its_dq_has_the_zero_point_too() -> None:
    assert [where for where, _ in said(unsigned(), "L06")] == ["quantizelinear"]


def test_codes_of_a_quantizer_keep_its_type_behind_moves() -> None:
    net = Net()
    q = net.op("QuantizeLinear", net.input((1, 16, 8, 8)), scalar(0.05), scalar(0, np.uint8))
    moved = net.op("MaxPool", net.op("Transpose", q, perm=[0, 1, 3, 2]), kernel_shape=[2, 2])
    model = net.model(net.op("DequantizeLinear", moved, scalar(0.05), scalar(0, np.uint8)))
    assert broken(model) == {"L06"}


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_the_domain_does_not_matter(domain: str) -> None:
    activation = {"domain": domain, "zero": scalar(3, np.int8)}
    assert broken(conv(activation=activation)) == {"L03"}


def test_odd_attributes_of_another_domain_do_no_harm() -> None:
    odd = {"axis": "first", "output_dtype": 999}
    net = Net()
    q = net.op("QuantizeLinear", net.input((4, 16)), steps(16), domain="com.microsoft", **odd)
    y = net.op("DequantizeLinear", q, steps(16), domain="com.microsoft", **odd)
    assert broken(net.model(y)) <= {"L06", "L18", "L20"}
