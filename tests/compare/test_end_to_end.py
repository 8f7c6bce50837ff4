import json
import math
import sys

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.compare.end_to_end import compare, compare_all
from qcompile.compare.metric import Metric, load_metric
from qcompile.compare.results import Comparison
from qcompile.errors import DataError, EngineError, RecipeError
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from tests.assets import asset, needs_assets


def linear(noise=0.0, classes=10, seed=0):
    """A real model in ONNX Runtime: scores = MatMul(x (N, 6), W (6, classes)) + noise on W."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(6, classes)) + noise * rng.normal(size=(6, classes))
    text = (
        '<ir_version: 10, opset_import: ["" : 21]>'
        f"g (float[N, 6] x) => (float[N, {classes}] scores, int64[N] best)"
        " { scores = MatMul(x, W) best = ArgMax <axis = 1, keepdims = 0> (scores) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    value = next(v for node in model.graph for v in node.inputs if v.name == "W")
    value.const_value = ir.tensor(weight.astype(np.float32), name="W")
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(weight.shape)
    model.graph.register_initializer(value)
    return Session(model).run


def samples(count=40, rows=1, seed=1, labels=None):
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.normal(size=(rows, 6)).astype(np.float32)} for _ in range(count)]
    return InMemory(feeds, labels)


def test_a_model_against_itself_is_identical():
    run = linear()
    found = compare(run, run, samples(), progress=Silent())
    scores, best = found.outputs
    assert scores.identical
    assert scores.note == "identical"
    assert (scores.sqnr_db, scores.cosine, scores.max_abs_error) == (None, 1, 0)
    assert best.equal == 1
    assert [(a.name, a.share, a.count) for a in found.agreements] == [
        ("top-1", 1, 40),
        ("top-5", 1, 40),
    ]
    assert found.scores == ()


def test_numbers_are_those_of_the_whole_data():
    reference, engine = linear(), linear(noise=0.1)
    data = samples()
    silent = Silent()
    found = compare(reference, engine, data, progress=silent)
    r = np.concatenate([reference(f)["scores"] for f in data.feeds]).astype(float)
    t = np.concatenate([engine(f)["scores"] for f in data.feeds]).astype(float)
    scores, best = found.outputs
    assert scores.sqnr_db == pytest.approx(10 * math.log10((r**2).sum() / ((r - t) ** 2).sum()))
    assert scores.cosine == pytest.approx((r * t).sum() / np.linalg.norm(r) / np.linalg.norm(t))
    assert scores.max_abs_error == pytest.approx(np.abs(r - t).max())
    assert scores.sqnr_interval.low < scores.sqnr_db < scores.sqnr_interval.high
    top1 = next(a for a in found.agreements if a.name == "top-1")
    assert top1.share == pytest.approx((r.argmax(1) == t.argmax(1)).mean())
    assert best.equal == pytest.approx(top1.share)
    assert 0 < top1.interval.low < top1.share <= top1.interval.high
    assert silent.notices == []


def test_order_of_samples_changes_no_number():
    data = samples(rows=3)
    turned = InMemory(list(reversed(data.feeds)))
    pair = linear(), linear(noise=0.1)
    one = compare(*pair, data, progress=Silent()).outputs[0]
    other = compare(*pair, turned, progress=Silent()).outputs[0]
    assert one.model_copy(update={"sqnr_interval": None}) == other.model_copy(
        update={"sqnr_interval": None}
    )


@pytest.mark.parametrize("rows", [1, 5])
def test_accuracy_with_labels(rows):
    data = samples(rows=rows)
    reference, engine = linear(), linear(noise=0.4)
    rng = np.random.default_rng(0)
    labels = [
        np.where(rng.random(rows) < 0.8, reference(f)["best"], rng.integers(0, 10, rows))
        for f in data.feeds
    ]
    if rows == 1:
        labels = [label[0] for label in labels]
    found = compare(reference, engine, InMemory(data.feeds, labels), progress=Silent())
    top1, top5 = found.scores
    expected = np.concatenate([np.atleast_1d(label) for label in labels])
    for value, run in ((top1.float_value, reference), (top1.engine_value, engine)):
        best = np.concatenate([run(f)["best"] for f in data.feeds])
        assert value == pytest.approx((best == expected).mean())
    assert top1.difference == pytest.approx(top1.engine_value - top1.float_value)
    assert top1.difference < 0
    assert top1.interval.low < top1.difference < top1.interval.high
    assert top1.count == 40 * rows
    assert top5.name == "top-5 accuracy"
    assert top5.engine_value >= top1.engine_value


def test_labels_outside_the_classes_are_told():
    data = samples(4)
    silent = Silent()
    labels = [np.array(k) for k in (3, -1, 10, 2)]
    found = compare(linear(), linear(), InMemory(data.feeds, labels), progress=silent)
    assert found.scores[0].count == 2
    assert any("2 label(s) are no class" in note for note in silent.notices)


def test_labels_that_fit_nothing_are_told():
    data = samples(3)
    silent = Silent()
    labels = [np.zeros(7, np.int64)] * 3
    found = compare(linear(), linear(), InMemory(data.feeds, labels), progress=silent)
    assert found.scores == ()
    assert any("fit no output" in note for note in silent.notices)


def changed(run, **edits):
    """A runner whose outputs are edited: name to function of the array."""

    def edited(feeds):
        outputs = run(feeds)
        return {k: edits[k](v) if k in edits else v for k, v in outputs.items()}

    return edited


def test_nan_of_the_engine_is_told():
    silent = Silent()
    broken = changed(linear(), scores=lambda a: np.where(a > 1, np.float32(np.nan), a))
    found = compare(linear(), broken, samples(5), progress=silent)
    scores = found.outputs[0]
    assert scores.broken > 0
    assert scores.sqnr_db is None
    assert not scores.identical
    assert any("NaN or infinite" in note for note in silent.notices)
    json.loads(found.model_dump_json())


def test_other_shapes_are_told():
    silent = Silent()
    cut = changed(linear(), scores=lambda a: a[:, :9])
    found = compare(linear(), cut, samples(5), progress=silent)
    assert found.outputs[0].mismatched == 5
    assert found.outputs[0].sqnr_db is None
    assert any("shapes differ in 5" in note for note in silent.notices)


def test_missing_and_extra_outputs():
    def less(feeds):
        return {"scores": linear()(feeds)["scores"]}

    with pytest.raises(EngineError, match="no output 'best'"):
        compare(linear(), less, samples(2), progress=Silent())
    found = compare(less, linear(), samples(2), progress=Silent())
    assert any("'best'" in note for note in found.notes)


def test_no_samples():
    with pytest.raises(DataError, match="no samples"):
        compare(linear(), linear(), InMemory([]), progress=Silent())


def test_several_engines_share_the_reference_runs():
    calls = []

    def reference(feeds):
        calls.append(1)
        return linear()(feeds)

    engines = {"engine": linear(noise=0.1), "simulated": linear(noise=0.05)}
    found = compare_all(reference, engines, samples(6), progress=Silent())
    assert len(calls) == 6
    assert found["engine"].outputs[0].sqnr_db < found["simulated"].outputs[0].sqnr_db
    alone = compare(linear(), engines["engine"], samples(6), progress=Silent())
    assert alone == found["engine"]


def constant(**outputs):
    return lambda feeds: {name: np.asarray(array) for name, array in outputs.items()}


def test_strings_and_bools_are_compared_by_equality():
    reference = constant(s=np.array(["a", "b"], object), b=np.array([True, False]))
    engine = constant(s=np.array(["a", "c"], object), b=np.array([True, False]))
    found = compare(reference, engine, samples(1), progress=Silent())
    assert [(o.equal, o.identical, o.sqnr_db) for o in found.outputs] == [
        (0.5, False, None),
        (1, True, None),
    ]


def test_token_logits_beside_integer_inputs():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 7, 5)).astype(np.float32)
    other = logits.copy()
    other[0, 0] = -other[0, 0]
    ids = InMemory([{"ids": np.zeros((2, 7), np.int64)}] * 3)
    found = compare(constant(y=logits), constant(y=other), ids, progress=Silent())
    (top1,) = found.agreements
    assert (top1.count, top1.share) == (42, pytest.approx(13 / 14))
    floats = InMemory([{"x": np.zeros((2, 7), np.float32)}])
    found = compare(constant(y=logits), constant(y=other), floats, progress=Silent())
    assert found.agreements == ()


def test_segmentation_is_known_by_its_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1, 3, 4, 5)).astype(np.float32)
    label = scores[0].argmax(0)
    label[0, 0] = 255
    other = scores.copy()
    other[0, :, 1, 1] *= -1
    data = InMemory([{"x": np.zeros(1, np.float32)}] * 4, [label] * 4)
    found = compare(constant(y=scores), constant(y=other), data, progress=Silent())
    (score,) = found.scores
    assert (score.float_value, score.engine_value) == (1, pytest.approx(18 / 19))
    assert score.interval == pytest.approx((-1 / 19, -1 / 19))
    assert found.agreements[0].count == 80
    unlabelled = InMemory(data.feeds)
    assert compare(*[constant(y=scores)] * 2, unlabelled, progress=Silent()).agreements == ()


def test_a_single_score_is_no_class():
    one = constant(y=np.zeros((4, 1), np.float32))
    assert compare(one, one, samples(1), progress=Silent()).agreements == ()


def test_metric_of_both_models():
    metric = Metric("mean score", lambda outputs, label, feeds: outputs["scores"].mean())
    lowered = changed(linear(), scores=lambda a: a - np.float32(0.25))
    found = compare(linear(), lowered, samples(20), metric=metric, progress=Silent())
    score = found.scores[0]
    assert score.difference == pytest.approx(-0.25, abs=1e-5)
    assert score.interval == pytest.approx((-0.25, -0.25), abs=1e-5)
    assert score.count == 20


def test_metric_with_an_aggregate():
    metric = Metric(
        "share",
        lambda outputs, label, feeds: (int(outputs["scores"].argmax() == label), 1),
        lambda pairs: sum(p[0] for p in pairs) / sum(p[1] for p in pairs),
    )
    data = samples(50)
    labelled = InMemory(data.feeds, [linear()(f)["best"][0] for f in data.feeds])
    found = compare(linear(), linear(noise=0.3), labelled, metric=metric, progress=Silent())
    mine, top1, _ = found.scores
    assert mine.float_value == 1
    assert mine.engine_value == pytest.approx(top1.engine_value)
    assert mine.interval.low < mine.difference < mine.interval.high


def test_metric_that_is_not_defined_is_told():
    metric = Metric("log", lambda outputs, label, feeds: float("nan"))
    found = compare(linear(), linear(), samples(3), metric=metric, progress=Silent())
    assert found.scores[0].difference is None
    assert "nan" in found.scores[0].note
    json.loads(found.model_dump_json())


def test_metric_that_fails_names_the_sample():
    metric = Metric("bad", lambda outputs, label, feeds: outputs["none"])
    with pytest.raises(RecipeError, match=r"'bad' fails on sample 0: KeyError"):
        compare(linear(), linear(), samples(1), metric=metric, progress=Silent())


def ends(*arguments):
    raise SystemExit(0)


@pytest.mark.parametrize("metric", [Metric("bad", ends), Metric("bad", lambda *_: 1, ends)])
def test_a_metric_that_ends_the_process_is_an_error(metric):
    with pytest.raises(RecipeError, match=r"'bad'.*fails.*SystemExit"):
        compare(linear(), linear(), samples(2), metric=metric, progress=Silent())


def test_load_metric(tmp_path, monkeypatch):
    (tmp_path / "my_metric_module.py").write_text(
        "def plain(outputs, label, feeds):\n    return 1.0\n"
        "def whole(outputs, label, feeds):\n    return 1\n"
        "whole.aggregate = sum\nnumber = 3\n"
    )
    (tmp_path / "metric_that_ends.py").write_text("raise SystemExit(0)")
    (tmp_path / "colorsys.py").write_text("def plain(outputs, label, feeds):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert load_metric("my_metric_module:plain").aggregate is None
    whole = load_metric("my_metric_module:whole")
    assert (whole.name, whole.aggregate) == ("my_metric_module:whole", sum)
    for spec, words in (
        ("plain", "module:callable"),
        ("my_metric_module:gone", "gone"),
        ("no_such_module_here:f", "no_such_module_here"),
        ("my_metric_module:number", "not callable"),
        ("metric_that_ends:f", "cannot be imported"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_metric(spec)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert load_metric("colorsys:plain").measure({}, None, {}) == 1  # before that of Python
    monkeypatch.delitem(sys.modules, "colorsys")


def test_json_round_trip():
    found = compare(linear(), linear(noise=0.1), samples(5), progress=Silent())
    assert Comparison.model_validate_json(found.model_dump_json()) == found


@needs_assets
def test_accuracy_of_a_real_model_is_the_scorers():
    z = np.load(asset("data", "kws_mfcc.npz"), allow_pickle=False)
    x, y = z["eval_x"][:200], z["eval_y"][:200]
    data = InMemory([{"input": x[i : i + 20]} for i in range(0, 200, 20)], np.split(y, 10))
    path = asset("models", "dscnn_kws.onnx")
    run = Session(path).run
    found = compare(run, Session(path, optimize=False).run, data, progress=Silent())
    expected = (run({"input": x})["probs"].argmax(1) == y).mean()
    assert found.scores[0].float_value == pytest.approx(expected)
    assert found.outputs[0].sqnr_db is None or found.outputs[0].sqnr_db > 80
