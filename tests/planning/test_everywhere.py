"""Providers that want all on codes, as QNN does, or codes on a grid of their own."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.emit.ort_file import write_engine
from qcompile.graph.digest import model_digest
from qcompile.graph.runner import run_passes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.lower_opset import LowerOpset
from qcompile.plan import Plan
from qcompile.planning.followed import check_plan
from qcompile.planning.partition import predict
from qcompile.planning.plan import activations_of, assemble
from qcompile.planning.select import Selection, select
from qcompile.planning.wishes import Wishes
from qcompile.runtime.ort import Session
from qcompile.targets.ort_mobile import ORT_MOBILE
from qcompile.targets.providers import PROVIDERS
from tests.planning.tools import HOLDS, feeds_of, graph_of, minmax, normal

ATTENTION = """
[q] a = MatMul(x, w) [k] b = MatMul(x, v) [kt] c = Transpose <perm = [0, 2, 1]> (b)
[scores] d = MatMul(a, c) [soft] e = Softmax(d) [sum] f = MatMul(e, b)
[skip] g = Add(f, x) [norm] h = LayerNormalization(g, scale, bias) [gelu] y = Gelu(h)
"""
GATE = "[g] a = Gemm(x, w, b) [soft] p = Softmax(a) [h] y = Gemm(p, v, c)"


def attention() -> ir.Model:
    weights = {"w": normal(1, 16, 16), "v": normal(2, 16, 16)}
    ends = {"scale": normal(3, 16), "bias": normal(4, 16)}
    return graph_of("float[2, 6, 16] x", ATTENTION, **weights, **ends)


def gate() -> ir.Model:
    weights = {"w": normal(1, 16, 16), "b": normal(2, 16), "v": normal(3, 16, 8)}
    return graph_of("float[4, 16] x", GATE, **weights, c=normal(4, 8))


def chosen(model: ir.Model, name: str, **wishes: object) -> Selection:
    return select(model, ORT_MOBILE.on(name), "int8", Wishes(**wishes))  # type: ignore[arg-type]


def floats(found: Selection) -> set[str]:
    return {name for name, entry in found.nodes.items() if entry.precision == "float"}


def planned(model: ir.Model, name: str) -> Plan:
    target, found = ORT_MOBILE.on(name), chosen(model, name)
    choices = minmax(model, activations_of(found), feeds_of(model))
    return assemble(model, found, target, name, "int8", choices)


def written(model: ir.Model, plan: Plan) -> ir.Model:
    copy = model.clone()
    steps = [InsertQdq(plan=plan), LowerOpset()]
    run_passes(copy, steps, holds=HOLDS | LowerOpset.needs)
    return copy


def test_qnn_gets_attention_and_norms_on_codes_and_takes_them_in_one_piece(tmp_path: Path):
    model = attention()
    plan = planned(model, "qnn")
    check_plan(plan, model, model_digest(model), ORT_MOBILE.on("qnn"), "qnn", "int8")
    assert not floats(chosen(model, "qnn"))
    norm = plan.tensors["scale"], plan.tensors["bias"]
    assert [t.type for t in norm] == ["uint8", "int32"]
    assert norm[1].scale == [
        float(np.float32(plan.tensors["g"].scale[0]) * np.float32(norm[0].scale[0]))
    ]
    engine = written(model, plan)
    found = predict(engine, PROVIDERS["qnn"])
    assert len(found.pieces) == 1
    assert set(found.reasons()) == {("codes of inputs and outputs are made on the CPU", 2)}
    assert not any("compute in float" in note for note in found.notes)
    path = tmp_path / "model.onnx"
    write_engine(engine, path)
    feeds = feeds_of(model)[0]
    exact, rounded = Session(model).run(feeds)["y"], Session(path, optimize=False).run(feeds)["y"]
    assert 0 < np.linalg.norm(rounded - exact) < 0.1 * np.linalg.norm(exact)


def test_other_providers_leave_them_in_float():
    for name in ("cpu", "nnapi"):
        assert {"scores", "sum", "norm", "gelu"} <= floats(chosen(attention(), name))


def test_what_qnn_must_compute_in_float_is_counted_and_what_it_costs():
    model = attention()
    plan = planned(model, "qnn")
    left = plan.nodes["norm"].model_copy(update={"precision": "float"})
    nodes = {**plan.nodes, "norm": left}
    found = predict(written(model, plan.model_copy(update={"nodes": nodes})), PROVIDERS["qnn"])
    assert len(found.pieces) == 1, "an NPU with float16 takes them, too"
    (note,) = [note for note in found.notes if "compute in float" in note]
    assert note.startswith("1 of ")
    assert "leaves them to the CPU and takes the rest in 2 pieces, with 4 tensors" in note


def test_a_node_that_stays_in_float_leaves_the_others_on_codes():
    model = attention()
    found = chosen(model, "qnn", nodes={"scores": "too loud"})
    assert floats(found) == {"scores", "kt"}, "and what moves values for it alone"
    known = set(activations_of(chosen(model, "qnn")))
    assert set(activations_of(found)) <= known | set(chosen(model, "qnn").tied), "no range is new"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("[s] a = Sigmoid(x) [t] b = Tanh(x) [j] y = Concat <axis = 1> (a, b)", {"j"}),
        ("[s] a = Sigmoid(x) [t] y = Transpose(a)", {"t"}),
        ("[t] a = Transpose(x) [s] y = Sigmoid(a)", set()),
        ("[r] y = Relu(x)", {"r"}),
        ("[s] a = Sigmoid(x) [r] b = Relu(a) [m] y = Mul(a, b)", set()),
        ("[e] y = Exp(x)", {"e"}),
        ("[m] y = MatMul(k, x)", set()),
        ("[m] y = MatMul(x, k)", set()),
    ],
)
def test_all_that_computes_is_on_codes_and_what_moves_the_ends_is_not(body: str, left: set[str]):
    model = graph_of("float[4, 4] x", body, k=normal(1, 4, 4))
    assert floats(chosen(model, "qnn")) == left


def test_axes_are_not_codes():
    model = graph_of("float[4, 4] x", "[m] y = ReduceMean(x, axes)", axes=np.array([1]))
    assert set(planned(model, "qnn").tensors) == {"x", "y"}


def test_interpolation_is_on_codes_of_one_grid_for_qnn_alone():
    body = """[s] a = Sigmoid(x) [r] b = Resize <mode = "linear"> (a, , two)
    [c] y = Conv(b, w)"""
    two = np.array([1, 1, 2, 2], np.float32)
    model = graph_of("float[1, 4, 4, 4] x", body, two=two, w=normal(1, 4, 4, 1, 1))
    plan = planned(model, "qnn")
    assert plan.tensors["a"].scale == plan.tensors["b"].scale
    found = predict(written(model, plan), PROVIDERS["qnn"])
    assert not {"r", "c"} & set(found.fallbacks)
    assert not any("compute in float" in note for note in found.notes)
    assert "r" in floats(chosen(model, "nnapi"))


def padded(mode: str, value: float) -> ir.Model:
    body = f'[s] a = Sigmoid(x) [p] b = Pad <mode = "{mode}"> (a, by, v) [m] y = Mul(b, b)'
    return graph_of("float[4, 4] x", body, by=np.array([0, 1, 0, 2]), v=np.float32(value))


@pytest.mark.parametrize(("mode", "value"), [("constant", 0.0), ("reflect", 0.0), ("edge", 7.0)])
def test_what_pads_with_codes_that_are_there_keeps_the_grid(mode: str, value: float):
    plan = planned(padded(mode, value), "qnn")
    assert plan.tensors["b"].scale == plan.tensors["a"].scale
    assert plan.tensors["b"].zero_point == plan.tensors["a"].zero_point
    found = predict(written(padded(mode, value), plan), PROVIDERS["qnn"])
    assert "p" not in found.fallbacks
    assert not any("compute in float" in note for note in found.notes)


def test_what_pads_with_other_numbers_stays_in_float():
    found = chosen(padded("constant", -9.0), "qnn")
    assert floats(found) == {"p"}
    assert "other values than 0" in found.nodes["p"].reason


def test_a_batch_norm_stays_in_float_for_qnn_and_is_taken():
    ends = {"k": normal(1, 4), "c": normal(2, 4), "m": normal(3, 4), "v": normal(4, 4) ** 2 + 1}
    body = "[s] a = Sigmoid(x) [n] b = BatchNormalization(a, k, c, m, v) [t] y = Tanh(b)"
    model = graph_of("float[2, 4, 3, 3] x", body, **ends)
    assert floats(chosen(model, "qnn")) == {"n"}
    found = predict(written(model, planned(model, "qnn")), PROVIDERS["qnn"])
    assert "n" not in found.fallbacks
    assert any(note.startswith("1 of ") for note in found.notes)


def test_softmax_between_products_has_the_grid_that_nnapi_takes():
    model = gate()
    plan = planned(model, "nnapi")
    probabilities = plan.tensors["p"]
    assert (probabilities.scale, probabilities.zero_point) == ([1 / 256], [0])
    assert probabilities.method == "fixed"
    found = predict(written(model, plan), PROVIDERS["nnapi"])
    assert (found.fallbacks, len(found.pieces)) == ({}, 1)
    assert planned(model, "qnn").tensors["p"].method == "minmax"
