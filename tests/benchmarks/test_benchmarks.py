"""The benchmarks' own parts: graphs that run, intervals that cover, tables, sample folders."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.assets import ROOT, needs_assets
from tests.benchmarks import halves, models, scoring, speed, suite, summary
from tests.benchmarks.engines import sample_folder
from tests.benchmarks.scoring import Measured
from tests.benchmarks.table import Table


def run(model: onnx.ModelProto, feed):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def test_mobilenetv2_has_its_shape_and_runs():
    model = models.mobilenetv2()
    operators = [node.op_type for node in model.graph.node]
    assert (operators.count("Conv"), operators.count("Clip"), operators.count("Add")) == (
        52,
        35,
        10,
    )
    weights = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert weights == pytest.approx(3.5e6, rel=0.02)
    first, second = (run(model, feed) for feed in models.images(2))
    assert first.shape == (1, 1000)
    assert np.isfinite(first).all()
    assert np.abs(first - second).max() > 0.01


@pytest.mark.slow
def test_resnet50_has_its_shape_and_runs():
    model = models.resnet50()
    operators = [node.op_type for node in model.graph.node]
    assert (operators.count("Conv"), operators.count("Add")) == (53, 16)
    weights = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert weights == pytest.approx(25.6e6, rel=0.01)
    assert np.isfinite(run(model, models.images(1)[0])).all()


def test_bert_in_small_runs():
    model = models.bert_base(layers=2, hidden=64, heads=4, words=100)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("MatMul") == 2 * 8
    assert (operators.count("Erf"), operators.count("LayerNormalization")) == (2, 5)
    output = run(model, models.token_ids(1, words=100)[0])
    assert output.shape == (1, 128, 64)
    assert output.std() == pytest.approx(1, abs=0.1)


def test_a_graph_is_the_same_for_the_same_seed():
    one, other = (models.bert_base(3, layers=1, hidden=8, heads=2, words=5) for _ in range(2))
    assert one.SerializeToString() == other.SerializeToString()


def measured(hits) -> Measured:
    return Measured(float(hits.mean()), lambda keep: float(hits[keep].mean()), len(hits), [])


def test_interval_of_a_paired_difference():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        a, b = rng.random(400) < 0.8, rng.random(400) < 0.75
        gap, half = scoring.difference(measured(a), measured(b))
        covered += abs(gap - 0.05) <= half
    assert 180 <= covered <= 198


def test_equal_engines_do_not_differ():
    hits = np.random.default_rng(0).random(100) < 0.5
    assert scoring.difference(measured(hits), measured(hits)) == (0.0, 0.0)


@needs_assets
@pytest.mark.parametrize("name", ["espcn_x3", "stories260k", "dscnn_kws"])
def test_all_samples_give_the_scorers_own_total(name):
    found = scoring.measure(name, suite.model_path(name))
    assert found.statistic(np.arange(found.samples)) == pytest.approx(found.value, rel=1e-6)


def test_float_is_as_fast_as_float(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(models.bert_base(layers=1, hidden=64, heads=4, words=100), path)
    feed = models.token_ids(1, words=100)[0]
    timings = speed.interleaved({"FP": path, "again": path}, feed, seconds=1)
    assert timings["FP"].speedup == 1
    assert timings["again"].low < 1.3
    assert timings["again"].high > 0.7


def test_sample_folder_holds_the_feeds(tmp_path):
    feeds = models.token_ids(3, words=7)
    folder = sample_folder(feeds, tmp_path / "data")
    files = sorted(folder.glob("*.npz"))
    assert len(files) == 3
    with np.load(files[2], allow_pickle=False) as file:
        np.testing.assert_array_equal(file["ids"], feeds[2]["ids"])


def test_table_in_markdown(capsys):
    table = Table("T", ["a", "b"])
    table.add("1", "2")
    assert table.markdown() == "## T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert capsys.readouterr().out == "1 | 2\n"


def test_the_page_of_halves_has_all_rows_as_the_benchmark_writes_them():
    page = (ROOT / "docs" / "halves.md").read_text("utf-8")
    rows, stamps = halves.rows_of(page)
    assert list(rows) == [(name, scheme) for name in halves.MODELS for scheme in halves.SCHEMES]
    assert all(all(cells) for cells in rows.values())
    mixed = dict(sorted(rows.items(), key=lambda row: row[1]))
    assert halves.table_of(mixed).within(page, halves.PART, "\n".join(stamps)) == page


def test_the_readme_shows_the_best_of_the_peers():
    accuracy = Table("a", ["model", "FP", "d", "all", "w", "NNCF", "qcompile"])
    accuracy.rows = [
        ["net", "80", "1", "79.5", "fails", "78", "79.9"],
        ["stories260k", "3.3", "48", "5", "3.4", "fails", "3.35"],
    ]
    speed = Table("s", ["model", "FP ms", "d", "all", "w", "NNCF", "qcompile"])
    ours = "1.40x (1.39 to 1.42)"
    speed.rows = [
        ["net", "1", "0.5x (0 to 1)", "1.30x (1 to 2)", "fails", "1.20x (1 to 2)", ours],
        ["shape", "9", "fails", "fails", "fails", "fails", ours],
    ]
    text = "above\n<!-- results -->\nold\n<!-- end -->\nbelow\n"
    made = summary.filled(text, accuracy.markdown(), speed.markdown(), "On a PC.")
    assert made.startswith("above\n<!-- results -->\n| model |")
    assert made.endswith("On a PC.\n<!-- end -->\nbelow\n")
    assert "| net (top-1) | 80 | 79.5 | 78 | 79.9 | 1.30x | 1.40x |" in made
    assert "| stories260k (perplexity) | 3.3 | 3.4 | fails | 3.35 |  |  |" in made
    assert "| shape (random weights) | | | | | fails | 1.40x |" in made
    assert summary.filled(made, accuracy.markdown(), speed.markdown(), "On a PC.") == made
