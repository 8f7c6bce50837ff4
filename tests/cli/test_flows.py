"""The main jobs as users do them: real commands as processes, on a real model."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.cli import process
from tests.cli.conftest import STATIC, Run
from tests.cli.nets import CALIB, EVAL, MODEL, arrays, perceptron, write_data
from tests.cli.process import Ended, answer, files

pytestmark = pytest.mark.slow

FILES = ["manifest.json", "model.onnx", "plan.json", "report.json"]


@pytest.fixture(scope="session")
def run(work: Path) -> Run:
    """Run a command in the folder that these tests share, with its cache."""
    return partial(process.run, work)


@pytest.fixture(scope="session")
def fresh(work: Path) -> Run:
    """Run it there in a Python of its own: each command at least once."""
    return partial(process.fresh, work)


@pytest.fixture(scope="session")
def plain(run: Run, work: Path) -> Ended:
    """A build that names no output and says all it can; it does not measure what layers cost."""
    done = run("build", MODEL, "--calib", CALIB, "--allow-slower", "--no-keep-accuracy")
    assert done.code == 0, done.err
    return done


# -- build ------------------------------------------------------------------------------------


def test_json_is_alone_on_stdout(static: Ended, report: Any, work: Path) -> None:
    assert json.loads((work / "out" / "report.json").read_text()) == report
    assert static.out == (work / "out" / "report.json").read_text()
    assert "calibrate: ranges: 200 in " in static.err
    assert "\x1b" not in static.out + static.err


def test_static_build(report: Any, work: Path) -> None:
    assert files(work / "out") == FILES
    assert (report["status"], report["output"]) == ("built", str(work / "out"))
    assert report["kernels"]["missing"] == []
    assert report["kernels"]["expected"] == report["kernels"]["obtained"]
    assert report["kernels"]["obtained"]["QLinearConv"] >= 3
    assert report["plan"]["int8_share"] > 0.5
    assert sum(report["calibration"]["chosen"].values()) == report["calibration"]["tensors"] > 0
    assert report["data"]["evaluation_samples"] == 597
    top = next(s for s in report["engine"]["scores"] if s["name"] == "top-1 accuracy")
    assert top["engine_value"] >= top["float_value"] - 0.01
    for section in (report["engine"], report["simulated"]):
        (logits,) = section["outputs"]
        assert section["samples"] == 597
        assert logits["sqnr_interval"][0] < logits["sqnr_db"] < logits["sqnr_interval"][1]
        assert 0.99 < logits["cosine"] < 1
        assert 0 < logits["max_abs_error"] < 1
        assert {agreed["name"] for agreed in section["agreements"]} == {"top-1", "top-5"}
        accuracies = [s for s in section["scores"] if s["name"].endswith("accuracy")]
        assert len(accuracies) == 2
        assert all(s["interval"][0] <= s["difference"] <= s["interval"][1] for s in accuracies)
    assert {row["kind"] for row in report["layers"]} == {"activation", "weight"}
    noise = [row["sqnr_db"] for row in report["layers"] if not row["identical"]]
    assert noise == sorted(noise)
    speed = report["speed"]
    assert speed["interval"][0] <= speed["ratio"] <= speed["interval"][1]
    assert speed["ratio"] == pytest.approx(speed["float_ms"] / speed["engine_ms"], rel=0.2)
    sizes = {artifact["path"]: artifact["bytes"] for artifact in report["artifacts"]}
    assert sizes["model.onnx"] == (work / "out" / "model.onnx").stat().st_size
    assert sizes["model.onnx"] < report["model"]["bytes"] == MODEL.stat().st_size


def test_engine_runs_and_is_accurate(static: Ended, work: Path) -> None:
    engine = work / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(engine, providers=["CPUExecutionProvider"])
    data = arrays(EVAL)
    (logits,) = session.run(None, {"image": data["image"]})
    assert np.mean(logits.argmax(1) == data["label"]) > 0.95


def test_manifest_tells_what_it_was_made_from(report: Any, work: Path) -> None:
    manifest = json.loads((work / "out" / "manifest.json").read_text())
    assert manifest["source"]["digits.onnx"]["bytes"] == MODEL.stat().st_size
    assert manifest["recipe"] == report["recipe"]
    assert {a["path"]: a["sha256"] for a in report["artifacts"]} == {
        name: entry["sha256"] for name, entry in manifest["artifacts"].items()
    }


def test_default_output_and_summary(plain: Ended, static: Ended, work: Path) -> None:
    assert files(work / "digits-int8-ort-cpu") == FILES
    assert "digits-int8-ort-cpu" in plain.out
    assert "QLinearConv" in plain.out
    assert "calibrate" in plain.err
    assert "\x1b" not in plain.out + plain.err
    assert "plan: weights" in static.err
    assert "plan: weights" not in plain.err


def test_quiet_force_is_silent_and_replaces(run: Run, static: Ended, work: Path) -> None:
    shutil.copytree(work / "out", work / "old")
    options = ("--eval", EVAL, "--no-keep-accuracy", "--allow-slower", "-o", "old", "--quiet")
    kept = run("build", MODEL, "--calib", CALIB, *options)
    assert (kept.code, kept.out, kept.err.count("\n")) == (2, "", 1)
    assert "--force" in kept.err
    first = (work / "out" / "plan.json").read_bytes()
    assert (work / "old" / "plan.json").read_bytes() == first
    assert run("build", MODEL, "--calib", CALIB, *options, "--force") == Ended(0, "", "")
    assert (work / "old" / "plan.json").read_bytes() != first
    assert files(work / "old") == FILES


def test_plan_comes_back_unchanged(run: Run, static: Ended, work: Path) -> None:
    answer(run(*STATIC, "--plan", "out/plan.json", "-o", "again", "--json", "-q"))
    for name in ("model.onnx", "plan.json"):
        first = (work / "out" / name).read_bytes()
        assert first == (work / "again" / name).read_bytes(), name


def test_missed_gate_keeps_the_good_bundle(run: Run, static: Ended, work: Path) -> None:
    good = {path: path.read_bytes() for path in (work / "out").iterdir()}
    done = run(*STATIC, "--min-sqnr", "90", "-o", "out", "--force", "--json", "-q")
    assert done.code == 3
    assert done.err == "error: gate missed: --min-sqnr; the engine was not put in place\n"
    failed = done.json()
    assert (failed["status"], failed["output"]) == ("gate failed", str(work / "out.failed"))
    assert files(work / "out.failed") == ["manifest.json", "plan.json", "report.json"]
    assert {path: path.read_bytes() for path in (work / "out").iterdir()} == good


def test_slower_engine_is_refused_unless_allowed(run: Run, fresh: Run, work: Path) -> None:
    onnx.save(perceptron(0, layers=1), work / "tiny.onnx")  # 32 weights: rounding costs more
    write_data(work / "tiny-data")
    common = ("build", "tiny.onnx", "--dynamic", "--eval", "tiny-data", "-q")
    done = fresh(*common, "-o", "slow", "--json")
    assert done.code == 3, done.err
    report = done.json()
    assert [g["name"] for g in report["gates"] if not g["passed"]] == ["not-slower"]
    assert report["engine"]["samples"] == 40
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20
    assert files(work / "slow") == ["manifest.json", "plan.json", "report.json"]
    assert run(*common, "-o", "allowed", "--allow-slower") == Ended(0, "", "")


def test_dynamic_needs_no_data(run: Run, work: Path) -> None:
    onnx.save(perceptron(128), work / "net.onnx")
    report = answer(run("build", "net.onnx", "--dynamic", "--allow-slower", "-q", "--json"))
    out = work / "net-int8-dynamic-ort-cpu"
    assert report["output"] == str(out)
    assert report["kernels"]["obtained"] == {"DynamicQuantizeMatMul": 3}
    assert report["plan"]["nodes"]["int8-dynamic"] == 3
    assert (report["recipe"]["scheme"], report["calibration"]) == ("int8-dynamic", None)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    y = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for path in (work / "net.onnx", out / "model.onnx")
    ]
    np.testing.assert_allclose(y[1][0], y[0][0], atol=0.1 * np.abs(y[0][0]).max())


# -- the commands around it ---------------------------------------------------------------------


def test_calibrate_keeps_what_a_build_needs(run: Run, plain: Ended, tmp_path: Path) -> None:
    command = ("calibrate", MODEL, "--calib", CALIB, "--json", "-q")
    first = answer(process.fresh(tmp_path, *command))
    assert (first["samples"], first["found"], first["reused"]) == (160, 200, 0)
    count = len(first["tensors"])
    assert answer(process.run(tmp_path, *command))["reused"] == count > 0
    assert answer(run(*command))["reused"] == count


def test_compare_says_what_the_build_said(run: Run, fresh: Run, report: Any) -> None:
    found = answer(fresh("compare", MODEL, "out/model.onnx", "--data", EVAL, "--json", "-q"))
    assert found["comparison"] == report["engine"]
    shown = run("compare", MODEL, MODEL, "--data", EVAL)
    assert shown.code == 0
    assert "identical" in shown.out


def test_compare_with_a_metric(run: Run, work: Path) -> None:
    (work / "judge.py").write_text("def zero(outputs, label, feeds):\n    return 0.0\n")
    common = ("compare", MODEL, MODEL, "--data", EVAL, "--json", "-q")
    scores = answer(run(*common, "--metric", "judge:zero"))["comparison"]["scores"]
    assert "judge:zero" in {score["name"] for score in scores}


def test_calibrate_tells_ranges_of_one_method(run: Run) -> None:
    common = ("calibrate", MODEL, "--calib", CALIB, "--json", "-q")
    tensors = answer(run(*common, "--calib-method", "minmax"))["tensors"]
    image = next(row for row in tensors if row["name"] == "image")
    assert (image["low"], image["high"]) == (image["range_low"], image["range_high"]) == (0, 1)
    assert answer(run(*common))["tensors"][0]["range_high"] is None


def test_inspect_says_what_a_build_does(fresh: Run, plain: Ended, work: Path) -> None:
    built = json.loads((work / "digits-int8-ort-cpu" / "report.json").read_text())
    seen = answer(fresh("inspect", MODEL, "--json", "-q"))
    assert seen["model"] == built["model"]
    for key in ("nodes", "by_op", "tensors", "float_nodes", "int8_share"):
        assert seen["plan"][key] == built["plan"][key], key
    assert seen["int8_weight_bytes"] < 0.3 * seen["weight_bytes"]


def test_inspect_says_why_not(run: Run, work: Path) -> None:
    onnx.save(perceptron(16, op="Sin"), work / "waves.onnx")
    seen = answer(run("inspect", "waves.onnx", "--json", "-q"))
    reasons = {node["op"]: node["reason"] for node in seen["plan"]["float_nodes"]}
    assert reasons.keys() == {"MatMul", "Sin"}
    assert all(reasons.values())
    text = run("inspect", "waves.onnx").out
    assert "in float" in text
    assert "Sin" in text


def test_bench_says_what_the_build_said(run: Run, fresh: Run, report: Any, work: Path) -> None:
    found = answer(fresh("bench", MODEL, "out/model.onnx", MODEL, "--json", "-q"))
    first, engine, same = found["rows"]
    assert found["inputs"] == "made up"
    assert (first["ratio"], first["bytes"]) == (None, MODEL.stat().st_size)
    assert engine["bytes"] == (work / "out" / "model.onnx").stat().st_size
    assert engine["ratio"] == pytest.approx(report["speed"]["ratio"], rel=0.3)
    assert same["ratio"] == pytest.approx(1, abs=0.1)
    assert answer(run("bench", MODEL, "--data", CALIB, "--json", "-q"))["inputs"] == "data"
