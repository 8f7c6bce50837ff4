"""Text as samples: pieces, tokens, windows, what is fed beside them, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from qcompile.calibrate import text as text_module
from qcompile.calibrate import tokenizer
from qcompile.calibrate.checks import check_samples
from qcompile.calibrate.readers import open_samples
from qcompile.calibrate.text import Reading, cut_windows
from qcompile.calibrate.tokenizer import load_tokenizer, pieces
from qcompile.errors import DataError, RecipeError
from qcompile.progress import Silent
from qcompile.recipe import Recipe, Text
from qcompile.runtime.made_up import made_up_feeds
from qcompile.runtime.ort import Session
from qcompile.runtime.prefill import completed, first_token, logits_output, tokens_input
from qcompile.samples import Port, samples_digest
from tests.assets import asset, needs_assets
from tests.languages import HEADS, VOCABULARY, WIDTH, decoder, prose, tokenizer_json

I64, I32, F32 = np.dtype("int64"), np.dtype("int32"), np.dtype("float32")
IDS = (Port("input_ids", I64, ("batch", "sequence")),)


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer_json())
    return path


@pytest.fixture
def folder(tmp_path, tokens_file):
    """A folder with a tokenizer and nothing else."""
    (tmp_path / "tokenizer.json").write_bytes(tokens_file.read_bytes())
    return tmp_path


def ids_of(path, written):
    made = tokenizers.Tokenizer.from_file(str(path))
    return made.encode(written, add_special_tokens=False).ids


def rows(samples):
    return [samples[index]["input_ids"][0].tolist() for index in range(len(samples))]


# --- windows


@given(
    sizes=st.lists(st.integers(0, 30), max_size=8),
    content=st.integers(1, 12),
    stride=st.integers(1, 15),
    most=st.integers(1, 30),
)
def test_windows_are_slices_of_the_stream(sizes, content, stride, most):
    stream = np.arange(sum(sizes))
    parts = np.split(stream, np.cumsum(sizes)[:-1]) if sizes else []
    cut = cut_windows(iter(parts), content, stride, most)
    every = [stream[at : at + content] for at in range(0, len(stream) - content + 1, stride)]
    assert [w.tolist() for w in cut.windows] == [w.tolist() for w in every[:most]]
    assert cut.more == (len(every) > most)
    if stride == content and not cut.more:  # each token once, or counted
        assert sum(map(len, cut.windows)) + cut.left == len(stream)
        assert cut.left < content
    if not cut.more and cut.windows:
        assert cut.left == max(0, len(stream) - 1 - int(cut.windows[-1][-1]))


def test_a_stream_is_read_no_further_than_needed():
    read = []

    def endless():
        while True:
            read.append(1)
            yield np.zeros(10, np.int64)

    cut = cut_windows(endless(), 8, 8, 5)
    assert (len(cut.windows), cut.more) == (5, True)
    assert len(read) <= 5


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(kind):
    """Return a tokenizer that splits text as this family of models does."""
    splits = {
        "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama3": [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        "bert": [pre_tokenizers.BertPreTokenizer()],
        "metaspace": [pre_tokenizers.Metaspace()],
    }
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(splits[kind])
    if kind == "bert":
        made.normalizer = normalizers.BertNormalizer()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator([prose(1500)], trainer)
    return made


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "bert", "metaspace"])
@pytest.mark.parametrize("size", [40, 300])
def test_pieces_have_the_tokens_of_the_whole(kind, size):
    made = trained(kind)
    written = prose(1200, seed=4).replace("dog.", "dog ...\n\n \n = 12 34 5").replace("it", "It's")
    fragments = [written[at : at + 77] for at in range(0, len(written), 77)]
    parts = list(pieces(fragments, size))
    assert "".join(parts) == written
    assert len(parts) > 10
    assert max(map(len, parts)) <= size
    found = [token for part in parts for token in made.encode(part).ids]
    assert found == made.encode(written).ids


def test_text_without_words_is_cut_anywhere():
    parts = list(pieces(["ab" * 5000], 1000))
    assert "".join(parts) == "ab" * 5000
    assert {len(part) for part in parts} == {1000}


# --- files


def test_a_text_becomes_windows_of_its_tokens(folder):
    (folder / "a.txt").write_text(prose(900))
    heard = Silent()
    samples = open_samples(folder / "a.txt", IDS, progress=heard, reading=Reading(Text(length=64)))
    ids = ids_of(folder / "tokenizer.json", prose(900))
    count, left = divmod(len(ids), 64)
    assert left > 0
    assert rows(samples) == [ids[64 * i : 64 * i + 64] for i in range(count)]
    assert samples.name(2) == f"{folder / 'a.txt'}[token 128]"
    assert samples.label(0) is None
    assert heard.notices == [
        f"the end of the text ({left} tokens) left out: too short for a window of 64"
    ]
    again = open_samples(folder / "a.txt", IDS, reading=Reading(Text(length=64)))
    assert samples_digest(samples) == samples_digest(again)
    assert samples.digest(0) != samples.digest(1)
    check_samples(samples, IDS, Silent())


def test_the_default_window_and_its_limit(folder):
    (folder / "a.txt").write_text(prose(4000))
    heard = Silent()
    samples = open_samples(folder / "a.txt", IDS, progress=heard, reading=Reading(Text(windows=3)))
    assert [sample["input_ids"].shape for sample in (samples[0], samples[2])] == [(1, 256)] * 2
    assert len(samples) == 3
    assert heard.notices == ["the text is longer than the 3 windows that were read of it"]


def test_documents_of_a_jsonl_follow_one_another(folder):
    documents = [prose(50, seed=n) for n in range(20)]
    lines = [json.dumps({"text": doc, "id": n}) for n, doc in enumerate(documents)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:10], "", *lines[10:]]) + "\n")
    (folder / "b.txt").write_text("\n\n".join(documents))
    by_line = open_samples(folder / "a.jsonl", IDS, reading=Reading(Text(length=50)))
    assert rows(by_line) == rows(
        open_samples(folder / "b.txt", IDS, reading=Reading(Text(length=50)))
    )
    renamed = [json.dumps({"story": doc}) for doc in documents]
    (folder / "c.jsonl").write_text("\n".join(renamed))
    by_name = open_samples(folder / "c.jsonl", IDS, reading=Reading(Text(length=50, field="story")))
    assert rows(by_name) == rows(by_line)


def test_no_window_spans_two_files(folder):
    for name in "ab":
        (folder / f"{name}.txt").write_text(prose(100, seed=ord(name)))
    (folder / "short.txt").write_text("a cat")
    heard = Silent()
    samples = open_samples(folder, IDS, progress=heard, reading=Reading(Text(length=32)))
    expected, left = [], 0
    for name in ("a", "b", "short"):
        ids = ids_of(folder / "tokenizer.json", (folder / f"{name}.txt").read_text())
        expected += [ids[at : at + 32] for at in range(0, len(ids) - 31, 32)]
        left += len(ids) % 32
    assert rows(samples) == expected
    assert heard.notices == [
        f"the ends of 3 texts ({left} tokens) left out: too short for a window of 32"
    ]


def test_notes_beside_arrays_are_no_samples(tmp_path):
    np.savez(tmp_path / "a.npz", input_ids=np.zeros((1, 4), np.int64))
    (tmp_path / "readme.txt").write_text("hello")
    heard = Silent()
    assert len(open_samples(tmp_path, IDS, progress=heard)) == 1
    assert len(heard.notices) == 1
    assert "readme.txt" in heard.notices[0]


def test_overlapping_windows_judge_each_token_once(folder):
    (folder / "a.txt").write_text(prose(500))
    samples = open_samples(folder / "a.txt", IDS, reading=Reading(Text(length=40, stride=10)))
    ids = ids_of(folder / "tokenizer.json", prose(500))
    judged = []
    for index, row in enumerate(rows(samples)):
        assert row == ids[10 * index : 10 * index + 40]
        label = samples.label(index)
        places = np.flatnonzero(label >= 0)
        assert label[places].tolist() == [row[at + 1] for at in places]
        judged += [10 * index + int(at) + 1 for at in places]
    assert judged == list(range(1, 10 * (len(samples) - 1) + 40))


# --- how windows begin


def test_bos_begins_each_window(folder):
    (folder / "a.txt").write_text(prose(400))
    plain = ids_of(folder / "tokenizer.json", prose(400))
    samples = open_samples(folder / "a.txt", IDS, reading=Reading(Text(length=33, bos="<s>")))
    assert rows(samples)[:2] == [[0, *plain[:32]], [0, *plain[32:64]]]
    with pytest.raises(DataError, match="has no token '<bos>'"):
        open_samples(folder / "a.txt", IDS, reading=Reading(Text(length=33, bos="<bos>")))


def test_the_tokenizers_own_start_is_taken_and_said(folder):
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "a.txt").write_text(prose(400))
    heard = Silent()
    samples = open_samples(folder / "a.txt", IDS, progress=heard, reading=Reading(Text(length=33)))
    assert {row[0] for row in rows(samples)} == {0}
    assert heard.notices[0] == "each window begins with '<s>', as tokenizer.json has it"
    assert 0 not in {
        row[0] for row in rows(open_samples(folder / "a.txt", IDS, reading=Reading(Text(bos=""))))
    }


def test_a_tokenizer_that_draws_lots_is_made_to_stop(folder):
    model = json.loads(tokenizer_json())["model"] | {"dropout": 0.5}
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(tokenizer_json(model=model, truncation=cut))
    (folder / "a.txt").write_text(prose(400))
    made = load_tokenizer(folder / "tokenizer.json")
    found = np.concatenate(list(made.tokens([prose(400)])))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    assert found.tolist() == ids_of(folder / "tokenizer.json", prose(400))


# --- where the tokenizer is


def test_the_tokenizer_is_found_beside_data_then_model(tmp_path, tokens_file):
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    model = decoder(tmp_path / "model" / "lm.onnx")
    (tmp_path / "data" / "a.txt").write_text(prose(400))
    inputs = Session(model).inputs

    def opened(**more):
        reading = Reading(Text(length=32, **more), model)
        return len(open_samples(tmp_path / "data", inputs, reading=reading))

    with pytest.raises(DataError, match=r"no tokenizer.json in .*/data nor in .*/model; give"):
        opened()
    expected = opened(tokenizer=tokens_file)
    for place in ("model", "data"):
        (tmp_path / place / "tokenizer.json").write_bytes(tokens_file.read_bytes())
        assert opened() == expected > 0
        (tmp_path / "model" / "tokenizer.json").write_text("worse")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "is no tokenizer"),
        ("{}", "is no tokenizer"),
        ("[" * 10_000, "is no tokenizer"),
        ('{"version": "1.0", "model": {"type": "Nonsense"}}', "is no tokenizer"),
    ],
)
def test_a_bad_tokenizer_is_named(tmp_path, written, message):
    (tmp_path / "tokenizer.json").write_text(written)
    (tmp_path / "a.txt").write_text(prose(10))
    with pytest.raises(DataError, match=f"tokenizer.json: {message}") as caught:
        open_samples(tmp_path, IDS)
    assert "\n" not in str(caught.value)


def test_a_huge_or_missing_tokenizer_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(prose(10))
    with pytest.raises(DataError, match=r"gone.json: cannot be read"):
        open_samples(tmp_path, IDS, reading=Reading(Text(tokenizer=tmp_path / "gone.json")))
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(tokenizer.MOST_BYTES + 1)  # sparse
    with pytest.raises(DataError, match="a tokenizer has at most"):
        open_samples(tmp_path, IDS)


def test_a_tokenizer_of_another_model_is_refused(folder):
    session = Session(decoder(folder / "lm.onnx"))
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    room = VOCABULARY - made.get_vocab_size()
    made.add_special_tokens([f"<new {n}>" for n in range(room + 1)])
    made.save(str(folder / "tokenizer.json"))

    def opened():
        reading = Reading.of(Text(length=32), folder / "lm.onnx", session.outputs)
        return open_samples(folder, session.inputs, reading=reading)

    (folder / "a.txt").write_text(prose(400) + f"<new {room - 1}>")  # the last that the model has
    assert len(opened()) > 1
    (folder / "a.txt").write_text(f"the cat <new {room}> " + prose(400))
    with pytest.raises(DataError, match=rf"token 0\]: holds token {VOCABULARY} \('<new {room}>'\)"):
        opened()
    made = json.loads(tokenizer_json())
    made["model"]["vocab"] |= {f"new {n}": 1000 + n for n in range(VOCABULARY)}
    (folder / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match=f"the model's logits {VOCABULARY}: it belongs to another"):
        opened()


# --- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a.txt: no text fills a window of 32 tokens \(0 in all\)"),
        ("a.txt", b"a cat sat", "a.txt: no text fills a window"),
        ("a.txt", b"\xff\xfe\x00", "a.txt: is not UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "a.jsonl: line 2 has no text 'text'"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', "a.jsonl: line 3 has no text 'text'"),
        ("a.jsonl", b'{"text": 7}', "a.jsonl: line 1 has no text 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl: line 2 is no JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: line 1 is no JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl: line 1 is no JSON"),
    ],
)
def test_bad_text_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_samples(folder / name, IDS, reading=Reading(Text(length=32)))
    assert "\n" not in str(caught.value)


def test_an_endless_line_is_not_read_whole(folder, monkeypatch):
    monkeypatch.setattr(text_module, "MOST_LINE", 1000)
    (folder / "a.jsonl").write_text('{"text": "a"}\n' + '{"text": "' + "a " * 1000 + '"}')
    with pytest.raises(DataError, match="line 2 has more than 1,000 bytes"):
        open_samples(folder, IDS)


def test_a_fixed_length_decides(folder):
    (folder / "a.txt").write_text(prose(400))
    fixed = (Port("input_ids", I64, (1, 24)),)
    assert open_samples(folder, fixed)[0]["input_ids"].shape == (1, 24)
    with pytest.raises(RecipeError, match="--sequence-length 32: the model takes just 24 tokens"):
        open_samples(folder, fixed, reading=Reading(Text(length=32)))


def test_an_input_that_nobody_can_fill_is_named(folder):
    (folder / "a.txt").write_text(prose(400))
    other = Port("encoder_hidden_states", F32, ("batch", "n", 64))
    with pytest.raises(DataError, match=r"'encoder_hidden_states' .* does not follow from text"):
        open_samples(folder, (*IDS, other), reading=Reading(Text(length=32)))
    with pytest.raises(DataError, match="text needs a model with an input of token ids"):
        open_samples(folder, (Port("image", F32, (1, 3, 8, 8)),), reading=Reading(Text(length=32)))


@pytest.mark.slow
def test_a_text_larger_than_memory_is_read_in_part(folder):
    """Ten gigabytes, most of it a hole: only the beginning may be read."""
    path = folder / "huge.txt"
    path.write_text(prose(20_000))
    with path.open("r+b") as file:
        file.truncate(10 << 30)
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from qcompile.calibrate.readers import open_samples\n"
        "from qcompile.calibrate.text import Reading\n"
        "from qcompile.recipe import Text; from qcompile.samples import Port\n"
        "ids = (Port('input_ids', np.dtype('int64'), ('b', 't')),)\n"
        "print(len(open_samples(Path(sys.argv[1]), ids, reading=Reading(Text(windows=50)))))\n"
        "from tests.memory import peak_kib; print(peak_kib())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True
    )
    windows, kilobytes = map(int, done.stdout.split())
    assert windows == 50
    assert kilobytes < 600_000


# --- what is fed beside the tokens


def past(*shape):
    return Port("past_key_values.3.value", F32, shape)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (Port("attention_mask", I64, ("b", "past + t")), np.ones((2, 5), I64)),
        (Port("attention_mask", F32, (None, None)), np.ones((2, 5), F32)),
        (Port("position_ids", I32, ("b", "t")), np.tile(np.arange(5, dtype=I32), (2, 1))),
        (Port("position_ids", I64, ("t",)), np.arange(5)),
        (Port("token_type_ids", I64, ("b", "t")), np.zeros((2, 5), I64)),
        (Port("seqlens_k", I32, ("b",)), np.full(2, 4, I32)),
        (Port("seqlens_k", I32, ("b", 1)), np.full((2, 1), 4, I32)),
        (Port("total_sequence_length", I32, None), np.array(5, I32)),
        (Port("total_sequence_length", I32, (1,)), np.array([5], I32)),
        (Port("use_cache_branch", np.dtype(bool), (1,)), np.array([False])),
        (past("batch_size", 4, "past_sequence_length", 8), np.zeros((2, 4, 0, 8), F32)),
        (past("batch_size", "past_sequence_length", 4, 8), np.zeros((2, 0, 4, 8), F32)),
        (past(2, 4, "past_len", 8), np.zeros((2, 4, 0, 8), F32)),
        (past(None, 4, None, 8), np.zeros((2, 4, 0, 8), F32)),
        (past(2, "batch", 4, "past", 8), np.zeros((2, 2, 4, 0, 8), F32)),
        (Port("past_key_1", F32, ("b", 4, "s", 8)), np.zeros((2, 4, 0, 8), F32)),
    ],
    ids=str,
)
def test_inputs_that_follow_from_the_tokens(port, expected):
    found = completed({"input_ids": np.zeros((2, 5), I64)}, (*IDS, port))[port.name]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "port",
    [
        past("batch", 4, 1024, 8),  # a cache of fixed length is not empty
        past("batch", "heads", "past", "size"),
        Port("past_seq_len", I32, (1, 1)),  # means one thing here, another there
        Port("attention_mask", F32, ("b", 1, "t", "t")),
        Port("attention_mask", I64, (1, 2048)),
        Port("encoder_attention_mask", I64, ("b", "s")),
    ],
    ids=str,
)
def test_inputs_that_do_not(port):
    feeds = {"input_ids": np.zeros((2, 5), I64)}
    assert completed(feeds, (*IDS, port)).keys() == feeds.keys()


def test_a_step_of_generation_is_one_token_of_several():
    feeds = {"input_ids": np.arange(10).reshape(2, 5)}
    ids = Port("input_ids", I64, ("b", "t"))
    step = first_token(feeds, [ids])
    assert step is not None
    np.testing.assert_array_equal(step["input_ids"], [[0], [5]])
    assert first_token(step, [ids]) is None


def test_what_a_sample_has_is_kept(tmp_path):
    session = Session(decoder(tmp_path / "lm.onnx"))
    mask = np.ones((4, 6), np.int64)
    mask[:, 4:] = 0
    np.savez(tmp_path / "a.npz", input_ids=np.ones((4, 6), np.int16), attention_mask=mask)
    samples = open_samples(tmp_path / "a.npz", session.inputs, session=session)
    assert len(samples) == 4  # cut into rows though most inputs are missing
    check_samples(samples, session.inputs, Silent())
    feeds = samples[3]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert feeds["past_key_values.0.key"].shape == (1, HEADS, 0, WIDTH // HEADS)
    assert session.run(feeds)["logits"].shape == (1, 6, VOCABULARY)


def test_a_callable_may_give_tokens_alone(tmp_path, monkeypatch):
    session = Session(decoder(tmp_path / "lm.onnx"))
    (tmp_path / "give_tokens.py").write_text(
        "import numpy as np\ndef data():\n    yield {'input_ids': np.arange(9)[None]}\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = open_samples("give_tokens:data", session.inputs, session=session)
    assert samples[0]["position_ids"].tolist() == [list(range(9))]


def test_a_prefill_is_the_run_of_all_tokens(folder):
    """Token by token with a growing past, the model says what it says of the prefill."""
    session = Session(decoder(folder / "lm.onnx"))
    (folder / "a.txt").write_text(prose(400))
    feeds = open_samples(folder, session.inputs, reading=Reading(Text(length=12)))[1]
    whole = session.run(feeds)
    state = {name: feeds[name] for name in feeds if name.startswith("past")}
    for at in range(12):
        one = session.run(
            {
                "input_ids": feeds["input_ids"][:, at : at + 1],
                "position_ids": np.array([[at]]),
                "attention_mask": np.ones((1, at + 1), np.int64),
                **state,
            }
        )
        np.testing.assert_allclose(one["logits"][0, 0], whole["logits"][0, at], atol=1e-4)
        state = {f"past_key_values.0.{k}": one[f"present.0.{k}"] for k in ("key", "value")}


def test_group_query_attention_reads_its_lengths(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 3 * 16)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["qkv"]),
        helper.make_node("Split", ["qkv"], ["q", "k", "v"], axis=-1, num_outputs=3),
        helper.make_node(
            "GroupQueryAttention",
            ["q", "k", "v", "past_key", "past_value", "seqlens_k", "total_sequence_length"],
            ["y", "present_key", "present_value"],
            domain="com.microsoft",
            num_heads=2,
            kv_num_heads=2,
        ),
    ]
    cache = ["batch", 2, "past_len", 8]
    ports = [
        ("input_ids", TensorProto.INT32, ["batch", "t"]),
        ("past_key", TensorProto.FLOAT, cache),
        ("past_value", TensorProto.FLOAT, cache),
        ("seqlens_k", TensorProto.INT32, ["batch"]),
        ("total_sequence_length", TensorProto.INT32, []),
    ]
    graph = helper.make_graph(
        nodes,
        "gqa",
        [helper.make_tensor_value_info(*port) for port in ports],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "t", 16]),
            helper.make_tensor_value_info("present_key", TensorProto.FLOAT, ["batch", 2, "n", 8]),
            helper.make_tensor_value_info("present_value", TensorProto.FLOAT, ["batch", 2, "n", 8]),
        ],
        [numpy_helper.from_array(table, "table")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "gqa.onnx")
    session = Session(tmp_path / "gqa.onnx")
    ids = rng.integers(0, 50, (3, 7)).astype(np.int32)
    feeds = completed({"input_ids": ids}, session.inputs)
    found = session.run(feeds)["y"]
    q, k, v = (part.reshape(3, 7, 2, 8).swapaxes(1, 2) for part in np.split(table[ids], 3, -1))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(8)
    scores[..., np.triu(np.ones((7, 7), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True)) @ v
    np.testing.assert_allclose(found, expected.swapaxes(1, 2).reshape(3, 7, 16), atol=1e-5)
    assert np.isfinite(session.run(made_up_feeds(session.inputs))["y"]).all()


def test_made_up_inputs_run(tmp_path):
    session = Session(decoder(tmp_path / "lm.onnx"))
    logits = session.run(made_up_feeds(session.inputs))["logits"]
    assert logits.shape == (1, 1, VOCABULARY)
    assert np.isfinite(logits).all()


def test_which_ports_hold_tokens_and_logits():
    tokens, mask = Port("tokens", I32, ("n", 9)), Port("attention_mask", I32, ("n", 9))
    assert tokens_input((mask, tokens)) == tokens
    assert tokens_input((tokens, Port("segments", I32, ("n", 9)))) is None
    assert tokens_input((Port("image", F32, (1, 9)),)) is None
    logits, hidden = Port("logits", F32, ("n", 9, 50)), Port("hidden", F32, ("n", 9, 64))
    cache = Port("present.0.key", F32, ("n", 2, 9, 8))
    assert logits_output((hidden, logits, cache)) == logits
    assert logits_output((hidden, cache)) == hidden
    assert logits_output((hidden, hidden)) is None
    assert logits_output((cache,)) is None


# --- the assets


@needs_assets
def test_the_text_of_the_assets_gives_their_windows():
    text = Text(
        tokenizer=asset("data", "textlm_tokenizer.json"), length=257, stride=256, windows=200
    )
    samples = open_samples(asset("data", "textlm_eval_wikitext2.txt"), IDS, reading=Reading(text))
    with np.load(asset("data", "textlm.npz")) as archive:
        np.testing.assert_array_equal(np.array(rows(samples)), archive["wikitext2"])


def test_the_recipe_has_a_section_for_text():
    assert Recipe.model_validate({"text": {"length": 2, "field": "story"}}).text.field == "story"
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Text(length=1)
