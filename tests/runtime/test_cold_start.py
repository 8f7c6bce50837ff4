"""Times to load a model in a process that has just begun: real processes, real files."""

import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from qcompile.emit.ort_mobile import write_ort
from qcompile.errors import EngineError, RuntimeMissingError
from qcompile.runtime import cold_start as module
from qcompile.runtime.cold_start import cold_start


def saved(folder, side=8):
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
    g (float[N, {side}] X) => (float[N, {side}] Y) {{ Y = MatMul(X, W) }}"""
    model = onnx.parser.parse_model(text)
    weight = np.ones((side, side), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def test_onnx_and_ort_files_alike(tmp_path):
    path = saved(tmp_path)
    for file in (path, write_ort(path, tmp_path, "Fixed").model):
        found = cold_start(file, threads=2, runs=2)
        assert 0 < found.low_ms <= found.median_ms <= found.high_ms
        assert found.import_ms > found.low_ms, "importing takes longer than so small a model"
        assert (found.runs, found.threads) == (2, 2)


def test_a_larger_model_takes_longer(tmp_path):
    (tmp_path / "small").mkdir()
    small = cold_start(saved(tmp_path / "small"), runs=2)
    large = cold_start(saved(tmp_path, side=3000), runs=2)
    assert large.low_ms > 2 * small.high_ms


def test_one_run_more_than_counts_warms_the_file_cache(tmp_path, monkeypatch):
    real, calls = module._loaded, []
    monkeypatch.setattr(module, "_loaded", lambda *a, **k: calls.append(a) or real(*a, **k))
    assert cold_start(saved(tmp_path), runs=1).runs == 1
    assert len(calls) == 2


def test_files_that_cannot_be_loaded(tmp_path):
    (tmp_path / "junk.ort").write_bytes(b"not a model" * 9)
    (tmp_path / "junk.onnx").write_bytes(b"not a model" * 9)
    for name in ("junk.ort", "junk.onnx", "absent.ort"):
        with pytest.raises(EngineError) as caught:
            cold_start(tmp_path / name, runs=1)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_process_that_dies_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHILD", "import os; os.abort()")
    with pytest.raises(EngineError, match=r"model\.onnx: the process that loads it .* signal 6"):
        cold_start(saved(tmp_path), runs=1)


def test_without_onnx_runtime(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'qcompile\[cpu\]'"):
        cold_start(saved(tmp_path), runs=1)
