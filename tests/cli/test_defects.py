"""Defects that were found once, as processes: each must stay fixed."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.cli import process
from tests.cli.conftest import Run
from tests.cli.nets import model_of, perceptron, write_data
from tests.cli.process import Ended, answer

PLAN = {"model": "", "target": "ort-cpu", "device": "vnni", "scheme": "int8"}


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A folder with a model and data."""
    onnx.save(perceptron(64), tmp_path / "net.onnx")
    write_data(tmp_path / "data")
    return tmp_path


def refused(done: Ended, *words: str) -> None:
    """Assert that a command ended with one line that has these words."""
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    for word in words:
        assert word in done.err


def decided(tmp_path: Path, *ends: onnx.NodeProto) -> None:
    """Save a perceptron whose output ``y`` goes through further nodes, into an integer ``z``."""
    model = perceptron(64)
    model.graph.node.extend(ends)
    del model.graph.output[:]
    z = helper.make_tensor_value_info("z", onnx.TensorProto.INT64, ["n"])
    model.graph.output.append(z)
    onnx.save(model, tmp_path / "net.onnx")


@pytest.mark.slow
def test_a_model_that_ends_in_a_decision_is_built(run: Run, net: Path) -> None:
    decided(net, helper.make_node("ArgMax", ["y"], ["z"], "decide", axis=1, keepdims=0))
    options = ("--int8", "--calib", "data", "--allow-slower", "-o", "out", "--quiet", "--json")
    report = answer(run("build", "net.onnx", *options))
    assert report["plan"]["nodes"]["int8"] >= 3
    assert report["canonical"]["relative_l2"] == 0


def quantized() -> onnx.ModelProto:
    """A MatMul behind a QDQ pair."""
    grid = [
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.uint8(9), "z"),
    ]
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("MatMul", ["d", "w"], ["y"], "matmul"),
    ]
    return model_of(nodes, [*grid, weight])


def test_a_model_that_is_quantized_already_keeps_its_grids(run: Run, fresh: Run, net: Path) -> None:
    onnx.save(quantized(), net / "net.onnx")
    done = run("build", "net.onnx", "--calib", "data", "--json", "--quiet", "--allow-slower")
    assert done.code == 0, done.err
    assert done.json()["source"]["activations"] == 1
    assert run("calibrate", "net.onnx", "--calib", "data", "--quiet").code == 0
    assert run("compare", "net.onnx", "net.onnx", "--data", "data", "--quiet").code == 0
    floats = fresh("dequantize", "net.onnx", "-o", "float.onnx", "--quiet")
    assert floats.code == 0, floats.err
    assert {node.op_type for node in onnx.load(net / "float.onnx").graph.node} == {"MatMul"}


@pytest.mark.parametrize(
    "options",
    ["--exclude a*", "--exclude-op Add", "--float-first", "--float-last", "--calib-method mse"],
)
def test_a_plan_and_an_option_that_it_overrides_are_refused(
    run: Run, net: Path, options: str
) -> None:
    (net / "plan.json").write_text(json.dumps(PLAN | {"tensors": {}, "nodes": {}}))
    words = options.split()
    done = run("build", "net.onnx", "--calib", "data", "--plan", "plan.json", "-q", *words)
    refused(done, f"{words[0]}: --plan plan.json has decided that")


def test_two_schemes_are_refused(run: Run, net: Path) -> None:
    refused(run("build", "net.onnx", "--int8", "--dynamic", "-q"), "--int8", "--dynamic")


def test_values_out_of_range_name_what_the_user_wrote(run: Run, net: Path) -> None:
    (net / "net.toml").write_text("[gates]\nmin_speedup = 0\n")
    from_flag = run("build", "net.onnx", "--min-speedup", "0", "-q")
    refused(from_flag, "--min-speedup: ")
    assert "gates" not in from_flag.err
    refused(run("build", "net.onnx", "--recipe", "net.toml", "-q"), "net.toml: gates.min_speedup: ")
    both = run("build", "net.onnx", "--recipe", "net.toml", "--min-speedup", "-1", "-q")
    refused(both, "error: --min-speedup: ")


def test_libraries_do_not_write_on_stderr(fresh: Run, net: Path) -> None:
    model = perceptron(16)
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, net / "net.onnx")
    done = fresh("inspect", "net.onnx", "--quiet", "--json")
    refused(done, "error: net.onnx: ", "nowhere")


DYNAMIC = ("build", "net.onnx", "--dynamic", "--cpu", "vnni", "--allow-slower", "-q", "--json")


@pytest.fixture(scope="module")
def many_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build into ``out`` for a CPU with VNNI by too many jobs; two weights lie in ``w.bin``."""
    folder = tmp_path_factory.mktemp("jobs")
    model = perceptron(64, layers=2)
    for weight, place in zip(model.graph.initializer, ("a", "b"), strict=True):
        (folder / place).mkdir()
        (folder / place / "w.bin").write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=f"{place}/w.bin")
    onnx.save(model, folder / "net.onnx")
    answer(process.run(folder, *DYNAMIC, "--jobs", "100000", "-o", "out"))
    return folder


@pytest.mark.slow
def test_jobs_end_at_the_number_of_cores(many_jobs: Path) -> None:
    report = json.loads((many_jobs / "out" / "report.json").read_text())
    assert report["recipe"]["jobs"] == os.cpu_count()
    assert any("--jobs 100000" in notice for notice in report["notices"])


@pytest.mark.slow
def test_the_manifest_tells_files_of_one_name_apart(many_jobs: Path) -> None:
    manifest = json.loads((many_jobs / "out" / "manifest.json").read_text())
    assert sorted(manifest["source"]) == ["a/w.bin", "b/w.bin", "net.onnx"]


@pytest.mark.slow
def test_the_cpu_is_noticed_only_where_weights_became_int8(many_jobs: Path) -> None:
    int8 = json.loads((many_jobs / "out" / "report.json").read_text())
    left = answer(process.run(many_jobs, *DYNAMIC, "--exclude", "*", "-o", "float"))
    for report, noticed in ((int8, True), (left, False)):
        assert any("VNNI" in notice for notice in report["notices"]) == noticed
    done = process.run(many_jobs, "build", "net.onnx", "--cpu", "vnni", "--calib", "none")
    assert done.code == 2
    assert "VNNI" not in done.err
