"""The main jobs as users do them: real commands as processes, real models, nothing shortened."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.cli import process
from tests.cli.nets import CALIB, EVAL, MODEL, arrays, perceptron, write_data
from tests.cli.process import Ended

pytestmark = pytest.mark.slow

Run = Callable[..., Ended]
STATIC = ("build", MODEL, "--int8", "--calib", CALIB, "--eval", EVAL, "--allow-slower")
FILES = ["manifest.json", "model.onnx", "plan.json", "report.json"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(work: Path) -> Run:
    """Run a command in the folder that the tests of this file share, with its cache."""
    return partial(process.run, work)


@pytest.fixture(scope="module")
def static(run: Run) -> Ended:
    """The static build, into ``out``."""
    done = run(*STATIC, "-o", "out", "--json")
    assert done.code == 0, done.err
    return done


@pytest.fixture
def report(static: Ended) -> Any:
    return static.json()


def answer(done: Ended) -> Any:
    """Return what a quiet command says in JSON, and assert that it says nothing else."""
    assert (done.code, done.err) == (0, "")
    return done.json()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    assert report["calibration"]["tensors"] > 0
    assert report["data"]["evaluation_samples"] == 597
    top = next(s for s in report["engine"]["scores"] if s["name"] == "top-1 accuracy")
    assert top["engine_value"] >= top["float_value"] - 0.01
    assert report["simulated"]["samples"] == report["engine"]["samples"] == 597
    assert {row["kind"] for row in report["layers"]} == {"activation", "weight"}
    noise = [row["sqnr_db"] for row in report["layers"] if not row["identical"]]
    assert noise == sorted(noise)
    assert report["speed"]["ratio"] > 0


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


def test_default_output_and_summary(run: Run, work: Path) -> None:
    done = run("build", MODEL, "--calib", CALIB, "--allow-slower", "--no-keep-accuracy")
    assert done.code == 0, done.err
    assert files(work / "digits-int8-ort-cpu") == FILES
    assert "digits-int8-ort-cpu" in done.out
    assert "QLinearConv" in done.out
    assert "calibrate" in done.err
    assert "\x1b" not in done.out + done.err


def test_quiet_build_is_silent(run: Run) -> None:
    options = ("--calib", CALIB, "--allow-slower", "--no-keep-accuracy", "-o", "quiet")
    assert run("build", MODEL, *options, "--quiet") == Ended(0, "", "")


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


def test_slower_engine_is_refused_unless_allowed(run: Run, work: Path) -> None:
    onnx.save(perceptron(0, layers=1), work / "tiny.onnx")  # 32 weights: rounding costs more
    write_data(work / "tiny-data")
    common = ("build", "tiny.onnx", "--dynamic", "--eval", "tiny-data", "-q")
    done = run(*common, "-o", "slow", "--json")
    assert done.code == 3, done.err
    assert [g["name"] for g in done.json()["gates"] if not g["passed"]] == ["not-slower"]
    assert files(work / "slow") == ["manifest.json", "plan.json", "report.json"]
    assert run(*common, "-o", "allowed", "--allow-slower") == Ended(0, "", "")


def test_dynamic_needs_no_data(run: Run, work: Path) -> None:
    onnx.save(perceptron(128), work / "net.onnx")
    report = answer(run("build", "net.onnx", "--dynamic", "--allow-slower", "-q", "--json"))
    out = work / "net-int8-dynamic-ort-cpu"
    assert report["output"] == str(out)
    assert report["kernels"]["obtained"] == {"DynamicQuantizeMatMul": 3}
    assert report["plan"]["nodes"]["int8-dynamic"] == 3
    assert report["calibration"] is None
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    y = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for path in (work / "net.onnx", out / "model.onnx")
    ]
    np.testing.assert_allclose(y[1][0], y[0][0], atol=0.1 * np.abs(y[0][0]).max())


# -- the commands around it ---------------------------------------------------------------------


def test_calibrate_prepares_a_build(run: Run, tmp_path: Path) -> None:
    fresh = partial(process.run, tmp_path)
    common = (MODEL, "--calib", CALIB, "--json", "-q")
    first = answer(fresh("calibrate", *common))
    assert (first["samples"], first["found"], first["reused"]) == (160, 200, 0)
    count = len(first["tensors"])
    assert answer(fresh("calibrate", *common))["reused"] == count > 0
    report = answer(fresh("build", *common, "--allow-slower", "--no-keep-accuracy"))
    assert report["calibration"]["reused"] == count


def test_compare_says_what_the_build_said(run: Run, report: Any) -> None:
    found = answer(run("compare", MODEL, "out/model.onnx", "--data", EVAL, "--json", "-q"))
    assert found["comparison"] == report["engine"]
    shown = run("compare", MODEL, MODEL, "--data", EVAL)
    assert shown.code == 0
    assert "identical" in shown.out


def test_inspect_says_what_the_build_said(run: Run, report: Any) -> None:
    seen = answer(run("inspect", MODEL, "--json", "-q"))
    assert seen["model"] == report["model"]
    by_name = {node["name"]: node["reason"] for node in report["plan"]["float_nodes"]}
    for node in seen["plan"]["float_nodes"]:  # the build may leave more, which it has measured
        assert by_name[node["name"]] == node["reason"]
    assert seen["int8_weight_bytes"] < 0.3 * seen["weight_bytes"]


def test_bench_says_what_the_build_said(run: Run, report: Any, work: Path) -> None:
    found = answer(run("bench", MODEL, "out/model.onnx", MODEL, "--json", "-q"))
    first, engine, same = found["rows"]
    assert found["inputs"] == "made up"
    assert (first["ratio"], first["bytes"]) == (None, MODEL.stat().st_size)
    assert engine["bytes"] == (work / "out" / "model.onnx").stat().st_size
    assert engine["ratio"] == pytest.approx(report["speed"]["ratio"], rel=0.3)
    assert same["ratio"] == pytest.approx(1, abs=0.1)
    assert answer(run("bench", MODEL, "--data", CALIB, "--json", "-q"))["inputs"] == "data"
