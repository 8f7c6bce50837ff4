"""``build.json`` as the bundle's script reads it, and the messages of a refusal."""

import json

import pytest

from qcompile.emit.engine_request import Refused, fitting, node_errors, read_build
from qcompile.emit.tensorrt_files import write_engine_files
from qcompile.progress import Silent
from qcompile.samples import InMemory
from tests.emit.nets import float_model, request


@pytest.fixture
def path(tmp_path):
    """Write the files of a bundle without samples; return ``build.json``."""
    session = float_model(tmp_path)
    write_engine_files(tmp_path, request(session), InMemory([]), session.run, Silent())
    return tmp_path / "build.json"


def test_what_is_written_can_be_read(path):
    assert read_build(path) == json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "has format 2, not 1"),
        ({"model": "../model.onnx"}, "must be in the folder itself"),
        ({"model": "/etc/model.onnx"}, "must be in the folder itself"),
        ({"float_model": "../float.onnx"}, "must be in the folder itself"),
        ({"strip": "yes"}, "strip cannot be 'yes'"),
        ({"gates": None}, "gates cannot be None"),
        ({"workspace_bytes": 1.5}, "workspace_bytes cannot be 1.5"),
    ],
)
def test_a_request_of_another_kind_is_refused(path, changes, said):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(Refused, match=f"{path}: .*{said}"):
        read_build(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', "\xff"])
def test_a_damaged_request_is_refused(path, text):
    path.write_text(text, "latin-1")
    with pytest.raises(Refused, match="is damaged"):
        read_build(path)
    path.unlink()
    with pytest.raises(Refused, match="cannot be read"):
        read_build(path)


def test_shapes_that_fit():
    profiles = {"x": [[1, 3, 8], [2, 3, 16], [4, 3, 16]]}
    assert fitting("x", (-1, 3, -1), profiles) == [(1, 3, 8), (2, 3, 16), (4, 3, 16)]


@pytest.mark.parametrize(
    "shapes",
    [
        [[1, 3]],
        [[1, 3], [2, 3]],
        [[1, 3], [2, 3], [4, 3], [8, 3]],
        [[1], [2], [4]],
        [[1, 3, 1], [2, 3, 1], [4, 3, 1]],
        [[1, 4], [2, 4], [4, 4]],
        [[4, 3], [2, 3], [1, 3]],
        [[-1, 3], [2, 3], [4, 3]],
        [[1, 3], [2, 3], [4, "3"]],
        [[], [], []],
    ],
)
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(Refused, match="does not fit the model"):
        fitting("x", (-1, 3), {"x": shapes})


def test_a_dynamic_input_without_shapes_is_refused():
    with pytest.raises(Refused, match="has dynamic dimensions: give it a profile"):
        fitting("x", (-1, 3), {})


@pytest.mark.parametrize(
    ("message", "node"),
    [
        (
            "Error Code 10: (Could not find any implementation for node /conv1/Conv + /relu/Relu.)",
            "/conv1/Conv + /relu/Relu",
        ),
        (
            "Could not find any implementation for node {ForeignNode[a...b]}. In f at /a.cpp:3869)",
            "{ForeignNode[a...b]}",
        ),
        ("While parsing node number 4 [Conv -> 'y']:", None),
    ],
)
def test_nodes_in_the_messages_of_the_builder(message, node):
    assert [error["node"] for error in node_errors([message])] == ([node] if node else [])
