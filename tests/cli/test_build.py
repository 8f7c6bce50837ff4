"""What each option of ``qcompile build`` changes, on real models through ONNX Runtime.

In this process, with the timing kept short; ``test_flows`` runs the commands as users do.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.cli.conftest import Run
from tests.cli.nets import CALIB, EVAL, MODEL, arrays, perceptron, write_data
from tests.cli.process import Ended

Build = Callable[..., Ended]


@pytest.fixture
def build(run_here: Run) -> Build:
    """Build the digits model into ``out``, fast or slow; ``quick`` judges no layer."""

    def command(*arguments: str | Path, output: str = "out", quick: bool = True) -> Ended:
        return run_here(
            *("build", MODEL, "--calib", CALIB, "--allow-slower", "--quiet", "--json"),
            *(["--no-keep-accuracy"] if quick else []),
            *("-o", output, *arguments),
        )

    return command


def built(done: Ended) -> Any:
    assert done.code == 0, done.err
    return done.json()


def in_float(report: Any) -> dict[str, str]:
    return {node["name"]: node["reason"] for node in report["plan"]["float_nodes"]}


def kernels(report: Any) -> dict[str, int]:
    assert report["kernels"]["missing"] == []
    assert report["kernels"]["expected"] == report["kernels"]["obtained"]
    return dict(report["kernels"]["obtained"])


# -- the default build -----------------------------------------------------------------------


def test_same_inputs_give_the_same_bytes(build: Build, run_here: Run, tmp_path: Path) -> None:
    built(build("--jobs", "1", quick=False))
    cache = tmp_path / "cache"
    for entry in cache.iterdir():
        entry.unlink()
    built(build("--jobs", "2", output="again", quick=False))
    for name in ("model.onnx", "plan.json"):
        first = (tmp_path / "out" / name).read_bytes()
        assert first == (tmp_path / "again" / name).read_bytes(), name


def test_a_share_is_held_back_without_eval(build: Build) -> None:
    data = built(build())["data"]
    assert (data["calibration_samples"], data["evaluation_samples"]) == (160, 40)
    assert data["held_back"]


def test_calib_samples(build: Build) -> None:
    assert built(build("--calib-samples", "50"))["data"]["calibration_samples"] == 50


@pytest.mark.parametrize("method", ["auto", "minmax", "percentile", "mse", "entropy"])
def test_each_calibration_method(build: Build, method: str) -> None:
    report = built(build("--calib-method", method))
    assert report["calibration"]["method"] == method
    if method != "auto":
        assert set(report["calibration"]["chosen"]) == {method}
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20


def test_cpu_decides_the_codes(build: Build, tmp_path: Path) -> None:
    assert built(build("--cpu", "avx2"))["plan"]["cpu"] == "avx2"
    tensors = json.loads((tmp_path / "out" / "plan.json").read_text())["tensors"]
    assert all(t["reduce_range"] for t in tensors.values() if t["kind"] == "weight")
    built(build("--cpu", "arm", "--force"))
    tensors = json.loads((tmp_path / "out" / "plan.json").read_text())["tensors"]
    assert {t["type"] for t in tensors.values() if t["kind"] == "activation"} == {"int8"}


def test_optimized_model_runs(build: Build, tmp_path: Path) -> None:
    report = built(build("--optimized"))
    file = tmp_path / "out" / "model.optimized.onnx"
    assert file.name in {artifact["path"] for artifact in report["artifacts"]}
    images = arrays(EVAL)["image"][:8]
    outputs = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, {"image": images}
        )[0]
        for path in (file, tmp_path / "out" / "model.onnx")
    ]
    np.testing.assert_array_equal(*outputs)


def test_dump_passes(build: Build, tmp_path: Path) -> None:
    built(build("--dump-passes", "dump"))
    texts = {path.name: path.read_text() for path in (tmp_path / "dump").rglob("*.txt")}
    assert any("fold-batch-norm" in name for name in texts)
    assert "QuantizeLinear" in next(t for name, t in texts.items() if "insert-qdq" in name)


# -- what stays in float -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "nodes", "reason"),
    [
        (("--exclude", "/conv1"), {"/conv1"}, "/conv1"),
        (("--exclude", "*conv?"), {"/conv0", "/conv1", "/conv2", "/conv3"}, "*conv?"),
        (("--exclude-op", "Gemm"), {"/logits"}, "Gemm"),
        (("--exclude-op", "Gemm", "--exclude", "/conv3"), {"/logits", "/conv3"}, "excluded"),
        (("--float-first",), {"/conv0"}, "--float-first"),
        (("--float-last",), {"/logits"}, "--float-last"),
    ],
)
def test_wishes_are_float_with_the_reason(
    build: Build, arguments: tuple[str, ...], nodes: set[str], reason: str
) -> None:
    report = built(build(*arguments))
    found = in_float(report)
    assert nodes <= found.keys()
    assert all(reason in found[name] for name in nodes)
    weighted = {"/conv0", "/conv1", "/conv2", "/conv3", "/logits"}
    others = {name: found[name] for name in weighted & found.keys() - nodes}
    assert all("would not pay" in why for why in others.values()), others
    convolutions = weighted - {"/logits"} - found.keys()
    assert kernels(report).get("QLinearConv", 0) == len(convolutions)


def test_a_pattern_that_matches_nothing_is_noticed(build: Build) -> None:
    notices = built(build("--exclude", "no-such-*"))["notices"]
    assert any("no-such-*" in notice for notice in notices)


def test_recipe_file(build: Build, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        'exclude = ["/conv1"]\nkeep_accuracy = false\n'
        '[calibration]\nmethod = "mse"\nholdback = 0.5\n'
    )
    report = built(build("--recipe", "recipe.toml"))
    assert "/conv1" in in_float(report)
    assert report["calibration"]["method"] == "mse"
    assert report["data"]["calibration_samples"] == 100
    report = built(build("--recipe", "recipe.toml", "--calib-method", "minmax", "--force"))
    assert report["calibration"]["method"] == "minmax"


# -- the plan, edited and fed back ---------------------------------------------------------------


def test_plan_edited_by_hand_is_followed(build: Build, tmp_path: Path) -> None:
    before = built(build())
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    plan["nodes"]["/conv2"] |= {"precision": "float", "reason": "by hand"}
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    after = built(build("--plan", "edited.json", output="edited"))
    assert in_float(after) == in_float(before) | {"/conv2": "by hand"}
    assert kernels(after)["QLinearConv"] == kernels(before)["QLinearConv"] - 1
    assert after["engine"]["outputs"][0]["sqnr_db"] > 20


def test_plan_needs_no_calibration_method(build: Build, tmp_path: Path) -> None:
    built(build())
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    scale = plan["tensors"]["image"]["scale"][0]
    plan["tensors"]["image"]["scale"] = [2 * scale]
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    built(build("--plan", "edited.json", output="edited"))
    engine = onnx.load(tmp_path / "edited" / "model.onnx")
    scales = [i for i in engine.graph.initializer if i.name.startswith("image.") and not i.dims]
    values = [float(onnx.numpy_helper.to_array(i)) for i in scales if i.data_type == 1]
    assert values == [pytest.approx(2 * scale)]


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
    build: Build, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    built(build())
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    (tmp_path / "edited.json").write_text(json.dumps(plan | change))
    done = build("--plan", "edited.json", output="edited")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert named in done.err
    assert not (tmp_path / "edited").exists()


# -- gates and outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "gate"),
    [
        (("--min-sqnr", "90"), "min-sqnr"),
        (("--min-speedup", "1000"), "min-speedup"),
        (("--eval", str(CALIB), "--max-drop", "0"), "max-drop"),
    ],
)
def test_missed_gate(build: Build, tmp_path: Path, arguments: tuple[str, ...], gate: str) -> None:
    done = build(*arguments)
    assert done.code == 3
    assert f"--{gate}" in done.err
    assert done.err.count("\n") == 1
    report = done.json()
    assert report["status"] == "gate failed"
    assert [g["name"] for g in report["gates"] if not g["passed"]] == [gate]
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["manifest.json", "plan.json", "report.json"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_gates_that_hold(build: Build, tmp_path: Path) -> None:
    gates = ("--min-sqnr", "20", "--min-agreement", "0.9", "--max-drop", "0.05")
    report = built(build("--eval", EVAL, *gates))
    assert {g["name"] for g in report["gates"]} == {"min-sqnr", "min-agreement", "max-drop"}
    assert all(g["passed"] for g in report["gates"])


def test_force_replaces_a_bundle(build: Build, tmp_path: Path) -> None:
    built(build("--calib-method", "minmax"))
    first = (tmp_path / "out" / "plan.json").read_bytes()
    assert build("--calib-method", "mse").code == 2
    assert (tmp_path / "out" / "plan.json").read_bytes() == first
    built(build("--calib-method", "mse", "--force"))
    assert (tmp_path / "out" / "plan.json").read_bytes() != first


def test_metric_of_the_user(build: Build, tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text(
        "def confidence(outputs, label, feeds):\n"
        "    return float(outputs['logits'].max() - outputs['logits'].mean())\n"
    )
    report = built(build("--metric", "scores:confidence", "--max-drop", "5"))
    assert "scores:confidence" in {score["name"] for score in report["engine"]["scores"]}
    assert report["gates"][0]["name"] == "max-drop"


# -- dynamic ---------------------------------------------------------------------------------


def test_dynamic_compares_on_data_that_is_given(run_here: Run, tmp_path: Path) -> None:
    onnx.save(perceptron(128), tmp_path / "net.onnx")
    write_data(tmp_path / "data")
    common = ("build", "net.onnx", "--dynamic", "--allow-slower", "-q", "--json", "-o", "out")
    report = built(run_here(*common, "--eval", "data"))
    assert report["engine"]["samples"] == 40
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20


# -- statistics are kept ---------------------------------------------------------------------


def test_second_build_reuses_statistics(build: Build) -> None:
    first = built(build())["calibration"]
    assert first["reused"] == 0
    for method in ("mse", "minmax"):
        again = built(build("--calib-method", method, output=method))
        assert again["calibration"]["reused"] == again["calibration"]["tensors"] > 0


def test_calibrate_with_eval_prepares_a_build_with_eval(run_here: Run, build: Build) -> None:
    first = run_here("calibrate", MODEL, "--calib", CALIB, "--eval", EVAL, "--json", "-q").json()
    assert first["samples"] == 200
    report = built(build("--eval", EVAL))
    assert report["calibration"]["reused"] == len(first["tensors"])


def test_calibrate_tells_ranges(run_here: Run) -> None:
    done = run_here(
        "calibrate", MODEL, "--calib", CALIB, "--calib-method", "minmax", "--json", "-q"
    )
    rows = {row["name"]: row for row in done.json()["tensors"]}
    assert (rows["image"]["low"], rows["image"]["high"]) == (0, 1)
    assert (rows["image"]["range_low"], rows["image"]["range_high"]) == (0, 1)
    done = run_here("calibrate", MODEL, "--calib", CALIB, "--json", "-q")
    assert done.json()["tensors"][0]["range_high"] is None


# -- the other commands ------------------------------------------------------------------------


def test_compare_with_a_metric(run_here: Run, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def zero(outputs, label, feeds):\n    return 0.0\n")
    common = ("compare", MODEL, MODEL, "--data", EVAL, "--json", "-q")
    scores = run_here(*common, "--metric", "judge:zero").json()["comparison"]["scores"]
    assert "judge:zero" in {score["name"] for score in scores}


def test_inspect_agrees_with_a_build(run_here: Run, build: Build) -> None:
    report = built(build())
    seen = run_here("inspect", MODEL, "--json", "-q").json()
    for key in ("nodes", "by_op", "tensors", "float_nodes", "int8_share"):
        assert seen["plan"][key] == report["plan"][key], key
