"""A bundle for ONNX Runtime on a GPU, and its script: run for real, on the CPU."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from qcompile.emit import device_files
from qcompile.emit.device_files import HELPERS, write_device_files
from qcompile.emit.session_files import CONTEXT, SessionRequest
from qcompile.errors import EngineError
from qcompile.progress import Silent
from qcompile.recipe import Gates, TensorRT
from qcompile.runtime import cuda
from qcompile.samples import InMemory, Subset
from tests.brief import SCRIPTS
from tests.emit.nets import PROFILE, convolution, float_model, heavy, samples

TENSORRT = cuda.tensorrt_provider(TensorRT(), PROFILE, context_bytes=1000)


def bundle(folder, data=None, **fields):
    folder.mkdir(exist_ok=True)
    onnx.save(convolution(codes=True), folder / "model.onnx")
    session = float_model(folder)
    outputs = tuple(port.name for port in session.outputs)
    request = SessionRequest("model.onnx", session.inputs, outputs, TENSORRT, profiles=PROFILE)
    data = samples() if data is None else data
    write_device_files(folder, replace(request, **fields), data, session.run, Silent())
    return folder


def run(folder, *options, cwd="/"):
    command = [sys.executable, "-I", folder / "run_session.py", *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def result(folder):
    return json.loads((folder / "result.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return bundle(tmp_path_factory.mktemp("session"), gates=Gates(min_sqnr=20, max_drop=0.1))


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_all_files_are_there(made):
    names = {path.name for path in made.iterdir()} - {"result.json"}
    wanted = {
        *SessionRequest.scripts,
        *HELPERS,
        "model.onnx",
        "float.onnx",
        "samples.npz",
        "session_options.json",
    }
    assert names == wanted | {SessionRequest.description}
    told = json.loads((made / "session_options.json").read_text("utf-8"))
    assert [name for name, _ in told["providers"]] == [name for name, _ in TENSORRT.chain]
    assert told["providers"][0][1]["trt_profile_opt_shapes"] == "x:2x16x8x8"
    assert told["providers"][0][1]["trt_engine_cache_path"] == cuda.CACHE
    assert told["session"] == {"ep.context_embed_mode": "1"}
    assert (told["context"], told["rewrites"], told["samples"]) == (None, False, 6)


def test_same_request_same_bytes_in_any_order(tmp_path):
    data = samples()
    first = bundle(tmp_path / "a", data)
    second = bundle(tmp_path / "b", Subset(data, [5, 3, 1, 0, 2, 4]))
    for name in ("samples.npz", "session_options.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_it_runs_compares_and_judges(copy):
    done = run(copy, "--cpu")
    assert (done.returncode, done.stderr) == (0, "")
    found = result(copy)
    assert (found["status"], found["provider"]) == ("run", "CPUExecutionProvider")
    assert found["nodes"]["CPUExecutionProvider"] >= 6
    assert found["elsewhere"] == {}
    (output,) = found["outputs"]
    assert output["sqnr_db"] > 30
    (gate,) = found["gates"]
    assert (gate["name"], gate["passed"], gate["measured"]) == ("min-sqnr", True, output["sqnr_db"])
    assert found["not_judged"] == ["max_drop"]
    assert found["timing"]["shapes"] == {"x": [2, 16, 8, 8]}
    assert found["timing"]["median_ms"] > 0
    assert "this proves the files" in done.stdout
    assert "gate min-sqnr 20.0: kept" in done.stdout
    assert "gate max-drop: not judged here" in done.stdout


def test_a_missed_gate_ends_with_3(tmp_path):
    folder = bundle(tmp_path, gates=Gates(min_sqnr=90, min_agreement=0.1))
    done = run(folder, "--cpu")
    assert done.returncode == 3
    assert [gate["passed"] for gate in result(folder)["gates"]] == [False, True]
    assert result(folder)["status"] == "gate missed"
    assert "gate min-sqnr 90.0: MISSED" in done.stdout


def test_speed_is_judged_against_the_float_model_in_the_bundle(tmp_path):
    folder = bundle(tmp_path, gates=Gates(min_speedup=1e6), float_model="slow.onnx")
    onnx.save(heavy(convolution(codes=False)), folder / "slow.onnx")
    assert run(folder, "--cpu").returncode == 3
    speed, (gate,) = result(folder)["speed"], result(folder)["gates"]
    assert speed["float_ms"] > speed["engine_ms"] > 0
    assert (gate["name"], gate["passed"], gate["measured"]) == (
        "min-speedup",
        False,
        speed["ratio"],
    )
    assert result(folder)["not_judged"] == []


def test_scripts_are_those_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(device_files, "__file__", str(SCRIPTS / "device_files.py"))
    folder = bundle(tmp_path)
    for name in (*SessionRequest.scripts, *HELPERS):
        assert (folder / name).read_bytes() == (SCRIPTS / name).read_bytes(), name


def test_another_model_is_seen_in_the_figures(copy):
    shutil.copy(copy / "float.onnx", copy / "model.onnx")
    assert run(copy, "--cpu").returncode == 0
    (output,) = result(copy)["outputs"]
    assert output["identical"] or output["sqnr_db"] > 120


@pytest.mark.skipif(not cuda.missing("tensorrt"), reason="TensorRT's provider is here")
def test_without_the_provider_it_is_refused(copy):
    done = run(copy)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no TensorrtExecutionProvider: pip install onnxruntime-gpu" in done.stderr
    assert (result(copy)["status"], result(copy)["message"]) == (
        "refused",
        done.stderr.removeprefix("error: ").strip(),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "has format 9"),
        ({"model": "../model.onnx"}, "must be in the folder itself"),
        ({"context": "/tmp/c.onnx"}, "must be in the folder itself"),
        ({"providers": []}, "providers cannot be"),
        ({"providers": [["x"]]}, "is damaged"),
        ({"float_model": "../float.onnx"}, "must be in the folder itself"),
        ({"rewrites": "yes"}, "rewrites cannot be"),
        ({"samples": 7}, "copy the bundle again"),
        ({"inputs": ["y"]}, "do not belong together"),
        ({"model": "absent.onnx"}, "absent.onnx"),
    ],
)
def test_damaged_requests(copy, change, message):
    path = copy / "session_options.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change))
    done = run(copy, "--cpu")
    changed = {"context": None} if "context" in change else change
    assert done.returncode == 2, changed
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_missing_file_is_named(copy):
    (copy / "session_options.json").unlink()
    done = run(copy, "--cpu")
    assert done.returncode == 2
    assert "session_options.json: cannot be read" in done.stderr


def test_without_samples_it_is_loaded_alone(tmp_path):
    folder = bundle(tmp_path, InMemory([]), gates=Gates(min_sqnr=10))
    done = run(folder, "--cpu")
    assert done.returncode == 3  # what cannot be measured fails
    assert result(folder)["nodes"] == {}


def test_the_compiler_reads_what_the_script_found(copy):
    ran = cuda.run_bundle(copy, on_cpu=True)
    assert ran.provider == "CPUExecutionProvider"
    assert ran.nodes["CPUExecutionProvider"] >= 6
    assert ran.timing is not None
    (copy / "model.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"model\.onnx"):
        cuda.run_bundle(copy, on_cpu=True)


def test_the_compiler_outlives_a_crash(copy):
    (copy / "engine_figures.py").write_text("import os, signal\nos.kill(os.getpid(), 11)\n")
    with pytest.raises(EngineError, match="ended with code -11"):
        cuda.run_bundle(copy, on_cpu=True)


def test_a_provider_that_takes_no_node_writes_no_context(tmp_path, monkeypatch):
    folder = bundle(tmp_path, context=True)
    path = folder / "session_options.json"
    told = json.loads(path.read_text("utf-8"))
    assert told["context"] == CONTEXT
    path.write_text(json.dumps(told | {"providers": [["CPUExecutionProvider", {}]]}))
    done = run(folder)
    assert done.returncode == 2
    assert CONTEXT in done.stderr
