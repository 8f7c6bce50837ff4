import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.compare.engine_types import UNKNOWN, EngineType, compare_types, graph_types
from qcompile.progress import Silent
from qcompile.runtime.obtained import obtained
from qcompile.runtime.rtx import RtxRequest, build
from qcompile.runtime.rtx_library import is_installed
from tests.runtime.rtx_graphs import Graph

MODEL = ir.from_proto(
    onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 4] x) => (float[N, 4] y) {
            [xq] q = QuantizeLinear(x, s, z)
            [xdq] d = DequantizeLinear(q, s, z)
            [wdq] wd = DequantizeLinear(w, ws, wz)
            [turn] wt = Transpose(wd)
            [first] a = MatMul(d, wt)
            [relu] b = Relu(a)
            [second] y = MatMul(b, v)
        }"""
    )
)


def rows(obtained, findings=None, wanted=None):
    wanted = wanted or {"second": "fp16", "first": "int8"}
    return compare_types(MODEL, wanted, obtained, findings or {})


def test_as_wanted():
    got = rows({"first": "int8", "second": "fp16", "relu": "fp16"})
    assert got == [
        EngineType(node="first", op="MatMul", wanted="int8", obtained="int8"),
        EngineType(node="second", op="MatMul", wanted="fp16", obtained="fp16"),
    ]
    assert not any(row.is_miss for row in got)


def test_a_miss_without_a_finding():
    first, second = rows({"first": "fp32"})
    assert (first.obtained, first.rule, first.why, first.is_miss) == ("fp32", UNKNOWN, "", True)
    assert (second.obtained, second.rule, second.is_miss) == ("not found", UNKNOWN, True)


@pytest.mark.parametrize("place", ["first", "xdq", "xq", "d", "q", "s", "turn", "wdq", "w", "ws"])
def test_a_miss_is_laid_to_what_feeds_the_node(place):
    found = {place: [("L19", "scale has shape [1]")]}
    first, second = rows({"first": "fp32", "second": "fp32"}, found)
    assert (first.rule, first.why) == ("L19", "scale has shape [1]")
    assert second.rule == UNKNOWN


@pytest.mark.parametrize("place", ["relu", "second", "a", "x", "y", "elsewhere"])
def test_not_to_what_is_beyond(place):
    first, _ = rows({"first": "fp32"}, {place: [("L19", "scale has shape [1]")]})
    assert first.rule == (UNKNOWN if place != "x" else "L19")


def test_the_nearest_rule_that_explains_it():
    findings = {
        "first": [("L16", "opset"), ("L31", "few channels")],
        "wdq": [("L20", "axis")],
        "s": [("L38", "unpaired")],
    }
    assert rows({"first": "fp32"}, findings)[0].rule == "L31"
    del findings["first"]
    assert rows({"first": "fp32"}, findings)[0].rule == "L20"
    del findings["wdq"]
    assert rows({"first": "fp32"}, findings)[0].rule == UNKNOWN


def test_no_cause_where_nothing_is_missed():
    (row,) = rows({"first": "int8"}, {"first": [("L31", "few")]}, {"first": "int8"})
    assert (row.rule, row.why) == ("", "")


def test_row_is_data_for_the_report():
    (row,) = rows({"first": "fp32"}, {"wdq": [("L20", "axis")]}, {"first": "int8"})
    assert EngineType.model_validate_json(row.model_dump_json()) == row


QDQ = ir.from_proto(
    onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[4, 4] x, int8[4, 4] w, int4[4, 4] u, float s) => (float[4, 4] y)
        <float[4, 4] a, float[4, 4] b, float[4, 4] c, float[4, 4] d, int8[4, 4] q,
         float[4, 4] p> {
            q = QuantizeLinear(x, s)
            xd = DequantizeLinear(q, s)
            wd = DequantizeLinear(w, s)
            ud = DequantizeLinear(u, s)
            wt = Transpose(wd)
            [both] a = MatMul(xd, wt)
            [alone] b = MatMul(a, ud)
            [mixed] c = MatMul(xd, ud)
            [activation] d = MatMul(xd, x)
            [pool] p = MaxPool<kernel_shape = [1]>(xd)
            pq = QuantizeLinear(p, s)
            pd = DequantizeLinear(pq, s)
            [last_pool] y = MaxPool<kernel_shape = [1]>(pd)
            [unknown] z = MatMul(d, x)
        }"""
    )
)


def test_what_a_graph_asks_for():
    assert graph_types(QDQ) == {
        "both": "int8",
        "alone": "int4 weights",
        "mixed": "int4 weights",
        "activation": "fp32",
        "pool": "int8",
    }


@pytest.mark.skipif(
    is_installed() is None,
    reason="TensorRT for RTX is not installed (pip install 'qcompile[tensorrt-rtx]')",
)
def test_on_a_real_engine_a_quantized_layer_that_runs_in_float_is_named(tmp_path):
    g = Graph()
    x = g.qdq(g.input("x", 1, 32, 16, 16), shape=(1,))  # the scale should have no dimensions
    y = g.node("Conv", [x, g.weight("w", 32, 32, 3, 3, axis=0)], name="first", pads=[1] * 4)
    y = g.qdq(g.node("Relu", [y]))
    y = g.qdq(g.node("MaxPool", [y], name="pool", kernel_shape=[2, 2], strides=[2, 2]))
    y = g.node("Conv", [y, g.weight("v", 32, 32, 3, 3, axis=0)], name="second", pads=[1] * 4)
    flat = g.node("Reshape", [y, g.constant("to", np.array([-1, 32], np.int64))])
    g.node("MatMul", [flat, g.weight("u", 32, 64, axis=1)], name="third")
    path = g.save(tmp_path / "m.onnx", "third_out")
    engine = build(RtxRequest(path, tmp_path / "m.engine", sms=(89,)), Silent())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))
    got = {name: one.precision for name, one in obtained(model, engine.layers).items()}
    found = {"x_Q": [("L19", "scale has shape [1]")]}
    rows = compare_types(model, graph_types(model), got, found)
    assert [(row.node, row.wanted, row.obtained, row.rule) for row in rows] == [
        ("first", "int8", "fp32", "L19"),
        ("pool", "int8", "int8", ""),
        ("second", "int8", "int8", ""),
        ("third", "int8 weights", "int8 weights", ""),
    ]
