"""What each option of ``qcompile build`` changes on the digits; one build varies several options.

A build takes five seconds, three of them for the timing. Timing decides nothing here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.cli import process
from tests.cli.conftest import STATIC
from tests.cli.nets import CALIB, EVAL, MODEL, arrays
from tests.cli.process import Ended, answer, files

pytestmark = pytest.mark.slow


def build(folder: Path, *arguments: str | Path) -> Ended:
    """Build the digits model without measuring what each layer costs."""
    common = ("--calib", CALIB, "--allow-slower", "--no-keep-accuracy", "--quiet", "--json")
    return process.run(folder, "build", MODEL, *common, *arguments)


def in_float(report: Any) -> dict[str, str]:
    return {node["name"]: node["reason"] for node in report["plan"]["float_nodes"]}


def kernels(report: Any) -> dict[str, int]:
    assert report["kernels"]["missing"] == []
    assert report["kernels"]["expected"] == report["kernels"]["obtained"]
    return dict(report["kernels"]["obtained"])


def plan_of(bundle: Path) -> Any:
    return json.loads((bundle / "plan.json").read_text())


def test_same_inputs_give_the_same_bytes_and_more_files(
    static: Ended, work: Path, tmp_path: Path
) -> None:
    """The other build has an empty cache and other threads, and writes what engines do not need."""
    more = ("--jobs", "1", "--optimized", "--dump-passes", "dump", "-o", "again", "-q", "--json")
    report = answer(process.run(tmp_path, *STATIC, *more))
    again = tmp_path / "again"
    assert report["recipe"]["jobs"] == 1
    assert report["calibration"]["reused"] == 0
    for name in ("model.onnx", "plan.json"):
        assert (work / "out" / name).read_bytes() == (again / name).read_bytes(), name

    optimized = again / "model.optimized.onnx"
    assert optimized.name in {artifact["path"] for artifact in report["artifacts"]}
    assert "QLinearConv" in {node.op_type for node in onnx.load(optimized).graph.node}
    images = arrays(EVAL)["image"][:8]
    outputs = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, {"image": images}
        )[0]
        for path in (optimized, again / "model.onnx")
    ]
    np.testing.assert_array_equal(*outputs)

    texts = {path.name: path.read_text() for path in (tmp_path / "dump").rglob("*.txt")}
    assert any("fold-batch-norm" in name for name in texts)
    assert "QuantizeLinear" in next(t for name, t in texts.items() if "insert-qdq" in name)


# -- how ranges are found, what stays in float --------------------------------------------------

CONVOLUTIONS = {"/conv0", "/conv1", "/conv2", "/conv3"}


@pytest.mark.parametrize(
    ("method", "arguments", "wished"),
    [
        ("minmax", "--exclude *nv3", {"/conv3": "*nv3"}),
        ("mse", "--exclude-op Gemm --exclude /conv3", {"/logits": "Gemm", "/conv3": "/conv3"}),
        ("entropy", "--float-first", {"/conv0": "--float-first"}),
        ("percentile", "--float-last", {"/logits": "--float-last"}),
    ],
)
def test_methods_and_wishes(
    static: Ended, work: Path, method: str, arguments: str, wished: dict[str, str]
) -> None:
    options = ("--eval", EVAL, "--calib-method", method, *arguments.split(), "-o", f"by-{method}")
    report = answer(build(work, *options))
    assert report["calibration"]["method"] == method
    assert set(report["calibration"]["chosen"]) == {method}
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20
    assert static.json()["calibration"]["reused"] == 0
    assert report["calibration"]["reused"] == report["calibration"]["tensors"]

    found = in_float(report)
    assert wished.keys() <= found.keys()
    assert all(reason in found[name] for name, reason in wished.items())
    weighted = {*CONVOLUTIONS, "/logits"}
    others = {name: found[name] for name in weighted & found.keys() - wished.keys()}
    assert all("would not pay" in why for why in others.values()), others
    assert kernels(report).get("QLinearConv", 0) == len(CONVOLUTIONS - found.keys())


def test_a_pattern_leaves_all_nodes_that_it_matches_in_float(work: Path) -> None:
    report = answer(build(work, "--exclude", "*conv?", "-o", "no-conv"))
    found = in_float(report)
    assert all("*conv?" in found[name] for name in CONVOLUTIONS)
    assert kernels(report) == {}
    assert report["engine"]["outputs"][0]["relative_l2"] < 1e-5


def test_cpu_samples_and_a_pattern_that_matches_nothing(work: Path) -> None:
    options = ("--cpu", "avx2", "--calib-samples", "50", "--exclude", "no-such-*")
    report = answer(build(work, *options, "-o", "avx2"))
    assert report["plan"]["device"] == "avx2"
    tensors = plan_of(work / "avx2")["tensors"].values()
    assert all(tensor["reduce_range"] for tensor in tensors if tensor["kind"] == "weight")
    data = report["data"]
    assert (data["found"], data["calibration_samples"]) == (200, 50)
    assert (data["evaluation_samples"], data["held_back"]) == (40, True)
    assert any("no-such-*" in notice for notice in report["notices"])


def test_recipe_file_under_flags(work: Path) -> None:
    (work / "recipe.toml").write_text(
        'exclude = ["/conv1"]\n[calibration]\nmethod = "mse"\nholdback = 0.5\n'
    )
    flags = ("--recipe", "recipe.toml", "--calib-method", "minmax", "--cpu", "arm")
    report = answer(build(work, *flags, "-o", "from-recipe"))
    assert "/conv1" in in_float(report)
    data = report["data"]
    assert (data["calibration_samples"], data["evaluation_samples"]) == (100, 100)
    assert set(report["calibration"]["chosen"]) == {"minmax"}
    tensors = plan_of(work / "from-recipe")["tensors"].values()
    assert {tensor["type"] for tensor in tensors if tensor["kind"] == "activation"} == {"int8"}


# -- the plan, edited and fed back ---------------------------------------------------------------


@pytest.fixture
def plan(static: Ended, work: Path) -> Any:
    return plan_of(work / "out")


def test_plan_edited_by_hand_is_followed(report: Any, plan: Any, work: Path) -> None:
    plan["nodes"]["/conv2"] |= {"precision": "float", "reason": "by hand"}
    image = plan["tensors"]["image"]
    image["scale"] = [2 * scale for scale in image["scale"]]
    (work / "by-hand.json").write_text(json.dumps(plan))
    after = answer(build(work, "--eval", EVAL, "--plan", "by-hand.json", "-o", "by-hand"))
    assert in_float(after) == in_float(report) | {"/conv2": "by hand"}
    assert kernels(after)["QLinearConv"] == kernels(report)["QLinearConv"] - 1
    assert not after["kernels"]["missing"]
    assert any("conv0.weight.bias" in notice for notice in after["notices"])
    assert after["engine"]["outputs"][0]["sqnr_db"] > 20
    weights = onnx.load(work / "by-hand" / "model.onnx").graph.initializer
    scales = [w for w in weights if w.name.startswith("image.") and not w.dims and w.data_type == 1]
    assert [float(numpy_helper.to_array(w)) for w in scales] == plan["tensors"]["image"]["scale"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "0" * 64}, "another model"),
        ({"target": "tensorrt"}, "tensorrt"),
        ({"scheme": "int8-dynamic"}, "int8-dynamic"),
        ({"colour": "red"}, "colour"),
        ({"nodes": {"/nowhere": {"op": "Conv", "precision": "int8", "reason": ""}}}, "/nowhere"),
        ({"nodes": {"/conv1": {"op": "Gemm", "precision": "int8", "reason": ""}}}, "/conv1"),
        ({"nodes": {"/conv1": {"op": "Conv", "precision": "int4", "reason": ""}}}, "/conv1"),
        ({"tensors": {"nothing": {}}}, "nothing"),
        ({"tensors": {}}, "grid"),
    ],
)
def test_plan_that_does_not_fit_is_refused(
    plan: Any, work: Path, change: dict[str, Any], named: str
) -> None:
    (work / "misfit.json").write_text(json.dumps(plan | change))
    done = build(work, "--eval", EVAL, "--plan", "misfit.json", "-o", "misfit")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert named in done.err
    assert not (work / "misfit").exists()


# -- gates ---------------------------------------------------------------------------------------


GATES = ("min-sqnr", "min-agreement", "max-drop", "min-speedup")


def gates(*limits: float) -> list[str]:
    return [f"--{name}={limit}" for name, limit in zip(GATES, limits, strict=True)]


def test_missed_gates(plan: Any, work: Path) -> None:
    """A plan that leaves two levels of grey misses every gate."""
    plan["tensors"]["image"]["scale"] = [1.0]
    (work / "coarse.json").write_text(json.dumps(plan))
    limits = gates(30, 0.999, 0.001, 1000)
    done = build(work, "--eval", EVAL, "-o", "coarse", "--plan", "coarse.json", *limits)
    assert done.code == 3
    missed = ", ".join(f"--{name}" for name in GATES)
    assert done.err == f"error: gate missed: {missed}; the engine was not put in place\n"
    report, bundle = done.json(), work / "coarse"
    assert report["status"] == "gate failed"
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == list(GATES)
    assert files(bundle) == ["manifest.json", "plan.json", "report.json"]
    assert json.loads((bundle / "report.json").read_text()) == report


def test_gates_that_hold_and_a_metric_on_prepared_statistics(tmp_path: Path) -> None:
    """``calibrate --eval`` prepares ``build --eval``: both take all samples of ``--calib``."""
    common = ("calibrate", MODEL, "--calib", CALIB, "--eval", EVAL, "--json", "-q")
    prepared = answer(process.run(tmp_path, *common))
    assert (prepared["samples"], prepared["reused"]) == (200, 0)
    (tmp_path / "scores.py").write_text(
        "def confidence(outputs, label, feeds):\n"
        "    return float(outputs['logits'].max() - outputs['logits'].mean())\n"
    )
    metric = ("--metric", "scores:confidence")
    report = answer(build(tmp_path, "--eval", EVAL, *metric, *gates(20, 0.9, 5, 0.01), "-o", "out"))
    assert report["calibration"]["reused"] == len(prepared["tensors"]) > 0
    assert [gate["name"] for gate in report["gates"]] == list(GATES)
    assert all(gate["passed"] for gate in report["gates"])
    assert "scores:confidence" in {score["name"] for score in report["engine"]["scores"]}
    drop = next(gate for gate in report["gates"] if gate["name"] == "max-drop")
    assert drop["note"].startswith("scores:confidence: ")
