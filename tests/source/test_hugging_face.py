"""Hugging Face folders become ONNX files with the names that the text path feeds."""

import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the extra 'hf' has it")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what transformers imports
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: the extra 'hf' has it"
    )

from qcompile.errors import ModelError  # noqa: E402
from qcompile.progress import Silent  # noqa: E402
from qcompile.runtime.ort import Session  # noqa: E402
from qcompile.runtime.prefill import completed, first_token, logits_output  # noqa: E402
from qcompile.tracing import export  # noqa: E402

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


def saved(folder: Path, config, kind) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    folder = saved(tmp_path_factory.mktemp("llama"), config, transformers.LlamaForCausalLM)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


@pytest.fixture(scope="module")
def decoder(llama) -> Path:
    path = llama / "onnx" / "model.onnx"
    export(f"hf:{llama}", path)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    config = transformers.BertConfig(**SIZES, num_labels=3)
    return saved(
        tmp_path_factory.mktemp("bert"), config, transformers.BertForSequenceClassification
    )


def logits_of(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return what transformers computes, without any past."""
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return module(input_ids=torch.from_numpy(tokens)).logits.numpy()


@pytest.mark.slow
def test_a_prefill_is_fed_by_names_alone(llama, decoder):
    session = Session(decoder)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 9))
    feeds = completed({"input_ids": tokens}, session.inputs)
    assert feeds.keys() == {port.name for port in session.inputs}
    assert logits_output(session.outputs).name == "logits"
    assert first_token(feeds, session.inputs) is not None
    found = session.run(feeds)
    np.testing.assert_allclose(found["logits"], logits_of(llama, tokens), rtol=1e-3, atol=1e-5)
    assert found["present.0.key"].shape == (2, 2, 9, 8)
    assert (decoder.parent / "tokenizer.json").exists()


@pytest.mark.slow
def test_tokens_one_by_one_give_what_all_at_once_give(llama, decoder):
    session = ort.InferenceSession(decoder, providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(1).integers(0, 64, (1, 6))
    past = {p.name: np.zeros((1, 2, 0, 8), np.float32) for p in session.get_inputs()[3:]}
    steps = []
    for index in range(tokens.shape[1]):
        feeds = {
            "input_ids": tokens[:, index : index + 1],
            "attention_mask": np.ones((1, index + 1), np.int64),
            "position_ids": np.full((1, 1), index),
        }
        logits, *present = session.run(None, {**feeds, **past})
        past = dict(zip(past, present, strict=True))
        steps.append(logits)
    np.testing.assert_allclose(
        np.concatenate(steps, 1), logits_of(llama, tokens), rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
def test_an_encoder_has_open_batch_and_length(bert, tmp_path):
    heard = Silent()
    report = export(f"hf:{bert}", tmp_path / "bert.onnx", progress=heard)
    inputs = {port.name: port.shape for port in report.traced.inputs}
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert inputs == dict.fromkeys(names, ("batch", "sequence_length"))
    assert [port.name for port in report.traced.outputs] == ["logits"]
    assert any("no tokenizer.json" in notice for notice in heard.notices)
    assert {shape[1] for shape in report.traced.compared} >= {1, 5, 17}


# -- folders that cannot be used ---------------------------------------------------------------


def changed(source: Path, folder: Path, **changes) -> Path:
    """Copy config and weights, with another config."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"architectures": ["MyOwnModel"]},
            "has no MyOwnModel of type bert; code that a model brings",
        ),
        ({"architectures": None}, r"has no \(none\)"),
        ({"quantization_config": {"bits": 4}}, "is quantized already"),
        ({"model_type": None}, "names no model_type"),
        ({"num_hidden_layers": 2}, "lacks .* weights of BertForSequenceClassification"),
        ({"hidden_size": 40}, "transformers cannot load it"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused(changes, told, bert, tmp_path):
    folder = changed(bert, tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=told):
        export(f"hf:{folder}", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_pickled_weights_are_refused(bert, tmp_path):
    folder = changed(bert, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no \.safetensors"):
        export(f"hf:{folder}", tmp_path / "x.onnx")


def test_the_code_of_a_folder_is_not_run(bert, tmp_path):
    folder = changed(
        bert,
        tmp_path / "model",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"},
    )
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')")
    with pytest.raises(ModelError, match="of type mine; code that a model brings is never run"):
        export(f"hf:{folder}", tmp_path / "x.onnx")
    assert not (tmp_path / "planted").exists()


def test_an_encoder_and_decoder_in_one_is_refused(tmp_path):
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    folder = saved(tmp_path / "t5", config, transformers.T5ForConditionalGeneration)
    with pytest.raises(ModelError, match="an encoder and a decoder in one"):
        export(f"hf:{folder}", tmp_path / "x.onnx")
