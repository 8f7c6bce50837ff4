"""Training inside a build, of modules with inputs by name and in dicts, and of Hugging Face's."""

import numpy as np
import pytest

from tests.qat import library  # noqa: F401 (skips without torch)

import torch  # isort: skip

import qcompile
from qcompile.errors import RecipeError
from qcompile.progress import Silent
from qcompile.qat.distillation import Training
from qcompile.qat.flow import train
from qcompile.qat.options import Rounding
from qcompile.recipe import Gates, Qat, Recipe
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from qcompile.source.torch_export import TorchModel
from qcompile.source.torch_inputs import Inputs

ONE_EPOCH = Recipe(qat=Qat(epochs=1), gates=Gates(allow_slower=True))


class Pair(torch.nn.Module):
    """Takes tensors in a dict, one by name, and a number; no two inputs can be exchanged."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(4, 16, 3), torch.nn.Conv2d(16, 16, 3)

    def forward(self, pair, power=1, *, scale):
        x = self.first(pair["z"]).relu() * scale**power
        return self.second(x + self.first(pair["a"]).relu())


class Decoder(torch.nn.Module):
    def forward(self, input_ids, past_key_values):
        return input_ids + past_key_values[0]["key"].sum()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qcompile.proof.SHOWN_SECONDS", 0.05)


def ports(engine):
    return {port.name: port.shape for port in Session(engine / "model.onnx").inputs}


@pytest.mark.slow
def test_inputs_by_name_keep_their_places_and_axes(tmp_path):
    rng = np.random.default_rng(0)
    samples = {
        "pair.z": rng.standard_normal((40, 4, 8, 8)).astype(np.float32),
        "pair.a": 9 * rng.standard_normal((40, 4, 8, 8)).astype(np.float32),
        "scale": rng.uniform(1, 2, (40, 1, 1, 1)).astype(np.float32),
    }
    np.savez(tmp_path / "data.npz", **samples)
    torch.manual_seed(0)
    one = {name: torch.from_numpy(array[:2]) for name, array in samples.items()}
    report = qcompile.build(
        Pair(),
        example_inputs={"pair": {k: one[f"pair.{k}"] for k in "za"}, "scale": one["scale"]},
        dynamic_axes=["batch", "pair.z:2=height", "pair.a:2=height"],
        calib=tmp_path / "data.npz",
        output=tmp_path / "out",
        recipe=ONE_EPOCH,
    )
    assert report.engine.outputs[0].sqnr_db > 25
    found = ports(tmp_path / "out")
    assert found["pair.z"] == found["pair.a"] == ("batch", 4, "height", 8)
    assert found["scale"] == ("batch", 1, 1, 1)


@pytest.mark.slow
def test_an_encoder_of_hugging_face_is_trained(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' has transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=8,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    ids = np.random.default_rng(0).integers(0, 20, (40, 6))
    np.savez(tmp_path / "data.npz", input_ids=ids)
    report = qcompile.build(
        f"hf:{tmp_path / 'bert'}",
        calib=tmp_path / "data.npz",
        output=tmp_path / "out",
        recipe=ONE_EPOCH,
    )
    assert report.plan.nodes["int8"] > 0
    assert report.engine.outputs[0].sqnr_db > 15
    assert set(ports(tmp_path / "out").values()) == {("batch", "sequence_length")}


def test_a_decoder_is_not_trained(tmp_path):
    ids, past = torch.zeros(1, 3), [{"key": torch.zeros(1, 2, 0, 4)}]
    traced = Inputs.of(Decoder(), (ids, past), "net")
    feeds = {"input_ids": ids.numpy(), "past_key_values.0.key": past[0]["key"].numpy()}
    with pytest.raises(RecipeError, match="net is a decoder, whose past is empty"):
        train(
            TorchModel("net", Decoder(), traced),
            InMemory([feeds]),
            tmp_path / "net.onnx",
            Recipe(),
            training=Training(),
            rounding=Rounding(),
            checkpoints=tmp_path,
            progress=Silent(),
        )
