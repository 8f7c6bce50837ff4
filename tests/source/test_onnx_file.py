"""Broken, hostile and odd model files: one clear line each, and what is valid loads."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcompile.errors import ModelError
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.source.files import model_files
from qcompile.source.onnx_file import load_model
from qcompile.source.support import describe_unknown, unknown_operators
from tests.assets import asset, needs_assets

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def matmul(weight: np.ndarray = WEIGHT, opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(folder: Path, location: str = "w.bin", **entries: object) -> Path:
    """A model whose weight is declared external; the data file is what the test makes of it."""
    model = matmul()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return save(folder, model)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_a_valid_model_loads(tmp_path):
    model = load_model(save(tmp_path, matmul()))
    assert [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


def test_no_such_file(tmp_path):
    refused(tmp_path / "absent.onnx", "no such file")


def test_a_folder(tmp_path):
    refused(tmp_path, "folder")


@pytest.mark.parametrize("content", [b"hello, this is text", b"\x00" * 64, os.urandom(512)])
def test_not_onnx(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, "not an ONNX file")


def test_empty(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    refused(path, "empty")


@given(cut=st.floats(0.01, 0.99))
def test_truncated_files_never_pass(tmp_path_factory, cut):
    path = save(tmp_path_factory.mktemp("cut"), matmul())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    refused(path)


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_one_damaged_byte_is_refused_or_harmless(tmp_path_factory, position, byte):
    path = save(tmp_path_factory.mktemp("damaged"), matmul())
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        load_model(path)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 - loading may succeed


def with_dims(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return edit


def with_opset(version: int, domain: str = "") -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version
        model.opset_import[0].domain = domain

    return edit


def with_ir_version(version: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.ir_version = version

    return edit


def with_data_type(kind: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_type = kind

    return edit


def with_twin(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def with_two_makers(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def with_cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "loop"
    model.graph.node.append(helper.make_node("Relu", ["y"], ["loop"]))


def with_dangling_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (with_dims(1 << 40, 1 << 20), ["w", "bytes"]),
        (with_dims(3, 5), ["w", "60 bytes", "48"]),
        (with_dims(-3, 4), ["w", "negative"]),
        (with_data_type(99), ["w", "data type 99"]),
        (with_data_type(0), ["w", "no data type"]),
        (with_opset(6), ["opset 6"]),
        (with_opset(999), ["opset 999", "newer"]),
        (with_opset(1, "com.example"), ["no opset of the default domain"]),
        (with_ir_version(0), ["IR version 0"]),
        (with_ir_version(4711), ["IR version 4711"]),
        (with_twin, ["'w'", "twice"]),
        (with_two_makers, ["y"]),
        (with_cycle, ["loop"]),
        (with_dangling_input, ["nowhere"]),
    ],
)
def test_inconsistent_files(tmp_path, edit, words):
    model = matmul()
    edit(model)
    refused(save(tmp_path, model), *words)


def test_typed_field_that_claims_too_much(tmp_path):
    model = matmul()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 11)
    refused(save(tmp_path, model), "w", "12 elements", "11")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_weights_that_are_no_numbers(tmp_path, bad, dtype):
    weight = WEIGHT.astype(dtype)
    weight[2, 1] = bad
    model = matmul(weight)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = model.graph.initializer[0].data_type
    refused(save(tmp_path, model), "weight w", "NaN" if np.isnan(bad) else "Inf")


@pytest.mark.parametrize("attribute", ["value_floats", "value_float", "value"])
def test_constants_that_are_no_numbers(tmp_path, attribute):
    bad = {
        "value_floats": [1.0, np.nan, 0.0, 0.0],
        "value_float": np.nan,
        "value": numpy_helper.from_array(np.full(4, np.nan, np.float32)),
    }
    model = matmul()
    model.graph.node[0].output[0] = "product"
    constant = helper.make_node("Constant", [], ["bad"], **{attribute: bad[attribute]})
    model.graph.node.insert(0, constant)
    model.graph.node.append(helper.make_node("Add", ["product", "bad"], ["y"]))
    refused(save(tmp_path, model), "weight bad", "NaN")


def test_dims_beyond_any_float_are_refused(tmp_path):
    model = matmul()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**62] * 20)
    refused(save(tmp_path, model), "tensor w", "but the file holds 48")


def test_strings_stored_as_bytes_are_refused(tmp_path):
    model = matmul()
    model.graph.initializer[0].data_type = TensorProto.STRING
    refused(save(tmp_path, model), "tensor w", "string_data")


def test_a_linked_model_is_checked_where_its_data_is_read(tmp_path):
    """Data beside the link is not read; data beside the model is, and is what is checked."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (here / "model.onnx").symlink_to(external(there))
    (here / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "secret.bin").write_bytes((7 * WEIGHT).tobytes())
    (there / "w.bin").symlink_to("../secret.bin")
    refused(here / "model.onnx", "outside")
    (there / "w.bin").unlink()
    refused(here / "model.onnx", "missing")
    (here / "w.bin").rename(there / "w.bin")
    model = load_model(here / "model.onnx")
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)
    assert model_files(here / "model.onnx")[1] == (there / "w.bin").resolve()
    Session(here / "model.onnx")


def test_a_mask_may_be_infinite(tmp_path):
    model = matmul()
    model.graph.node[0].output[0] = "scores"
    model.graph.node.append(helper.make_node("Add", ["scores", "mask"], ["y"]))
    mask = np.array([0, -np.inf, 0, -np.inf], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    progress = Silent()
    load_model(save(tmp_path, model), progress)
    assert any("mask" in notice for notice in progress.notices)


def test_initializers_listed_as_inputs_become_constants(tmp_path):
    model = matmul()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    progress = Silent()
    loaded = load_model(save(tmp_path, model), progress)
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    assert not loaded.graph.initializers["w"].is_graph_input()
    assert len(progress.notices) == 1


def test_external_data_is_read(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"pad!" + WEIGHT.tobytes())
    model = load_model(external(tmp_path, offset=4, length=48))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


def test_external_data_of_another_folder_works_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    external(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = load_model(Path("model.onnx"))
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


def test_external_data_missing(tmp_path):
    refused(external(tmp_path), "w", "missing", "w.bin")


@pytest.mark.parametrize("entries", [{"length": 44}, {"length": 10**15}, {"offset": 8}])
def test_external_data_too_short(tmp_path, entries):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    refused(external(tmp_path, **entries), "w")


@pytest.mark.parametrize("entries", [{"offset": -1}, {"length": "many"}, {"offset": "0x10"}])
def test_external_data_with_bad_numbers(tmp_path, entries):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    refused(external(tmp_path, **entries), "bad")


def test_external_data_outside_is_refused(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    refused(external(inside, "../secret.bin"), "outside")
    refused(external(inside, str(secret)), "outside")
    refused(external(inside, ""), "location")
    (inside / "link.bin").symlink_to(secret)
    refused(external(inside, "link.bin"), "outside")


def test_external_data_that_is_a_folder(tmp_path):
    (tmp_path / "w.bin").mkdir()
    refused(external(tmp_path), "not a file")


def test_a_large_external_weight_stays_on_disk(tmp_path):
    """The scan for NaN reads it in pieces; nothing stays mapped or in memory."""
    rows = 1 << 18
    model = matmul()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.dims.extend([3, rows])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = rows
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(3 * rows * 4)
    loaded = load_model(save(tmp_path, model)).graph.initializers["w"].const_value
    assert isinstance(loaded, ir.ExternalTensor)
    assert loaded.raw is None, "the mapping is closed again"


def test_unknown_operators_load_and_are_named(tmp_path):
    model = matmul()
    model.graph.node[0].domain = "com.example"
    model.graph.node[0].op_type = "Frobnicate"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    loaded = load_model(save(tmp_path, model))
    unknown = unknown_operators(loaded)
    assert [(domain, op) for _, domain, op in unknown] == [("com.example", "Frobnicate")]
    line = describe_unknown(unknown, "no kernel")
    assert "com.example.Frobnicate" in line
    assert "mm" in line
    assert not unknown_operators(load_model(save(tmp_path, matmul())))


def test_ai_onnx_is_the_default_domain(tmp_path):
    model = matmul()
    model.opset_import[0].domain = "ai.onnx"
    assert load_model(save(tmp_path, model)).opset_imports[""] == 17


@needs_assets
@pytest.mark.parametrize("path", sorted(asset("models").glob("*.onnx")), ids=lambda path: path.stem)
def test_real_models_load(path):
    model = load_model(path)
    assert model.graph.num_nodes()
    assert not unknown_operators(model)
