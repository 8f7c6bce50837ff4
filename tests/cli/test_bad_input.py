"""Bad input through the real pipeline: one clear line, exit code 2, nothing written."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompile.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a command in ``tmp_path``; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path.with_name("cache")))
    handler = signal.getsignal(signal.SIGTERM)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qcompile", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return (end.value.code, *capsys.readouterr())

    yield command
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a model and data, all of it good."""
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "data").mkdir()
    for index in range(40):
        x = np.random.default_rng(index).normal(size=(1, 8)).cumsum(1).astype(np.float32)
        np.savez(tmp_path / "data" / f"{index}.npz", x=x)
    return tmp_path


def no_model(folder: Path) -> None:
    (folder / "net.onnx").unlink()


def model_is_a_folder(folder: Path) -> None:
    no_model(folder)
    (folder / "net.onnx").mkdir()


def model_is_text(folder: Path) -> None:
    (folder / "net.onnx").write_text("not a model, but long enough to look like one")


def model_is_truncated(folder: Path) -> None:
    content = (folder / "net.onnx").read_bytes()
    (folder / "net.onnx").write_bytes(content[: len(content) // 2])


def no_data(folder: Path) -> None:
    for path in (folder / "data").iterdir():
        path.unlink()


def data_of_another_model(folder: Path) -> None:
    np.savez(folder / "data" / "7.npz", z=np.zeros((1, 8), np.float32))


def data_of_another_shape(folder: Path) -> None:
    np.savez(folder / "data" / "7.npz", x=np.zeros((1, 9), np.float32))


def data_with_nan(folder: Path) -> None:
    np.savez(folder / "data" / "7.npz", x=np.full((1, 8), np.nan, np.float32))


def data_with_objects(folder: Path) -> None:
    np.savez(folder / "data" / "7.npz", x=np.array([{"a": 1}], object))


def output_exists(folder: Path) -> None:
    (folder / "out").mkdir()


def output_inside_a_file(folder: Path) -> None:
    (folder / "out").write_text("mine")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (no_model, "net.onnx"),
        (model_is_a_folder, "net.onnx"),
        (model_is_text, "net.onnx"),
        (model_is_truncated, "net.onnx"),
        (no_data, "data"),
        (data_of_another_model, "7.npz"),
        (data_of_another_shape, "7.npz"),
        (data_with_nan, "7.npz"),
        (data_with_objects, "7.npz"),
        (output_exists, "out"),
        (output_inside_a_file, "out"),
    ],
)
def test_bad_files(run: Run, inputs: Path, spoil: Callable[[Path], None], named: str) -> None:
    spoil(inputs)
    before = sorted(inputs.rglob("*"))
    code, out, err = run("build", "net.onnx", "--int8", "--calib", "data", "-o", "out", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert named in err
    assert sorted(inputs.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--dynamic"),
        (("--calib", "nowhere"), "nowhere"),
        (("--calib", "data", "--eval", "nowhere"), "nowhere"),
        (("--calib", "no.such.module:samples"), "no.such.module"),
        (("--calib", "data", "--target", "abacus"), "abacus"),
        (("--calib", "data", "--plan", "none.json"), "none.json"),
        (("--calib", "data", "--metric", "no.such.module:score"), "no.such.module"),
    ],
)
def test_bad_options(run: Run, inputs: Path, arguments: tuple[str, ...], named: str) -> None:
    before = sorted(inputs.rglob("*"))
    code, out, err = run("build", "net.onnx", "--int8", "-o", "out", "--quiet", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert named in err
    assert sorted(inputs.rglob("*")) == before
