"""Perplexity against its definition, what is not judged, its intervals, its gate, its refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.calibrate.readers import open_samples
from qcompile.calibrate.text import Reading
from qcompile.compare import perplexity as module
from qcompile.compare.end_to_end import compare
from qcompile.compare.gates import check_gates
from qcompile.compare.metric import load_metric
from qcompile.compare.perplexity import aggregate, perplexity, perplexity_metric
from qcompile.errors import RecipeError
from qcompile.progress import Silent
from qcompile.recipe import Gates, Text
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory, Port
from tests.assets import asset, needs_assets
from tests.languages import decoder, prose, tokenizer_json

I64, F32 = np.dtype("int64"), np.dtype("float32")
IDS, LOGITS = Port("input_ids", I64, ("b", "t")), Port("logits", F32, ("b", "t", 50))
METRIC = load_metric("perplexity")


def plain(logits, targets):
    """Straight from the definition, a token at a time."""
    total = 0.0
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        top = max(row)
        total -= row[target] - top - math.log(math.fsum(math.exp(x - top) for x in row))
    return total


@given(seed=st.integers(0, 999), batch=st.integers(1, 3), length=st.integers(2, 7))
def test_it_is_the_likelihood_of_the_next_tokens(seed, batch, length):
    rng = np.random.default_rng(seed)
    logits = (10 * rng.normal(size=(batch, length, 11))).astype(np.float32)
    ids = rng.integers(0, 11, (batch, length))
    loss, count = perplexity({"logits": logits}, None, {"input_ids": ids})
    assert count == batch * (length - 1)
    expected = sum(plain(logits[row, :-1], ids[row, 1:]) for row in range(batch))
    assert loss == pytest.approx(expected, rel=1e-9)
    assert aggregate([(loss, count)]) == pytest.approx(math.exp(expected / count), rel=1e-9)


def test_large_logits_neither_overflow_nor_lose_digits(monkeypatch):
    logits = np.zeros((1, 3, 4), np.float16)
    logits[..., 2] = 60_000
    ids = {"input_ids": np.array([[0, 2, 1]])}
    assert perplexity({"logits": logits}, None, ids) == (60_000, 2)
    monkeypatch.setattr(module, "_CHUNK", 1)
    assert perplexity({"logits": logits}, None, ids) == (60_000, 2)
    assert aggregate([(60_000.0, 2)]) == math.inf
    assert aggregate([(0.0, 5)]) == 1
    assert math.isnan(aggregate([]))


def test_a_guess_among_all_has_the_vocabulary_as_perplexity():
    sums = perplexity({"logits": np.zeros((1, 9, 50))}, None, {"input_ids": np.ones((1, 9), I64)})
    assert aggregate([sums]) == pytest.approx(50)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
@pytest.mark.parametrize(
    ("mask", "judged"), [([1, 1, 1, 0, 0], [0, 1]), ([0, 0, 1, 1, 1], [2, 3]), ([0] * 5, [])]
)
def test_padding_is_not_judged(mask, judged, dtype):
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(1, 5, 7)), rng.integers(0, 7, (1, 5))
    feeds = {"input_ids": ids, "attention_mask": np.array([mask], dtype)}
    loss, count = perplexity({"logits": logits}, None, feeds)
    assert count == len(judged)
    assert loss == pytest.approx(plain(logits[0, judged], ids[0, [at + 1 for at in judged]]))


def test_labels_say_what_comes_next():
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(1, 4, 7)), rng.integers(0, 7, (1, 4))
    label = np.array([-100, 5, -100, 6])
    loss, count = perplexity({"logits": logits}, label, {"input_ids": ids})
    assert (loss, count) == (pytest.approx(plain(logits[0, [1, 3]], [5, 6])), 2)
    whole = perplexity({"logits": logits}, None, {"input_ids": ids})
    assert perplexity({"logits": logits}, np.array(3), {"input_ids": ids}) == whole  # a class


@pytest.mark.parametrize(
    ("outputs", "feeds", "message"),
    [
        ({"logits": np.zeros((1, 4))}, {"input_ids": np.zeros((1, 4), I64)}, "no output of logits"),
        ({"y": np.zeros((1, 3, 9))}, {"input_ids": np.zeros((1, 4), I64)}, "no output of logits"),
        ({"y": np.zeros((1, 4, 9))}, {"x": np.zeros((1, 4))}, "no input of token ids"),
        ({"y": np.zeros((1, 4, 9))}, {"x": np.full((1, 4), 9)}, "token 9 is beyond the 9"),
    ],
)
def test_what_predicts_no_tokens_is_named(outputs, feeds, message):
    def run(_):
        return outputs

    with pytest.raises(RecipeError, match=f"metric 'perplexity' fails on sample 0.*{message}"):
        compare(run, run, InMemory([feeds]), metric=METRIC, progress=Silent())


def test_which_models_have_one():
    feeds = {"input_ids": np.array([[1, 49]])}
    assert perplexity_metric([IDS], [LOGITS], feeds) == METRIC
    assert METRIC.lower_is_better
    assert perplexity_metric([IDS], [LOGITS], {"input_ids": np.array([[1, 50]])}) is None
    assert perplexity_metric([IDS], [Port("logits", F32, ("b", 50))], feeds) is None
    assert perplexity_metric([Port("x", F32, ("b", "t"))], [LOGITS], feeds) is None


# --- two models


def noisy(run, noise):
    """The same model with noise on its logits, drawn by its tokens."""

    def worse(feeds):
        outputs = run(feeds)
        rng = np.random.default_rng(int(feeds["input_ids"].sum()))
        drawn = rng.normal(0, noise, outputs["logits"].shape).astype(np.float32)
        return outputs | {"logits": outputs["logits"] + drawn}

    return worse


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A decoder and windows of text."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "a.txt").write_text(prose(2500))
    session = Session(decoder(folder / "lm.onnx"))
    return session, open_samples(folder, session.inputs, reading=Reading(Text(length=40)))


def test_both_models_have_intervals_and_the_difference_a_narrower_one(language):
    session, samples = language
    found = compare(session.run, noisy(session.run, 0.3), samples, metric=METRIC, progress=Silent())
    score = found.scores[0]
    sums = [perplexity(session.run(samples[i]), None, samples[i]) for i in range(len(samples))]
    assert (score.name, score.count, score.lower_is_better) == ("perplexity", len(samples), True)
    assert score.float_value == pytest.approx(aggregate(sums), rel=1e-12)
    assert score.difference == score.engine_value - score.float_value > 0
    assert score.float_interval.low < score.float_value < score.float_interval.high
    assert score.engine_interval.low < score.engine_value < score.engine_interval.high
    width = score.interval.high - score.interval.low
    assert 0 < width < (score.float_interval.high - score.float_interval.low) / 2
    assert score.interval.low < score.difference < score.interval.high


def test_the_interval_covers_the_perplexity_of_much_more_text():
    rng = np.random.default_rng(3)
    truth, hits = math.exp(4.0), 0
    for _ in range(200):
        windows = 4 + 0.3 * rng.normal(size=30)
        feeds = [{"loss": np.array(loss)} for loss in windows]
        metric = METRIC.__class__("p", lambda o, *_: (float(o["loss"]), 1), aggregate)
        score = compare(dict, dict, InMemory(feeds), metric=metric, progress=Silent()).scores[0]
        hits += score.float_interval.low <= truth <= score.float_interval.high
    assert 180 <= hits <= 199


@pytest.mark.parametrize(("limit", "passed"), [(1000.0, True), (1e-3, False)])
def test_max_drop_is_a_rise_of_perplexity(language, limit, passed):
    session, samples = language
    worse = noisy(session.run, 0.3)
    found = compare(session.run, worse, samples, metric=METRIC, progress=Silent())
    gate = check_gates(Gates(max_drop=limit), found, None)[0]
    score = found.scores[0]
    assert gate.passed is passed
    assert gate.measured == score.difference > 0
    assert gate.interval == score.interval
    better = compare(worse, session.run, samples, metric=METRIC, progress=Silent())
    gate = check_gates(Gates(max_drop=0), better, None)[0]
    assert gate.passed
    assert gate.measured < 0


def test_overlapping_windows_know_more_and_count_each_token_once(language, tmp_path):
    session, _ = language
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    (tmp_path / "a.txt").write_text(prose(300))
    reading = Reading(Text(length=40, stride=8))
    samples = open_samples(tmp_path, session.inputs, reading=reading)
    sums = [
        perplexity(session.run(samples[i]), samples.label(i), samples[i])
        for i in range(len(samples))
    ]
    assert sum(count for _, count in sums) == 8 * (len(samples) - 1) + 39
    assert {count for _, count in sums[1:]} == {8}


# --- the assets


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize(("key", "expected"), [("shakespeare", 26.73), ("wikitext2", 23.71)])
def test_textlm5m_has_the_perplexity_of_its_scorer(key, expected, tmp_path):
    with np.load(asset("data", "textlm.npz")) as archive:
        np.savez(tmp_path / "windows.npz", input_ids=archive[key])
    session = Session(asset("models", "textlm5m.onnx"), threads=2)
    samples = open_samples(tmp_path, session.inputs, session=session)
    sums = [perplexity(session.run(samples[i]), None, samples[i]) for i in range(len(samples))]
    assert aggregate(sums) == pytest.approx(expected, abs=0.005)


@needs_assets
def test_stories260k_has_the_perplexity_of_its_scorer(tmp_path):
    with np.load(asset("data", "tinystories_tok512.npz")) as archive:
        for number, (ids, length) in enumerate(zip(archive["ids"], archive["length"], strict=True)):
            np.savez(tmp_path / f"{number}.npz", input_ids=ids[None, :length])
    session = Session(asset("models", "stories260k.onnx"))
    samples = open_samples(tmp_path, session.inputs, session=session)
    sums = [perplexity(session.run(samples[i]), None, samples[i]) for i in range(len(samples))]
    assert aggregate(sums) == pytest.approx(3.32788, abs=1e-4)
    assert sum(count for _, count in sums) == 5613
