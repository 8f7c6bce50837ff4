"""SmoothQuant's search: which values, which strength, when a Mul is worth it; a planted encoder."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.calibrate.collect import collect
from qcompile.frontend import load
from qcompile.graph.runner import run_passes
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.rescale_channels import RescaleChannels
from qcompile.planning.plan import Planner, activations_of
from qcompile.planning.smooth import smoothed
from qcompile.planning.wishes import Wishes
from qcompile.progress import Silent
from qcompile.recipe import Recipe
from qcompile.remedies import Remedies, Rescaled
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from qcompile.statistics import Statistics
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.tensorrt import TENSORRT
from tests.assets import asset, needs_assets, tool
from tests.planning.tools import HOLDS, feeds_of, graph_of, normal, quantize_graph
from tests.planted import planted

K = 32
INT8 = ORT_CPU.types("int8", "vnni")
LOUD = np.where(np.arange(K) % 11 == 3, 80, 1).astype(np.float32)
"""Three channels of 32 that are 80 times as loud."""


def block(body: str, **more: np.ndarray):
    """Loud channels of v, whose weights are as small as the channels are loud."""
    quiet = {name: normal(seed, K, 24) / LOUD[:, None] for name, seed in (("w", 2), ("u", 3))}
    weights = {"g": LOUD, "b": normal(1, K), **quiet, **more}
    return graph_of(f"float[40, {K}] x", body, **weights)


NORM = "[l] v = LayerNormalization(x, g, b)\n[a] p = MatMul(v, w)\n[c] q = MatMul(v, u)\n"
FOLDED = NORM + "[e] y = Add(p, q)"
READ = NORM + "[s] s = Add(p, q)\n[r] m = ReduceMax <keepdims=1> (v, one)\n[e] y = Add(s, m)"


def search(model, nodes=("a", "c"), strength=None, types=INT8, **more) -> dict[str, Rescaled]:
    samples = InMemory(feeds_of(model, count=3))
    return smoothed(model, nodes, samples, types, 1, Silent(), strength=strength, **more)


def rescaled(model, found):
    copy = model.clone()
    runs = run_passes(copy, [RescaleChannels(remedies=Remedies(rescaled=found))], holds=HOLDS)
    return copy, runs[0].refusals


def int8_error(model) -> float:
    return quantize_graph(model).engine_error()


def test_readers_share_one_scale_and_lose_less():
    model = block(FOLDED)
    found = search(model)
    assert set(found) == {"v"}
    assert found["v"].axis == -1
    assert found["v"].strength >= 0.5
    smooth, refusals = rescaled(model, found)
    assert not refusals
    assert int8_error(smooth) < 0.2 * int8_error(model)
    loud = found["v"].scales()[LOUD > 1] / np.median(found["v"].scales())
    assert (loud > 8).all()


def test_even_channels_are_left_alone():
    model = block("[a] y = MatMul(x, w)", w=np.ones((K, 24), np.float32))
    assert search(model, ["a"]) == {}
    assert search(block(FOLDED), []) == {}
    assert search(block(FOLDED), strength=0) == {}


def test_a_given_strength_is_taken():
    found = search(block(FOLDED), strength=0.5)
    assert found["v"].strength == 0.5
    x = np.abs(Session(with_output(block(FOLDED))).run(feeds_of(block(FOLDED))[0])["v"]).max(axis=0)
    w = np.maximum(*(np.abs(normal(seed, K, 24)).max(axis=1) for seed in (2, 3))) / LOUD
    ratio = found["v"].scales() / np.sqrt(x / w)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.35)  # the scale sees three samples


def with_output(model):
    copy = model.clone()
    copy.graph.outputs.append(next(n.outputs[0] for n in copy.graph if n.name == "l"))
    return copy


def test_a_mul_is_only_taken_where_it_pays():
    loud = block(READ, one=np.array([-1], np.int64))
    found = search(loud)
    assert set(found) == {"v"}
    smooth, refusals = rescaled(loud, found)
    assert sum(refusals.values()) == 1
    assert any(node.op_type == "Mul" for node in smooth.graph)
    mild = np.where(LOUD > 1, 1.5, 1).astype(np.float32)
    folded, read = block(FOLDED, g=mild), block(READ, g=mild, one=np.array([-1], np.int64))
    assert search(read) == search(read, strength=0.5) == {}
    assert set(search(folded, strength=0.5)) == {"v"}


@pytest.mark.parametrize("activations", ["run", "row"])
def test_scales_found_at_run_time(activations):
    """Per row, loud channels cost as much: smoothing pays there too."""
    assert set(search(block(FOLDED), activations=activations)) == {"v"}


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_symmetric_codes_and_fp8(scheme):
    types = TENSORRT.types(scheme, "89")
    found = search(block(FOLDED), types=types)
    assert set(found) <= {"v"}
    assert ("v" in found) or scheme == "fp8", "a float grid has fine steps for quiet channels"


def test_an_input_with_infinite_values_is_left():
    model = block(FOLDED, b=np.full(K, np.inf, np.float32))
    assert search(model) == {}


def test_the_same_samples_give_the_same_scales():
    model = block(FOLDED)
    samples = InMemory(feeds_of(model, count=3))
    one, two = (
        smoothed(model, ["a", "c"], samples, INT8, jobs, Silent(), strength=None) for jobs in (1, 2)
    )
    assert one == two


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    source = asset("models", "kwt1_kws.onnx")
    return planted(source, tmp_path_factory.mktemp("planted"), channels=16, factor=100.0, seed=0)


@pytest.fixture(scope="module")
def clips() -> InMemory:
    inputs = np.load(asset("data", "kwt_mfcc40.npz"), allow_pickle=False)["calib_x"]
    return InMemory([{"input": x[None].astype(np.float32)} for x in inputs[:24]])


@needs_assets
@pytest.mark.slow
def test_planted_channels_are_loud(encoder: Path, clips: InMemory):
    model = ir.load(encoder)
    norms = [n.outputs[0] for n in model.graph if n.op_type == "LayerNormalization"]
    model.graph.outputs.extend(norms)
    results = Session(model).run(clips[0])
    for norm in norms[:-1]:
        largest = np.abs(results[norm.name]).max(axis=(0, 1))
        assert (largest > 10 * np.median(largest)).sum() == 16


def score_and_noise(model, source, samples: InMemory) -> tuple[float, float]:
    """Return top-1 of a graph in W8A8, static and per tensor, and the noise of its outputs."""
    recipe = Recipe(keep_accuracy=False)
    about = recipe, ORT_CPU, "vnni", INT8, Silent()
    names = activations_of(Planner(model, Statistics({}, 0), None, *about).selected(Wishes()))
    statistics = collect(model, samples, names, jobs=2)
    plan, codes = Planner(model, statistics, samples, *about).make(Wishes())
    written = model.clone()
    run_passes(written, [InsertQdq(plan=plan, codes=codes), FenceFloatNodes()], holds=HOLDS)
    engine, exact = Session(written, threads=2), Session(source, threads=2)
    top1 = tool("score").score("kwt1_kws", lambda feeds: [engine.run(feeds)["logits"]])["top1"]
    sums = ErrorSums()
    for index in range(16):
        feeds = samples[index]
        sums += error_sums(exact.run(feeds)["logits"], engine.run(feeds)["logits"])
    return top1, sums.relative_l2**2


@needs_assets
@pytest.mark.slow
def test_a_planted_encoder_gets_its_accuracy_back(encoder: Path, clips: InMemory):
    loaded = load(encoder, "ort-cpu", "int8", threads=1, dump_dir=None, progress=Silent())
    plain, plain_noise = score_and_noise(loaded.model, encoder, clips)
    nodes = [n.name for n in loaded.model.graph if n.op_type in ("MatMul", "Gemm")]
    found = smoothed(loaded.model, nodes, clips, INT8, 2, Silent(), strength=None)
    smooth, refusals = rescaled(loaded.model, found)
    assert sum(refusals.values()) <= 2, "LayerNormalization and values of heads take the division"
    again, noise = score_and_noise(smooth, encoder, clips)
    exact = 0.96875
    print(f"top-1: float {exact}, W8A8 {plain}, smoothed {again}")
    print(f"noise: W8A8 {plain_noise:.2g}, smoothed {noise:.2g}")
    assert plain < exact - 0.015
    assert again - plain > 0.9 * (exact - plain)
    assert noise < 0.01 * plain_noise
