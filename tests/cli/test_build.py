"""``qcompile build`` and the commands around it, on real models through ONNX Runtime."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.cli.conftest import Ended, Run
from tests.cli.nets import DIGITS, arrays, perceptron, write_data

MODEL, CALIB, EVAL = DIGITS / "digits.onnx", DIGITS / "calib.npz", DIGITS / "eval.npz"

Build = Callable[..., Ended]


@pytest.fixture
def build(run: Run) -> Build:
    """Build the digits model into ``out``, fast or slow; ``quick`` judges no layer."""

    def command(*arguments: str | Path, output: str = "out", quick: bool = True) -> Ended:
        return run(
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


def test_bundle_report_and_engine(build: Build, tmp_path: Path) -> None:
    report = built(build("--eval", EVAL, quick=False))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "plan.json",
        "report.json",
    ]
    assert json.loads((out / "report.json").read_text()) == report
    assert report["status"] == "built"
    assert report["output"] == str(out)
    assert kernels(report)["QLinearConv"] >= 3
    assert report["plan"]["int8_share"] > 0.5
    assert report["calibration"]["tensors"] > 0
    assert report["data"]["evaluation_samples"] == 597
    top = next(s for s in report["engine"]["scores"] if s["name"] == "top-1 accuracy")
    assert top["engine_value"] >= top["float_value"] - 0.01
    assert report["simulated"]["samples"] == report["engine"]["samples"] == 597
    assert {row["kind"] for row in report["layers"]} == {"activation", "weight"}
    noise = [row["sqnr_db"] for row in report["layers"] if not row["identical"]]
    assert noise == sorted(noise)
    assert report["speed"]["ratio"] > 0

    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    data = arrays(EVAL)
    (logits,) = session.run(None, {"image": data["image"]})
    assert np.mean(logits.argmax(1) == data["label"]) > 0.95


def test_manifest_tells_what_it_was_made_from(build: Build, tmp_path: Path) -> None:
    report = built(build())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["digits.onnx"]["bytes"] == MODEL.stat().st_size
    assert manifest["recipe"] == report["recipe"]
    assert {a["path"]: a["sha256"] for a in report["artifacts"]} == {
        name: entry["sha256"] for name, entry in manifest["artifacts"].items()
    }


def test_same_inputs_give_the_same_bytes(build: Build, run: Run, tmp_path: Path) -> None:
    built(build("--jobs", "1", quick=False))
    cache = tmp_path.with_name(f"{tmp_path.name}-cache")
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


def test_output_has_a_default(run: Run, tmp_path: Path) -> None:
    done = run("build", MODEL, "--calib", CALIB, "--allow-slower", "-q")
    assert done == Ended(0, "", "")
    assert (tmp_path / "digits-int8-ort-cpu" / "model.onnx").exists()


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


def test_plan_comes_back_unchanged(build: Build, tmp_path: Path) -> None:
    built(build())
    report = built(build("--plan", "out/plan.json", output="again"))
    for name in ("model.onnx", "plan.json"):
        first = (tmp_path / "out" / name).read_bytes()
        assert first == (tmp_path / "again" / name).read_bytes(), name
    assert kernels(report)


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


def test_missed_gate_keeps_the_good_bundle(build: Build, tmp_path: Path) -> None:
    built(build())
    good = (tmp_path / "out" / "model.onnx").read_bytes()
    done = build("--min-sqnr", "90", "--force")
    assert done.code == 3
    assert (tmp_path / "out" / "model.onnx").read_bytes() == good
    assert done.json()["output"] == str(tmp_path / "out.failed")
    assert not (tmp_path / "out.failed" / "model.onnx").exists()


def test_slower_engine_is_refused_unless_allowed(run: Run, tmp_path: Path) -> None:
    onnx.save(perceptron(0, layers=1), tmp_path / "tiny.onnx")  # 32 weights: rounding costs more
    write_data(tmp_path / "data")
    common = ("build", "tiny.onnx", "--dynamic", "--eval", "data", "-q", "--json")
    done = run(*common, "-o", "out")
    assert done.code == 3, done.err
    assert [g["name"] for g in done.json()["gates"] if not g["passed"]] == ["not-slower"]
    assert run(*common, "-o", "slow", "--allow-slower").code == 0


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


def test_dynamic_needs_no_data(run: Run, tmp_path: Path) -> None:
    onnx.save(perceptron(128), tmp_path / "net.onnx")
    report = built(run("build", "net.onnx", "--dynamic", "--allow-slower", "-q", "--json"))
    out = tmp_path / "net-int8-dynamic-ort-cpu"
    assert report["output"] == str(out)
    assert kernels(report) == {"DynamicQuantizeMatMul": 3}
    assert report["plan"]["nodes"]["int8-dynamic"] == 3
    assert report["calibration"] is None
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    y = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for path in (tmp_path / "net.onnx", out / "model.onnx")
    ]
    np.testing.assert_allclose(y[1][0], y[0][0], atol=0.1 * np.abs(y[0][0]).max())


def test_dynamic_compares_on_data_that_is_given(run: Run, tmp_path: Path) -> None:
    onnx.save(perceptron(128), tmp_path / "net.onnx")
    write_data(tmp_path / "data")
    common = ("build", "net.onnx", "--dynamic", "--allow-slower", "-q", "--json", "-o", "out")
    report = built(run(*common, "--eval", "data"))
    assert report["engine"]["samples"] == 40
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20


# -- statistics are kept ---------------------------------------------------------------------


def test_second_build_reuses_statistics(build: Build) -> None:
    first = built(build())["calibration"]
    assert first["reused"] == 0
    for method in ("mse", "minmax"):
        again = built(build("--calib-method", method, output=method))
        assert again["calibration"]["reused"] == again["calibration"]["tensors"] > 0


def test_calibrate_prepares_a_build(run: Run, build: Build) -> None:
    common = (MODEL, "--calib", CALIB, "--json", "-q")
    first = run("calibrate", *common).json()
    assert (first["samples"], first["found"], first["reused"]) == (160, 200, 0)
    assert run("calibrate", *common).json()["reused"] == len(first["tensors"]) > 0
    assert built(build())["calibration"]["reused"] == len(first["tensors"])


def test_calibrate_with_eval_prepares_a_build_with_eval(run: Run, build: Build) -> None:
    first = run("calibrate", MODEL, "--calib", CALIB, "--eval", EVAL, "--json", "-q").json()
    assert first["samples"] == 200
    report = built(build("--eval", EVAL))
    assert report["calibration"]["reused"] == len(first["tensors"])


def test_calibrate_tells_ranges(run: Run) -> None:
    done = run("calibrate", MODEL, "--calib", CALIB, "--calib-method", "minmax", "--json", "-q")
    rows = {row["name"]: row for row in done.json()["tensors"]}
    assert (rows["image"]["low"], rows["image"]["high"]) == (0, 1)
    assert (rows["image"]["range_low"], rows["image"]["range_high"]) == (0, 1)
    done = run("calibrate", MODEL, "--calib", CALIB, "--json", "-q")
    assert done.json()["tensors"][0]["range_high"] is None


# -- the other commands ------------------------------------------------------------------------


def test_compare(run: Run, build: Build) -> None:
    report = built(build("--eval", EVAL))
    done = run("compare", MODEL, "out/model.onnx", "--data", EVAL, "--json", "-q")
    assert done.code == 0, done.err
    assert done.json()["comparison"] == report["engine"]
    same = run("compare", MODEL, MODEL, "--data", EVAL, "--json", "-q").json()["comparison"]
    assert same["outputs"][0]["identical"]


def test_compare_with_a_metric(run: Run, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def zero(outputs, label, feeds):\n    return 0.0\n")
    common = ("compare", MODEL, MODEL, "--data", EVAL, "--json", "-q")
    scores = run(*common, "--metric", "judge:zero").json()["comparison"]["scores"]
    assert "judge:zero" in {score["name"] for score in scores}


def test_inspect_agrees_with_a_build(run: Run, build: Build) -> None:
    report = built(build())
    seen = run("inspect", MODEL, "--json", "-q").json()
    assert seen["model"] == report["model"]
    for key in ("nodes", "by_op", "tensors", "float_nodes", "int8_share"):
        assert seen["plan"][key] == report["plan"][key], key
    assert seen["int8_weight_bytes"] < 0.3 * seen["weight_bytes"]


def test_bench(run: Run, build: Build, tmp_path: Path) -> None:
    report = built(build())
    done = run("bench", MODEL, "out/model.onnx", MODEL, "--json", "-q")
    first, engine, same = done.json()["rows"]
    assert done.json()["inputs"] == "made up"
    assert (first["ratio"], first["bytes"]) == (None, MODEL.stat().st_size)
    assert engine["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    assert engine["ratio"] == pytest.approx(report["speed"]["ratio"], rel=0.5)
    assert same["ratio"] == pytest.approx(1, abs=0.3)
    assert run("bench", MODEL, "--data", CALIB, "--json", "-q").json()["inputs"] == "data"
