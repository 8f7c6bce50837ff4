import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.compare import layers
from qcompile.compare.layers import compare_layers, compare_weights
from qcompile.numerics.metrics import error_sums
from qcompile.progress import Silent
from qcompile.samples import InMemory
from tests.assets import asset, needs_assets

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
FLOAT = """
g (float[N, 8] x) => (float[N, 8] y) {
  h = Mul(x, x)
  r = Relu(h)
  i = Cast <to = 7> (r)
  y = Sub(r, x)
}"""
QDQ = """
g (float[N, 8] x) => (float[N, 8] y)
<float fine = {0.02}, float coarse = {0.5}, uint8 zero = {0}, uint8 middle = {128}> {
  xq = QuantizeLinear(x, fine, middle)
  xd = DequantizeLinear(xq, fine, middle)
  h = Mul(xd, xd)
  r = Relu(h)
  i = Cast <to = 7> (r)
  rq = QuantizeLinear(r, coarse, zero)
  rd = DequantizeLinear(rq, coarse, zero)
  y = Sub(rd, xd)
}"""
PAIRS = {"x": "xd", "r": "rd", "y": "y"}


def model(text):
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def samples(count=4):
    rng = np.random.default_rng(0)
    return InMemory([{"x": rng.uniform(-2, 2, (3, 8)).astype(np.float32)} for _ in range(count)])


def oracle(x):
    xd = (np.clip(np.rint(x / np.float32(0.02)) + 128, 0, 255) - 128) * np.float32(0.02)
    rd = np.clip(np.rint(xd * xd / np.float32(0.5)), 0, 255) * np.float32(0.5)
    return {"x": (x, xd), "r": (x * x, rd), "y": (x * x - x, rd - xd)}


def test_errors_are_those_of_the_arithmetic_worst_first():
    data = samples()
    found = compare_layers(model(FLOAT), model(QDQ), PAIRS, data, progress=Silent())
    parts = [oracle(f["x"]) for f in data.feeds]
    for error in found:
        pairs = [part[error.name] for part in parts]
        sums = error_sums(*(np.stack(side) for side in zip(*pairs, strict=True)))
        assert error.sqnr_db == pytest.approx(sums.sqnr_db, abs=1e-3)
        assert error.max_abs_error == pytest.approx(sums.max_abs, abs=1e-5)
    values = [e.sqnr_db for e in found]
    assert values == sorted(values)
    assert {e.name: e.op for e in found} == {"x": "", "r": "Relu", "y": "Sub"}


def test_models_are_left_as_they_are():
    one, other = model(FLOAT), model(QDQ)
    compare_layers(one, other, PAIRS, samples(), progress=Silent())
    assert [v.name for v in one.graph.outputs] == ["y"]
    assert [v.name for v in other.graph.outputs] == ["y"]


def test_groups_give_the_same(monkeypatch):
    models = model(FLOAT), model(QDQ)
    whole = compare_layers(*models, PAIRS, samples(), progress=Silent())
    sessions = []
    real = layers.Session
    monkeypatch.setattr(layers, "GROUP_BYTES", 4 * 24)
    monkeypatch.setattr(
        layers, "Session", lambda *a, **k: sessions.append(len(a[0].graph.outputs)) or real(*a, **k)
    )
    assert compare_layers(*models, PAIRS, samples(), progress=Silent()) == whole
    assert sessions == [1] * 6


def test_limit_of_samples():
    data = samples(5)
    first = compare_layers(
        model(FLOAT), model(QDQ), PAIRS, InMemory(data.feeds[:2]), progress=Silent()
    )
    limited = compare_layers(
        model(FLOAT), model(QDQ), PAIRS, data, limit_samples=2, progress=Silent()
    )
    assert limited == first
    assert compare_layers(model(FLOAT), model(QDQ), PAIRS, InMemory([]), progress=Silent()) == []


def test_what_cannot_be_compared_is_told():
    silent = Silent()
    pairs = {**PAIRS, "gone": "y", "h": "none", "i": "i"}
    found = compare_layers(model(FLOAT), model(QDQ), pairs, samples(), progress=silent)
    assert {e.name for e in found} == {"x", "r", "y"}
    assert "2 value(s) that a graph lacks, such as 'gone'" in silent.notices[0]
    assert "1 value(s) that are no floats" in silent.notices[1]


def test_two_values_may_share_one():
    found = compare_layers(
        model(FLOAT), model(QDQ), {"h": "rd", "r": "rd"}, samples(), progress=Silent()
    )
    assert len(found) == 2
    assert found[0].sqnr_db == found[1].sqnr_db


def test_identical_graphs_and_broken_ones():
    same = compare_layers(
        model(FLOAT), model(FLOAT), {"r": "r", "y": "y"}, samples(), progress=Silent()
    )
    assert all(e.identical and e.sqnr_db is None for e in same)
    logs = model("g (float[N, 8] x) => (float[N, 8] y) { h = Abs(x) r = Log(x) y = Abs(r) }")
    found = compare_layers(logs, model(FLOAT), {"h": "r", "r": "r"}, samples(), progress=Silent())
    assert found[0].name == "r"
    assert found[0].broken > 0
    assert found[0].sqnr_db is None


def test_weights_worst_first_with_exact_errors():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 9)).astype(np.float32)

    def stored(scale):
        return (np.clip(np.rint(weight / scale), -127, 127) * scale).astype(np.float32)

    fine, coarse = stored(0.03), stored(0.3)
    found = compare_weights(
        iter(
            [
                ("fine", "Conv", weight, fine),
                ("same", "Gemm", weight, weight),
                ("coarse", "Conv", weight, coarse),
            ]
        )
    )
    assert [e.name for e in found] == ["coarse", "fine", "same"]
    assert {e.kind for e in found} == {"weight"}
    noise = ((weight.astype(float) - coarse) ** 2).sum()
    expected = 10 * np.log10((weight.astype(float) ** 2).sum() / noise)
    assert found[0].sqnr_db == pytest.approx(expected)


@needs_assets
def test_a_real_model_against_itself():
    path = asset("models", "espcn_x3.onnx")
    one, other = ir.load(path), ir.load(path)
    names = {
        v.name: v.name for node in one.graph for v in node.outputs if node.op_type != "Constant"
    }
    x = np.random.default_rng(0).random((1, 1, 224, 224), np.float32)
    found = compare_layers(one, other, names, InMemory([{"input": x}]), progress=Silent())
    assert len(found) == len(names)
    assert all(e.identical for e in found)
