"""Dump, digest, verify, walk and edit on small graphs."""

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.errors import PassError
from qcompile.graph.digest import model_digest
from qcompile.graph.dump import dump
from qcompile.graph.edit import (
    Names,
    add_constant,
    add_initializer,
    lazy_tensor,
    remove_dead,
    remove_unread,
    take_over,
)
from qcompile.graph.slim import slim_proto
from qcompile.graph.verify import verify
from qcompile.graph.walk import (
    all_nodes,
    constant,
    consumers,
    only_consumer,
    release,
    scalar,
    weight_bytes,
)
from qcompile.passes.name_values import NameValues

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (bool c, float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, 2, 3, 4}, float half = {0.5}, int64[1] axis = {1}> {
  [mm] a = MatMul(x, w)
  [halve] h = Mul(a, half)
  [if] y = If (c) <
    then_branch = t () => (float[N, 2] p) { [relu] p = Relu(h) },
    else_branch = e () => (float[N, 2] q) { [neg] q = Neg(h) }
  >
}"""


def parsed(text: str = TEXT) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n, _ in all_nodes(model) if n.name == name)


def test_dump_is_stable_and_shows_structure():
    assert dump(parsed()) == dump(parsed())
    text = dump(parsed())
    assert "initializer axis: int64[1] = [1]" in text
    assert "initializer half: float[]\n" in text, "float values differ between machines"
    assert "    p: float[N, 2] = Relu(h)  # relu" in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Relu", "Abs"),
        ("[mm]", "[nn]"),
        ("float[N, 2] x", "float[M, 2] x"),
        ("axis = {1}", "axis = {0}"),
    ],
)
def test_dump_sees_each_change(old, new):
    assert dump(parsed()) != dump(parsed(TEXT.replace(old, new)))


def test_digest_sees_weights_and_not_names_of_files(tmp_path):
    model = parsed()
    digest = model_digest(model)
    assert digest == model_digest(parsed())
    assert digest != model_digest(parsed(TEXT.replace("{1, 2, 3, 4}", "{1, 2, 3, 4.0000005}")))
    for name in ["a", "b"]:
        folder = tmp_path / name
        folder.mkdir()
        ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.bin", size_threshold_bytes=0)
        loaded = ir.load(folder / f"{name}.onnx")
        assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)
        assert model_digest(loaded) == digest
        assert loaded.graph.initializers["w"].const_value.raw is None, "mapping closed"


def test_digest_sees_all_digits_of_attributes():
    text = TEXT.replace("Relu(h)", "LeakyRelu<alpha = 0.1234567>(h)")
    assert model_digest(parsed(text)) != model_digest(parsed(text.replace("4567", "4568")))


def test_walk():
    model = parsed()
    assert [(n.name, o.name if o else None) for n, o in all_nodes(model)] == [
        ("mm", None),
        ("halve", None),
        ("if", None),
        ("relu", "if"),
        ("neg", "if"),
    ]
    w, half = model.graph.initializers["w"], model.graph.initializers["half"]
    np.testing.assert_array_equal(constant(w), [[1, 2], [3, 4]])
    assert constant(w, max_elements=3) is None
    assert constant(model.graph.inputs[1]) is None
    assert scalar(half) == 0.5
    assert scalar(w) is None
    assert weight_bytes(model) == 16 + 4 + 8
    h = node(model, "halve").outputs[0]
    assert {reader.name for reader, _ in consumers(h)} == {"relu", "neg"}
    assert only_consumer(h) is None
    assert only_consumer(w) is node(model, "mm")


def test_a_mapping_closes_with_its_last_view(tmp_path):
    def mapped() -> bool:
        return "w.bin" in Path("/proc/self/maps").read_text()

    np.ones(5000, np.float32).tofile(tmp_path / "w.bin")
    tensor = ir.ExternalTensor(
        "w.bin", 0, 20000, ir.DataType.FLOAT, shape=ir.Shape([5000]), name="w", base_dir=tmp_path
    )
    view = tensor.numpy()[:10]
    release(tensor)
    assert mapped()
    assert view.sum() == 10
    del view
    assert not mapped()
    assert tensor.numpy().sum() == 5000
    release(tensor)
    assert not mapped()


def test_a_constant_that_is_an_input_is_none():
    model = parsed()
    w = model.graph.initializers["w"]
    model.graph.inputs.append(w)
    assert constant(w) is None


def test_names_are_fresh_in_all_scopes():
    model = parsed()
    names = Names(model)
    y = model.graph.outputs[0]
    assert names.fresh(y, "scale") == "y.scale"
    assert names.fresh(y, "scale") == "y.scale.2"
    node(model, "relu").outputs[0].name = "y.zero"
    assert Names(model).fresh(y, "zero") == "y.zero.2"


def test_take_over_keeps_name_type_and_readers():
    model = parsed()
    halve = node(model, "halve")
    h = halve.outputs[0]
    h.type, h.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 2])
    third = add_constant(model.graph, Names(model).fresh(h, "third"), np.float32(1 / 3).reshape(()))
    new = ir.node("Mul", [halve.inputs[0], third], name="third")
    model.graph.insert_before(halve, new)
    take_over(new.outputs[0], h)
    remove_dead([halve])
    assert new.outputs[0].name == "h"
    assert str(new.outputs[0].shape) == "[N,2]"
    assert "half" not in model.graph.initializers
    verify(model)


def test_a_chain_that_nobody_reads_goes_however_long_and_nothing_else():
    lines = ["a0 = Neg(x)", *(f"a{i} = Neg(a{i - 1})" for i in range(1, 3000))]
    lines += ["b = Relu(a10)", "y = Neg(b)"]
    body = "\n".join(lines)
    header = '<ir_version: 10, opset_import: ["" : 21]>\ng (float[2] x) => (float[2] y)'
    model = parsed(f"{header} {{\n{body}\n}}")
    remove_unread(next(node for node in model.graph if node.outputs[0].name == "a2999"))
    assert [node.outputs[0].name for node in model.graph] == [
        *(f"a{i}" for i in range(11)),
        "b",
        "y",
    ]


def test_lazy_tensor_is_computed_when_read():
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.ones((2, 3)).T

    tensor = lazy_tensor("t", ir.DataType.FLOAT, (3, 2), compute)
    assert not calls
    assert tensor.numpy().dtype == np.float32
    assert tensor.numpy().shape == (3, 2)
    assert tensor.tobytes() == np.ones((3, 2), np.float32).tobytes()


def test_slim_leaves_large_weights_out_and_the_model_as_it_was():
    model = parsed()

    def never() -> np.ndarray:
        raise AssertionError("a large weight was read")

    big = lazy_tensor("big", ir.DataType.FLOAT, (1 << 20,), never)
    add_initializer(model.graph, big)
    before = dump(model)
    proto = slim_proto(model)
    assert {t.name for t in proto.graph.initializer} == {"w", "half", "axis"}
    assert proto.graph.input[-1].name == "big"
    assert dump(model) == before
    verify(model)


def test_verify_accepts_and_refuses():
    verify(parsed())
    twice = parsed()
    node(twice, "neg").name = "relu"
    with pytest.raises(PassError, match="relu"):
        verify(twice)
    unordered = parsed()
    mm = node(unordered, "mm")
    unordered.graph.remove(mm)
    unordered.graph.append(mm)
    with pytest.raises(PassError, match="halve reads a"):
        verify(unordered)
    shadowed = parsed()
    node(shadowed, "relu").outputs[0].name = "a"
    with pytest.raises(PassError, match="'a'"):
        verify(shadowed)
    wrong = parsed(TEXT.replace("Mul(a, half)", "Mul(a)"))
    with pytest.raises(PassError, match="not valid ONNX"):
        verify(wrong)


def test_left_out_outputs_keep_no_name():
    text = TEXT.replace("Relu(h)", "Relu(h)\n [lstm] u, v = Dropout(p)")
    model = parsed(text)
    node(model, "lstm").outputs[1].name = ""
    NameValues()(model)
    assert node(model, "lstm").outputs[1].name == ""
    verify(model)
