"""Layers ranked by what rounding each alone does, without the command line around it."""

from pathlib import Path

import numpy as np
import pytest

from qcompile.errors import ModelError, RecipeError
from qcompile.progress import Silent
from qcompile.ranking import sensitivity
from qcompile.recipe import Recipe
from qcompile.report.console_sensitivity import render_sensitivity
from qcompile.report.sensitivity import SensitivityReport
from tests.assets import asset, needs_assets
from tests.fragile import FRAGILE, LAYERS, write_fragile
from tests.report.test_console import shown
from tests.tiny import weight, write_net, write_samples


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fragile(tmp_path_factory.mktemp("fragile"))


def ranked(model: Path, progress: Silent | None = None, **asked: object) -> SensitivityReport:
    recipe = Recipe.model_validate({"jobs": 1, **asked})
    return sensitivity(model, model.parent / "data", recipe=recipe, progress=progress)


@pytest.fixture(scope="module")
def found(fragile: Path, tmp_path_factory: pytest.TempPathFactory) -> SensitivityReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QCOMPILE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ranked(fragile)


def test_the_fragile_layer_is_ranked_first(found):
    first, second, *_ = found.layers
    assert first.name == FRAGILE
    assert first.share > 0.5
    assert first.sqnr_db < second.sqnr_db - 10
    assert [row.share for row in found.layers] == sorted(
        (row.share for row in found.layers), reverse=True
    )
    assert sum(row.share for row in found.layers) == pytest.approx(1)
    assert found.together.sqnr_db == pytest.approx(found.summed.sqnr_db, abs=2)


def test_all_nodes_are_accounted_for(found):
    convolutions = {f"c{i}" for i in range(LAYERS)}
    assert {row.name for row in found.layers} >= convolutions
    assert len(found.layers) + found.moved + sum(found.in_float.values()) == 2 * LAYERS + 3
    work = {row.name: row.work for row in found.layers}
    assert sum(work.values()) == pytest.approx(1)
    assert work["c0"] == pytest.approx(work[FRAGILE])


def test_layers_are_timed_in_float_and_in_codes(found):
    times = {row.name: (row.float_ms, row.rounded_ms) for row in found.layers}
    assert all(ms > 0 for i in range(LAYERS) for ms in times[f"c{i}"])
    assert found.conversion_ms > 0
    assert found.together.float_ms == pytest.approx(sum(a or 0 for a, _ in times.values()))


def test_it_is_printed(found):
    text = shown(render_sensitivity(found))
    rows = [line.split()[-1] for line in text.splitlines()]
    assert rows.index(FRAGILE) < rows.index("c0")
    assert "the sum of what each does alone" in text


def test_a_second_run_measures_nothing(fragile):
    first, second = Silent(), Silent()
    assert ranked(fragile, first) == ranked(fragile, second)
    assert sum("layers on" in notice for notice in first.notices) == 1
    assert not any("layers on" in notice for notice in second.notices)
    assert any(notice.endswith("layers from the cache") for notice in second.notices)


def test_engines_for_other_devices_are_ranked_without_times(fragile):
    found = ranked(fragile, target="tensorrt", sm=(87,))
    assert found.layers[0].name == FRAGILE
    assert found.timing.startswith("no times: the engine is for tensorrt (87)")
    assert not any(row.float_ms or row.rounded_ms for row in found.layers)
    assert found.conversion_ms is None


def test_layers_that_round_while_running_are_ranked(tmp_path):
    rough = weight(1, 64, 64)
    rough[0] = 60  # what it is multiplied with is always zero; the grid is lost on the others
    first = weight(0, 32, 64)
    first[:, 0] = 0
    body = "[m0] a = MatMul(x, w0)\n[t] b = Tanh(a)\n[m1] y = MatMul(b, w1)"
    net = write_net(tmp_path / "net.onnx", "float[1,32] x", body, w0=first, w1=rough)
    write_samples(tmp_path / "data", count=20, x=(1, 32))
    found = ranked(net, scheme="int8-dynamic")
    assert [row.name for row in found.layers] == ["m1", "m0"]
    assert found.layers[0].share > 0.6
    assert sum(row.work for row in found.layers) == pytest.approx(1)


def test_a_metric_orders_the_layers(fragile, tmp_path, monkeypatch):
    (tmp_path / "hits.py").write_text(
        "def hit(outputs, label, feeds):\n    return outputs['y'].argmax() == label[0]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = ranked(fragile, metric="hits:hit")
    assert found.float_score == 1
    assert found.layers[0].name == FRAGILE
    assert found.layers[0].loss == pytest.approx(1 - found.layers[0].score)
    losses = [row.loss for row in found.layers]
    assert losses == sorted(losses, reverse=True)
    assert "hits:hit: 1 in float" in shown(render_sensitivity(found))
    (tmp_path / "hits.py").write_text("def hit(outputs, label, feeds):\n    return 1.0\n")
    monkeypatch.delitem(__import__("sys").modules, "hits")
    assert ranked(fragile, metric="hits:hit").layers[0].loss == 0, "another metric of this name"


def test_a_recipe_with_remedies_is_told(fragile):
    heard = Silent()
    ranked(fragile, heard, accuracy={"algorithms": ["smoothquant"]})
    assert any(notice.startswith("[accuracy] is left out") for notice in heard.notices)


def test_what_cannot_be_ranked_is_refused(tmp_path):
    plain = write_net(tmp_path / "plain.onnx", "float[1,8] x", "y = Tanh(x)")
    write_samples(tmp_path / "data", x=(1, 8))
    with pytest.raises(ModelError, match=r"plain\.onnx: no layer to rank: nothing of it computes"):
        ranked(plain)
    with pytest.raises(
        RecipeError, match="scheme weight-only: layers are ranked by what activations"
    ):
        ranked(plain, scheme="weight-only")


@needs_assets
@pytest.mark.slow
def test_perplexity_orders_the_layers_of_a_language_model(tmp_path):
    tokens = np.load(asset("data", "tinystories_tok512.npz"))["ids"][:2, :48].astype(np.int64)
    (tmp_path / "data").mkdir()
    for index, row in enumerate(tokens):
        np.savez(tmp_path / "data" / f"{index}.npz", input_ids=row[None])
    (tmp_path / "net.onnx").symlink_to(asset("models", "stories260k.onnx"))
    found = ranked(tmp_path / "net.onnx", calibration={"method": "minmax"})
    assert found.metric == "perplexity"
    assert found.float_score > 1
    assert found.layers[0].loss >= found.layers[-1].loss
