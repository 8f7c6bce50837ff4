"""``build_engine.py``, the half that builds: for real, by TensorRT for RTX."""

import json
import subprocess
import sys

import pytest

from qcompile.emit.tensorrt_files import EngineOptions
from tests.emit.bundles import STAND_IN, bundle, run


def edit(folder, **changes):
    path = folder / "build.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_it_builds_int8_with_a_dynamic_batch(tmp_path):
    folder = bundle(tmp_path / "b")
    done, result = run(folder, "--build-only")
    assert done.returncode == 0, done.stderr
    engine = folder / "model.engine"
    assert result["status"] == "built"
    assert result["engine"]["bytes"] == engine.stat().st_size > 10_000
    assert (result["engine"]["name"], len(result["engine"]["sha256"])) == ("model.engine", 64)
    assert "not run, no gate judged" in done.stdout
    assert f"the engine is {engine}" in done.stdout
    assert "build: 0 of " in done.stdout
    assert not list(folder.glob(".*"))


def test_the_engine_goes_where_it_is_wanted(tmp_path):
    folder = bundle(tmp_path / "b")
    done, result = run(folder, "--build-only", "--engine", tmp_path / "there.plan")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.plan").stat().st_size == result["engine"]["bytes"]
    assert not (folder / "model.engine").exists()
    done, result = run(folder, "--build-only", "--engine", tmp_path / "nowhere" / "there.plan")
    assert (done.returncode, result["message"]) == (2, f"{tmp_path / 'nowhere'}: no such folder")
    assert "build:" not in done.stdout


def test_a_parse_error_names_node_and_operator(tmp_path):
    folder = bundle(tmp_path / "b", operator="Relu")
    model = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(model.replace(b"Relu", b"Rulu"))
    done, result = run(folder, "--build-only")
    assert done.returncode == 2
    error = result["errors"][0]
    assert (error["node"], error["operator"]) == ("act", "Rulu")
    assert "model.onnx: TensorRT refuses Rulu node 'act'" in done.stderr.splitlines()[-1]
    assert not (folder / "model.engine").exists()


def test_a_file_that_is_no_model_is_refused(tmp_path):
    folder = bundle(tmp_path / "b")
    (folder / "model.onnx").write_bytes(b"no model")
    done, result = run(folder, "--build-only")
    assert (done.returncode, result["status"]) == (2, "refused")
    (folder / "model.onnx").unlink()
    done, result = run(folder, "--build-only")
    assert done.returncode == 2
    assert result["message"].endswith("model.onnx: no such file")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profiles": {}}, "x: [-1, 16, 8, 8] has dynamic dimensions: give it a profile"),
        ({"profiles": {"x": [[1, 16]] * 3}}, "does not fit the model's [-1, 16, 8, 8]"),
        ({"profiles": {"x": [[1, 16, 8, 8]] * 3, "z": []}}, "'z': no such input; there are: x"),
        ({"tensorrt": 10}, "made for TensorRT 10, here is 11.4.0.106"),
        ({"version": 2}, "has format 2, not 1"),
    ],
)
def test_bad_input_is_refused_in_a_line(tmp_path, changes, said):
    done, result = run(edit(bundle(tmp_path / "b"), **changes), "--build-only")
    assert done.returncode == 2
    assert said in result["message"]
    assert done.stderr.splitlines()[-1] == f"error: {result['message']}"


def test_without_its_request_it_says_so(tmp_path):
    folder = bundle(tmp_path / "b")
    done, _ = run(folder, "--folder", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "build.json: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_reach_the_builder(tmp_path):
    small = EngineOptions(workspace_bytes=1 << 20)  # too little for any kernel
    done, result = run(bundle(tmp_path / "b", options=small), "--build-only")
    assert (done.returncode, result["status"]) == (2, "refused")
    assert "TensorRT cannot build the engine" in result["message"]
    more = EngineOptions(workspace_bytes=1 << 30, optimization_level=1, weight_streaming=True)
    done, result = run(bundle(tmp_path / "c", options=more), "--build-only")
    assert done.returncode == 0, done.stderr


def test_a_timing_cache_of_something_else_is_no_obstacle(tmp_path):
    folder = bundle(tmp_path / "b")
    (folder / "timing.cache").write_bytes(b"something else")
    assert run(folder, "--build-only")[0].returncode == 0


def test_without_tensorrt_it_says_what_is_missing(tmp_path):
    folder = bundle(tmp_path / "b")
    command = [sys.executable, "-I", folder / "build_engine.py"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: tensorrt cannot be imported")


def test_it_runs_alone_without_qcompile(tmp_path):
    """An isolated Python that has tensorrt finds the helpers beside the script, and no qcompile."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    folder = bundle(tmp_path / "b")
    names = ["engine_figures", "engine_request", "engine_timing", "run_engine"]
    start = (
        "import sys, runpy, warnings; warnings.simplefilter('ignore'); "
        f"sys.path.append({str(STAND_IN)!r}); sys.argv = ['x', '--build-only']; code = 0\n"
        f"try: runpy.run_path({str(folder / 'build_engine.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop: code = stop.code\n"
        "mine = sorted(m for m in sys.modules if m.startswith('qcompile'))\n"
        f"helpers = sorted(m for m in sys.modules if m in {names!r})\n"
        "print(code, mine, helpers)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", start], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == f"0 [] {names}", done.stderr


def test_without_a_gpu_it_says_so_before_it_builds(tmp_path):
    """The runtime is only loaded where there is no GPU, else this would build."""
    empty = {"LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done, result = run(bundle(tmp_path / "b"), **empty)
    assert done.returncode == 2
    assert "no GPU can be used" in result["message"]
    assert "build:" not in done.stdout
