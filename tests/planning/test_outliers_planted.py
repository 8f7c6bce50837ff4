"""LLM.int8() on a real encoder with planted outlier channels: what plain int8 loses comes back."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.frontend import load
from qcompile.planning.outliers import outlier_layers
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from tests.assets import asset, needs_assets, tool
from tests.planning.outlier_engines import Float, engine, split
from tests.planted import planted

pytestmark = [pytest.mark.slow, needs_assets]

NAME = "kwt1_kws"
SAMPLES = 16


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return planted(asset("models", f"{NAME}.onnx"), folder, channels=6, factor=200.0, seed=0)


@pytest.fixture(scope="module")
def samples():
    return InMemory(list(tool("calib").SETS[NAME]())[:SAMPLES])


@pytest.fixture(scope="module")
def whole(path):
    return top1(path)


def top1(model: ir.Model | Path) -> float:
    session = Session(model, threads=2)
    return tool("score").score(NAME, lambda feeds: list(session.run(feeds).values()))["top1"]


def noise(exact: ir.Model, found: ir.Model, samples: InMemory) -> float:
    """Squared distance of the outputs over their squared size."""
    sessions = Session(exact), Session(found)
    runs = [[next(iter(s.run(feeds).values())) for feeds in samples.feeds] for s in sessions]
    reference, other = map(np.concatenate, runs)
    return float(np.square(other - reference).sum() / np.square(reference).sum())


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_the_loss_is_regained(scheme, path, samples, whole) -> None:
    loaded = load(path, "ort-cpu", scheme, threads=1, dump_dir=None, progress=Silent())
    source = Float(loaded.model, loaded.holds)
    parted = split(source, scheme, samples)
    plain = engine(source, scheme, samples)
    better = engine(parted, scheme, samples, by_rows=True)
    lost, left = top1(plain), top1(better)
    print(f"{scheme}: {whole:.4f} float, {lost:.4f} plain, {left:.4f} LLM.int8()")
    assert whole - lost >= 0.02, "plain int8 loses visibly"
    assert left >= lost + 0.9 * (whole - lost)
    assert noise(source.model, better, samples) < 0.01 * noise(source.model, plain, samples)
    assert len(outlier_layers(parted.model, parted.remedies)) >= 48
    assert parted.share < 0.1
