"""Real weights, real pictures: what calibration loses, training gives back."""

import shlex
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.assets import ASSETS, asset, needs_assets
from tests.qat import library  # noqa: F401 (skips without torch)

import torch  # isort: skip

from qcompile import qat
from qcompile.progress import Silent
from qcompile.recipe import Recipe
from qcompile.runtime.ort import Session
from tests.qat.cifar import resnet20, train_cifar
from tests.qat.test_training import run_plain
from tests.samples.test_samples import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.assets, needs_assets]
CPU = Recipe(cpu="vnni")


def test_training_regains_what_four_bits_lose(tmp_path, monkeypatch):
    """Runs what the sample's README says."""
    (command,) = COMMANDS["qat"]
    path = tmp_path / "few.onnx"
    _, _, _, _, *options = shlex.split(command)
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", str(ASSETS), str(path), *options])
    found = train_cifar.main()
    lost = found.float_score - found.start
    assert lost >= 0.03
    assert found.trained - found.start >= 2 / 3 * lost
    check_engine(found.model, path)


def test_eight_bits_lose_nothing(tmp_path):
    network = resnet20.load(asset("models", "resnet20_cifar10.onnx"))
    seen, _ = resnet20.pictures(asset("data", "cifar10_dev.npz"), "calib")
    batches = seen[:64].split(32)
    model = qat.prepare(network, (seen[:2],), CPU, calibration=batches, progress=Silent())
    training = qat.Training(epochs=1, rate=2e-5)
    qat.distill(model, network, [(picture,) for picture in seen[:256].split(1)], training)
    path = qat.convert(model, tmp_path / "eight.onnx")
    assert score(path) >= score(asset("models", "resnet20_cifar10.onnx")) - 0.001
    check_engine(model, path)


def score(path):
    """Return the share of the test pictures that a file classifies rightly, as it is deployed."""
    pictures, classes = resnet20.pictures(asset("data", "cifar10_dev.npz"), "eval")
    session = Session(path)
    (name,) = (port.name for port in session.inputs)
    found = [next(iter(session.run({name: x.numpy()}).values())) for x in pictures.split(250)]
    return float((np.concatenate(found).argmax(1) == classes.numpy()).mean())


def check_engine(model, path):
    """From the codes that torch has before a layer, the engine makes torch's, or the next ones.

    Each layer is given torch's codes: what tips in one, for sums are in another order, would move
    those behind it. All layers together then agree on the class.
    """
    pictures = resnet20.pictures(asset("data", "cifar10_dev.npz"), "eval")[0][:64]
    graph = qat.converted(model)
    seen = Codes(graph)
    with torch.no_grad():
        wanted = seen.run(pictures).numpy()
    found = run_plain(path, pictures)
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.98
    codes, engine = seen.found, onnx.load(path)
    for value, (made, given) in layer_by_layer(engine, codes, pictures.numpy()).items():
        assert np.abs(made.astype(int) - given.astype(int)).max() <= 1, value
        assert (made != given).mean() < 1e-3, value


class Codes(torch.fx.Interpreter):
    """Runs torchao's model and keeps the codes of activations, with their scale, in order."""

    def __init__(self, graph):
        super().__init__(graph)
        self.found = []

    def run_node(self, n):
        result = super().run_node(n)
        if n.op == "call_function" and "quantize_per_tensor" in n.target.__name__.split("de")[0]:
            self.found.append((float(n.args[1]), result.numpy()))
        return result


def layer_by_layer(engine, codes, pictures):
    """Return the codes that each QuantizeLinear makes, and torch's, by the value's name.

    All that read codes read torch's: they become inputs of the graph.
    """
    constants = {t.name: numpy_helper.to_array(t) for t in engine.graph.initializer}
    rounds = [n for n in engine.graph.node if n.op_type == "QuantizeLinear"]
    rounds = [n for n in rounds if n.input[0] not in constants]
    zeros = {node.output[0]: node.input[2] for node in rounds}
    left, given = list(codes), {}
    for node in rounds:
        scale = float(constants[node.input[1]])
        index = next(i for i, (other, _) in enumerate(left) if other == pytest.approx(scale, 1e-6))
        given[node.output[0]] = left.pop(index)[1]
    for node in engine.graph.node:
        for i, name in enumerate(node.input):
            if name in given:
                node.input[i] = f"{name}.torch"
    for name, codes_there in given.items():
        kind = helper.np_dtype_to_tensor_dtype(constants[zeros[name]].dtype)
        shape = codes_there.shape
        there = helper.make_tensor_value_info(f"{name}.fed", TensorProto.INT32, shape)
        engine.graph.input.append(there)
        fed = helper.make_node("Cast", [f"{name}.fed"], [f"{name}.torch"], to=kind)
        engine.graph.node.insert(0, fed)
        made = helper.make_node("Cast", [name], [f"{name}.made"], to=TensorProto.INT32)
        engine.graph.node.append(made)
        engine.graph.output.append(onnx.ValueInfoProto(name=f"{name}.made"))
    session = Session(ir.from_proto(engine), optimize=False)
    feeds = {f"{name}.fed": value.astype(np.int32) for name, value in given.items()}
    found = session.run({engine.graph.input[0].name: pictures, **feeds})
    return {name: (found[f"{name}.made"], value) for name, value in given.items()}
