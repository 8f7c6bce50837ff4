"""The public names: sorted, there, and cheap to import."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qcompile


def run(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_all_is_sorted_and_complete() -> None:
    assert sorted(qcompile.__all__) == qcompile.__all__
    assert set(qcompile.__all__) == set(qcompile._MODULE_OF)


def test_no_name_is_also_a_module() -> None:
    # An imported submodule would take the name's place.
    folder = Path(qcompile.__file__).parent
    assert not {p.stem for p in folder.iterdir()} & set(qcompile.__all__)


@pytest.mark.parametrize("name", qcompile.__all__)
def test_each_name_is_there_and_documented(name: str) -> None:
    assert getattr(qcompile, name).__doc__
    assert name in dir(qcompile)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        qcompile.quantise  # noqa: B018


@pytest.mark.parametrize("module", ["qcompile", "qcompile.cli.main"])
def test_import_is_lean(module: str) -> None:
    loaded = set(run(f"import sys, json, {module}; print(json.dumps([*sys.modules]))"))
    heavy = {"torch", "onnxruntime", "tensorrt", "numba", "onnx", "onnxscript", "qcompile.pipeline"}
    assert not heavy & loaded
