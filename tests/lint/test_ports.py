"""L38, L39, L42: types and shapes at the engine's inputs and outputs."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.lint.rule import Setting
from tests.lint.cases import Case, Cases
from tests.lint.models import INT8, Net, broken, conv, found, reals, scalar, zeros

IMAGE = {"x": ((1, 16, 8, 8), (4, 16, 8, 8), (8, 16, 8, 8))}


def output_codes() -> ir.Model:
    net = Net()
    return net.model(net.op("QuantizeLinear", net.input((4, 16)), scalar(0.1), zeros()))


def input_codes() -> ir.Model:
    net = Net()
    x = net.op("DequantizeLinear", net.input((4, 16), INT8), scalar(0.1), zeros())
    return net.model(net.op("Relu", x))


def dynamic() -> ir.Model:
    return conv(shape=("n", 16, 8, 8))


def unnamed_dimension() -> ir.Model:
    net = Net()
    value = net.input((1, 4))
    value.shape = ir.Shape([None, 4])
    return net.model(net.op("Relu", value))


def added(array: np.ndarray, node: bool = False) -> ir.Model:
    net = Net()
    value = net.op("Constant", value=ir.Tensor(array)) if node else array
    return net.model(net.op("Add", net.input((4, 16)), value))


def double_constant() -> ir.Model:
    return added(reals(16, dtype=np.float64))


def double_node() -> ir.Model:
    return added(reals(16, dtype=np.float64), node=True)


def float_constant() -> ir.Model:
    return added(reals(16))


def rows(dtype: ir.DataType) -> ir.Model:
    net = Net()
    return net.model(net.op("Gather", reals(16, 4), net.input((3,), dtype)))


def int64_input() -> ir.Model:
    return rows(ir.DataType.INT64)


def int32_input() -> ir.Model:
    return rows(ir.DataType.INT32)


BREAKS: Cases = {
    "L38": (Case(output_codes), Case(input_codes)),
    "L39": (Case(dynamic), Case(unnamed_dimension)),
    "L42": (Case(double_constant), Case(double_node), Case(int64_input)),
}
KEEPS: Cases = {
    "L38": (Case(conv),),
    "L39": (Case(conv), Case(dynamic, Setting(profiles=IMAGE))),
    "L42": (Case(float_constant), Case(int32_input)),
}


def said(model: ir.Model, setting: Setting | None = None) -> Sequence[str]:
    return [f.what for f in found(model, setting) if f.rule == "L39"]


def test_a_missing_profile_is_shown_as_it_is_written() -> None:
    (what,) = said(dynamic())
    assert "--shapes x:1x16x8x8,8x16x8x8,64x16x8x8" in what


def test_a_profile_of_another_input_does_not_help() -> None:
    assert said(dynamic(), Setting(profiles={"y": IMAGE["x"]})) == said(dynamic())


def test_an_int64_output_is_no_matter() -> None:
    net = Net()
    assert broken(net.model(net.op("ArgMax", net.input((4, 16)), axis=1))) == set()
