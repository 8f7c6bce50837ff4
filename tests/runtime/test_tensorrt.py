"""TensorRT in a process of its own: what it reports back, and how it fails."""

import json
import os
import shutil
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from qcompile.errors import EngineError, RecipeError, RuntimeMissingError
from qcompile.progress import Silent
from qcompile.recipe import Gates
from qcompile.runtime import tensorrt
from qcompile.runtime.layer_dump import EngineLayer, EngineTensor
from tests.emit.bundles import bundle, use_stand_ins


class Listener(Silent):
    """Keeps the steps, too."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def step(self, stage, done, total):
        self.steps.append((stage, done, total))


@pytest.fixture(autouse=True)
def _fresh():
    tensorrt.installed.cache_clear()
    tensorrt.has_gpu.cache_clear()
    yield
    tensorrt.installed.cache_clear()
    tensorrt.has_gpu.cache_clear()


@pytest.fixture
def stand_in(monkeypatch, tmp_path, tmp_path_factory):
    use_stand_ins(monkeypatch, tmp_path_factory.getbasetemp())
    return tmp_path / "b"


def test_a_build_comes_back_whole(stand_in):
    listener = Listener()
    gates = Gates(min_sqnr=20, min_speedup=0.01, max_drop=0.1)
    folder = bundle(stand_in, gates=gates, float_model="float.onnx")
    built = tensorrt.build(folder, listener)
    assert (built.status, built.tensorrt) == ("built", "11.4.0.106")
    assert built.engine.bytes == (stand_in / built.engine.name).stat().st_size
    tensor = EngineTensor("x", "int8", (2, 16, 8, 8))
    assert built.layers == (
        EngineLayer("conv", "gemm", ("conv",), (tensor,), (tensor,), (tensor,), "made up"),
    )
    assert built.device == tensorrt.Gpu(name="stand-in", sm=87)
    assert built.samples == 6
    assert 25 < built.outputs[0].sqnr_db < 60
    assert [gate.passed for gate in built.gates] == [True, True]
    assert built.not_judged == ("max_drop",)
    assert built.gates[1].measured == built.speed.ratio > 0.01
    assert built.timing.runs >= 20
    assert built.timing.shapes == {"x": (2, 16, 8, 8)}
    stages = {stage for stage, _, _ in listener.steps}
    assert stages == {tensorrt.STAGE}
    assert listener.steps[0][1] == 0
    assert all(done <= total for _, done, total in listener.steps)


def test_a_missed_gate_is_an_answer_not_an_error(stand_in):
    built = tensorrt.build(bundle(stand_in, gates=Gates(min_sqnr=90)), Silent())
    assert built.status == "gate missed"
    assert built.engine.name == "model.engine.failed"
    assert not built.gates[0].passed


def test_build_only_runs_nothing(stand_in):
    built = tensorrt.build(bundle(stand_in, gates=Gates(min_sqnr=90)), Silent(), build_only=True)
    assert (built.status, built.device, built.gates) == ("built", None, ())


def test_a_refused_model_is_an_error_that_names_the_node(stand_in):
    folder = bundle(stand_in)
    model = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(model.replace(b"Relu", b"Rulu"))
    with pytest.raises(EngineError, match="TensorRT refuses Rulu node 'act'"):
        tensorrt.build(folder, Silent())


def test_a_crash_is_an_error_and_an_old_result_does_not_count(stand_in, monkeypatch):
    folder = bundle(stand_in)
    tensorrt.build(folder, Silent(), build_only=True)
    monkeypatch.setenv("STAND_IN_CRASH", "1")
    with pytest.raises(EngineError, match=r"crashed \(SIGABRT: .*\); the last it said: .*built in"):
        tensorrt.build(folder, Silent())
    assert not (folder / "result.json").exists()


def test_a_result_of_another_form_is_an_error(stand_in):
    folder = bundle(stand_in)
    (folder / "build_engine.py").write_text(
        "import pathlib; pathlib.Path(__file__).with_name('result.json').write_text('{}')"
    )
    with pytest.raises(EngineError, match=r"result\.json"):
        tensorrt.build(folder, Silent())
    (folder / "build_engine.py").write_text("print('nothing done')")
    with pytest.raises(EngineError, match=r"left no result\.json: nothing done"):
        tensorrt.build(folder, Silent())


def test_an_interruption_ends_the_child(stand_in):
    folder = bundle(stand_in)
    mark = folder / "pid"
    (folder / "build_engine.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\n"
        "print('build: 1 of 2'); time.sleep(60)"
    )

    class Stop(Silent):
        def step(self, stage, done, total):
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tensorrt.build(folder, Stop())
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_without_tensorrt_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "_VERSION", "raise SystemExit(1)")
    with pytest.raises(RuntimeMissingError, match=r"pip install 'qcompile\[tensorrt\]'"):
        tensorrt.build(tmp_path, Silent())


def test_installed_tells_the_version_without_importing_it(stand_in):
    assert tensorrt.installed() == "11.4.0.106"
    assert "tensorrt" not in sys.modules


def test_a_tensorrt_that_cannot_be_imported_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert tensorrt.installed() is None


def test_the_version_to_build_for(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.3.0'")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert tensorrt.major_version() == 10
    assert tensorrt.major_version(11) == 11
    with pytest.raises(RecipeError, match="--trt-version 8: qcompile builds for 10 and 11"):
        tensorrt.major_version(8)
    tensorrt.installed.cache_clear()
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.6.1'")
    with pytest.raises(RecipeError, match="the installed TensorRT 8"):
        tensorrt.major_version()


def test_without_an_installed_one_it_is_11(monkeypatch):
    monkeypatch.setattr(tensorrt, "installed", lambda: None)
    assert tensorrt.major_version() == 11


def test_has_gpu_asks_the_driver(monkeypatch):
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvhost-gpu").exists():
        assert not tensorrt.has_gpu()
    tensorrt.has_gpu.cache_clear()
    monkeypatch.setattr(tensorrt, "_GPUS", "print(2)")
    assert tensorrt.has_gpu()


def test_a_result_with_unknown_fields_is_refused(stand_in):
    folder = bundle(stand_in)
    tensorrt.build(folder, Silent(), build_only=True)
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    with pytest.raises(EngineError, match="more"):
        tensorrt._read(path, deque())
