"""``qcompile export`` and ``qcompile build`` of torch models, as a user runs them."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from qcompile.errors import RuntimeMissingError
from qcompile.tracing import export
from tests.assets import ROOT
from tests.cli.process import fresh, run

HERE = Path(__file__).parent
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: the extra 'torch' has it",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(HERE.parent / "source" / "nets.py", tmp_path)
    return tmp_path


def test_without_torch_the_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'qcompile\[torch\]'"):
        export("nets.py:net", tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("net.onnx", "net.onnx: is ONNX already; qcompile build net.onnx makes an engine of it"),
        (".", ".: is a folder; if it is a Hugging Face model, name it hf:."),
        (
            "net",
            "net: is no torch model; give module:callable, file.py:callable, a .pt2 file or hf:DIR",
        ),
    ],
)
def test_what_is_no_torch_model_needs_no_torch(source: str, told: str, tmp_path: Path) -> None:
    done = run(tmp_path, "export", source, "-o", "out.onnx")
    assert (done.code, done.out, done.err) == (2, "", f"error: {told}\n")
    assert not (tmp_path / "out.onnx").exists()


@needs_torch
@pytest.mark.slow
def test_a_failure_is_one_line_and_nothing_else(folder: Path) -> None:
    done = fresh(folder, "export", "nets.py:branch", "-o", "x.onnx")
    assert (done.code, done.out) == (2, "")
    told = "error: nets.py:branch: nets.py:28 `if x.sum() > 0:` depends on values in a tensor"
    assert done.err.startswith(told)
    assert done.err.count("\n") == 1
    assert not (folder / "x.onnx").exists()


@needs_torch
@pytest.mark.slow
def test_a_module_becomes_an_engine(folder: Path) -> None:
    data = ROOT / "samples" / "digits" / "calib.npz"
    done = run(
        folder,
        *("build", "nets.py:net", "--dynamic-axes", "batch", "--int8", "--calib", data),
        *("--allow-slower", "--no-keep-accuracy", "-o", "out", "--json", "--quiet"),
    )
    assert (done.code, done.err) == (0, "")
    report = done.json()
    assert report["model"]["path"] == "nets.py:net"
    assert report["model"]["traced"]["relative_l2"] < 1e-6
    assert report["model"]["inputs"][0]["shape"] == ["batch", 1, 8, 8]
    assert '"traced": "nets.py:net"' in (folder / "out" / "manifest.json").read_text()
    left = {path.name for path in folder.iterdir()}
    assert left - {"__pycache__", "cache"} == {"nets.py", "out"}
