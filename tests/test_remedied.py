"""Remedies in a build: chosen by name or by measured noise, told, followed again from the plan."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.errors import RecipeError
from qcompile.plan import read_plan
from qcompile.recipe import Gates, Recipe
from qcompile.remedies import Remedies
from qcompile.report.console_remedies import remedy_lines
from qcompile.report.schema import Report
from tests.planning.tools import graph_of
from tests.report.test_console import shown

BODY = """
    n = LayerNormalization(x, gamma, beta)
    h = Gemm(n, w, a)
    r = Relu(h)
    y = Gemm(r, v, b)
"""
LOUD = [3, 17]
"""Columns that are 200 times as large as the others, and rows of the weight that undo it."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loud")
    rng = np.random.default_rng(0)
    factors = np.where(np.isin(np.arange(32), LOUD), 200, 1).astype(np.float32)
    weights = {
        "gamma": factors,
        "beta": np.zeros(32, np.float32),
        "w": (rng.standard_normal((32, 64)) / factors[:, None]).astype(np.float32),
        "a": rng.standard_normal(64).astype(np.float32),
        "v": rng.standard_normal((64, 32)).astype(np.float32),
        "b": rng.standard_normal(32).astype(np.float32),
    }
    ir.save(graph_of("float[64, 32] x", BODY, **weights), folder / "net.onnx")
    (folder / "data").mkdir()
    for index in range(10):
        x = rng.standard_normal((64, 32)).astype(np.float32)
        np.savez(folder / "data" / f"{index}.npz", x=x)
    return folder / "net.onnx"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qcompile.proof.SHOWN_SECONDS", 0.05)
    monkeypatch.setattr("qcompile.proof.JUDGED_SECONDS", 0.05)


def built(
    net: Path, output: Path, *names: str, plan: Path | None = None, **asked: object
) -> Report:
    accuracy = {"accuracy": {"algorithms": names}} if names else {}
    recipe = Recipe.model_validate({"gates": Gates(allow_slower=True), **accuracy, **asked})
    return qcompile.build(net, calib=net.parent / "data", output=output, recipe=recipe, plan=plan)


def sqnr(report: Report) -> float:
    return report.engine.outputs[0].sqnr_db or 0.0


def test_auto_keeps_what_lowers_the_noise_and_says_so(net, tmp_path):
    plain = built(net, tmp_path / "plain", "rtn")
    found = built(net, tmp_path / "auto")
    section = found.remedies
    assert plain.remedies is None
    assert section.trials[0].remedy == ""
    assert any(trial.kept for trial in section.trials)
    assert sqnr(found) > sqnr(plain) + 10
    told = shown(remedy_lines(section))
    assert "all on codes: as it is" in told
    assert "the float outputs moved by" in told


@pytest.mark.parametrize("remedy", ["smoothquant", "llm-int8"])
def test_each_remedy_of_loud_columns_regains_the_loss(net, tmp_path, remedy):
    plain = sqnr(built(net, tmp_path / "plain", "rtn"))
    found = built(net, tmp_path / "mended", remedy, "rtn")
    noise = [10 ** (-level / 10) for level in (plain, sqnr(found))]
    assert noise[1] < 0.1 * noise[0]
    assert not found.remedies.trials
    if remedy == "llm-int8":
        row = found.remedies.outliers[0]
        assert (row.channels, row.columns) == (tuple(LOUD), 32)
        assert row.share == len(LOUD) / 32
        assert 0 < row.of_model < row.share
        assert f"{len(LOUD)} of 32" in shown(remedy_lines(found.remedies))


def test_a_plan_with_remedies_gives_the_same_bytes_again(net, tmp_path):
    names = ("smoothquant", "llm-int8", "bias-correction", "gptq")
    first = qcompile.build(
        net,
        calib=net.parent / "data",
        output=tmp_path / "first",
        recipe=Recipe(accuracy={"algorithms": names}, gates=Gates(allow_slower=True)),
        dump_passes=tmp_path / "dumps",
    )
    assert (tmp_path / "dumps" / "remedies" / "01-rescale-channels.txt").is_file()
    built(net, tmp_path / "again", plan=tmp_path / "first" / "plan.json")
    for name in ("model.onnx", "plan.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert read_plan(tmp_path / "first" / "plan.json").remedies
    told = shown(remedy_lines(first.remedies))
    assert "bias-correction, empirical: " in told


def test_columns_are_split_for_dynamic_builds_too(net, tmp_path):
    plain = built(net, tmp_path / "plain", "rtn", scheme="int8-dynamic")
    found = built(net, tmp_path / "split", "llm-int8", scheme="int8-dynamic")
    assert sqnr(found) > sqnr(plain) + 10


def test_rows_keep_their_scales_where_a_plan_is_followed_that_found_no_loud_column(net, tmp_path):
    asked = {"algorithms": ["llm-int8"], "threshold": 1e4}
    built(net, tmp_path / "first", scheme="int8-dynamic", accuracy=asked)
    assert read_plan(tmp_path / "first" / "plan.json").remedies == Remedies(by_row=True)
    plan = tmp_path / "first" / "plan.json"
    built(net, tmp_path / "again", scheme="int8-dynamic", plan=plan)
    for name in ("model.onnx", "plan.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_auto_tries_remedies_where_activations_are_rounded_while_running(net, tmp_path):
    plain = built(net, tmp_path / "plain", "rtn", scheme="int8-dynamic")
    found = built(net, tmp_path / "auto", scheme="int8-dynamic")
    tried = [trial.remedy for trial in found.remedies.trials]
    assert tried[:2] == ["", "smoothquant"]
    assert sqnr(found) > sqnr(plain) + 10


def test_a_mul_of_its_own_is_counted_and_named(net, tmp_path):
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((32, 64)).astype(np.float32)}
    (tmp_path / "data").mkdir()
    for index in range(10):
        x = rng.standard_normal((64, 32)).astype(np.float32)
        x[:, LOUD] *= 200
        np.savez(tmp_path / "data" / f"{index}.npz", x=x)
    ir.save(graph_of("float[64, 32] x", "y = MatMul(x, w)", **weights), tmp_path / "net.onnx")
    section = built(tmp_path / "net.onnx", tmp_path / "o", "smoothquant", "rtn").remedies
    assert section.multiplied == {"x": "no node of the graph makes the value"}
    told = shown(remedy_lines(section))
    assert "1 of them by a Mul of their own" in told
    assert "no node of the graph makes the value" in told


def test_a_remedy_that_finds_no_place_says_why(net, tmp_path):
    body = BODY.replace("r = Relu(h)", "r = Clip(h, lo, hi)")
    source = ir.load(net)
    weights = {n: v.const_value.numpy() for n, v in source.graph.initializers.items()}
    ends = {"lo": np.zeros((), np.float32), "hi": np.full((), 6, np.float32)}
    ir.save(graph_of("float[64, 32] x", body, **weights, **ends), tmp_path / "net.onnx")
    (tmp_path / "data").symlink_to(net.parent / "data")
    asked = ("equalize", "absorb-bias", "rtn")
    report = built(tmp_path / "net.onnx", tmp_path / "o", *asked)
    said = [n for n in report.notices if n.startswith("--algorithm")]
    assert [n.split(":")[0] for n in said] == [
        "--algorithm equalize changes nothing",
        "--algorithm absorb-bias changes nothing",
    ]
    told = shown(remedy_lines(report.remedies))
    assert "equalize: Clip makes it: its bound would have to differ by channel" in told
    assert "absorb-bias: Clip makes it: a Relu alone passes a shift on" in told


def test_a_quantized_source_takes_no_remedy(net, tmp_path):
    built(net, tmp_path / "first", "rtn")
    source = tmp_path / "first" / "model.onnx"
    recipe = Recipe.model_validate({"accuracy": {"algorithms": ["smoothquant"]}})
    with pytest.raises(RecipeError, match=r"--algorithm smoothquant: .* is quantized already"):
        qcompile.build(source, calib=net.parent / "data", output=tmp_path / "o", recipe=recipe)


def test_no_samples_no_measured_remedy(net, tmp_path):
    recipe = Recipe.model_validate(
        {"scheme": "int8-dynamic", "accuracy": {"algorithms": ["smoothquant"]}}
    )
    with pytest.raises(RecipeError, match="--algorithm smoothquant looks at activations: give"):
        qcompile.build(net, output=tmp_path / "o", recipe=recipe)


def test_learned_codes_are_counted(net, tmp_path):
    pytest.importorskip("torch", reason="AdaRound needs torch")
    asked = {"accuracy": {"algorithms": ["adaround"], "steps": 5, "seed": 3}}
    report = built(net, tmp_path / "o", **asked)
    told = shown(remedy_lines(report.remedies))
    assert (
        f"learned codes for {report.remedies.learned.weights} of 2 weights, 5 steps, seed 3" in told
    )
