"""Learned codes on whole graphs: better outputs, the same after a stop, blocks, what they lack."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.frontend import load
from qcompile.graph.stages import Group, cut
from qcompile.numerics.grids import Codes
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.plan import TensorPlan
from qcompile.planning.adaround import adarounded
from qcompile.planning.blocks import block_groups
from qcompile.planning.forms import node_name
from qcompile.planning.learning import Learning
from qcompile.planning.reconstruct import reconstructed
from qcompile.planning.rounding import Rounded
from qcompile.planning.sequence import solve_weights
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.samples import Feeds, InMemory
from qcompile.targets.onnx_std import ONNX_STD
from tests.assets import asset, needs_assets
from tests.planning.solving import job_of, with_values
from tests.planning.tools import graph_of, normal

torch = pytest.importorskip("torch", reason="learned rounding needs torch")

RESIDUAL = """
    [c1] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
    [r1] p = Relu(a)
    [c2] d = Conv <pads=[1,1,1,1], group=8> (p, w2)
    [m] s = {middle}(d)
    [c3] e = Conv(s, w3)
    [add] f = Add(e, p)
    [r3] q = Relu(f)
    [pool] g = GlobalAveragePool(q)
    [flat] h = Flatten(g)
    [fc] y = Gemm <transB=1> (h, w4)
"""
LAYERS = {"c1": "w1", "c2": "w2", "c3": "w3", "fc": "w4"}


def network(middle: str = "Relu") -> ir.Model:
    weights = {
        "w1": normal(1, 8, 3, 3, 3, scale=0.3),
        "b1": normal(2, 8, scale=0.1),
        "w2": normal(3, 8, 1, 3, 3, scale=0.3),
        "w3": normal(4, 8, 8, 1, 1, scale=0.3),
        "w4": normal(5, 5, 8),
    }
    return graph_of("float[1, 3, 10, 10] x", RESIDUAL.format(middle=middle), **weights)


def grids(model: ir.Model, bits: int = 4) -> dict[str, TensorPlan]:
    found = {}
    for name in LAYERS.values():
        weight = model.graph.initializers[name].const_value
        assert weight is not None
        largest = np.abs(weight.numpy()).reshape(weight.shape.numpy()[0], -1).max(axis=1)
        scale = [float(s) for s in largest / ((1 << (bits - 1)) - 1)]
        found[name] = TensorPlan(
            kind="weight", type="int8", axis=0, scale=scale, zero_point=[0] * len(scale)
        )
    return found


def pictures(count: int, seed: int = 0) -> InMemory:
    rng = np.random.default_rng(seed)
    smooth = [
        rng.uniform(0, 1, (1, 3, 1, 1)) + rng.uniform(0, 0.5, (1, 3, 10, 10)) for _ in range(count)
    ]
    return InMemory([{"x": picture.astype(np.float32)} for picture in smooth])


def work_for(
    model: ir.Model, folder: Path, progress: Silent | None = None, **more: int
) -> Learning:
    return Learning(
        model=model,
        tensors=grids(model),
        nodes=list(LAYERS),
        samples=pictures(16),
        jobs=1,
        progress=progress or Silent(),
        folder=folder,
        steps=more.get("steps", 200),
        seed=more.get("seed", 0),
        bits=4,
    )


def on_grids(model: ir.Model, tensors: dict[str, TensorPlan], codes: dict[str, Codes]) -> ir.Model:
    """Return the model with weights of those codes, else of the nearest."""
    written = model.clone()
    for name, tensor in tensors.items():
        value = written.graph.initializers[name]
        assert value.const_value is not None
        weight = value.const_value.numpy()
        scales = tensor.scales().reshape(-1, *[1] * (weight.ndim - 1))
        rounded = codes.get(name, np.rint(weight / scales))
        value.const_value = ir.tensor((rounded * scales).astype(np.float32), name=name)
    return written


def error(model: ir.Model, codes: dict[str, Codes]) -> float:
    """Return noise over signal at y on fresh samples, with weights on their grids."""
    written = on_grids(model, grids(model), codes)
    return noise(model, written, pictures(16, seed=9).feeds)


def noise(model: ir.Model, written: ir.Model, feeds: Sequence[Feeds]) -> float:
    """Return noise over signal at the output."""
    exact, rough = Session(model), Session(written)
    total = ErrorSums()
    for feed in feeds:
        (expected,), (found,) = exact.run(feed).values(), rough.run(feed).values()
        total += error_sums(expected, found)
    return total.relative_l2**2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Rounded]]:
    model = network()
    return {
        way.__name__: way(work_for(model, tmp_path_factory.mktemp(way.__name__)))
        for way in (adarounded, reconstructed)
    }


@pytest.mark.parametrize("way", ["adarounded", "reconstructed"])
def test_outputs_are_much_closer_than_with_the_nearest_codes(
    made: dict[str, dict[str, Rounded]], way: str
) -> None:
    model, found = network(), made[way]
    assert len(found) >= 3
    for name, rounded in found.items():
        tensor, weight = grids(model)[name], model.graph.initializers[name].const_value
        assert weight is not None
        assert rounded.solved < rounded.plain
        assert rounded.codes.shape == tuple(weight.shape.numpy())
        scales = tensor.scales().reshape(-1, *[1] * (rounded.codes.ndim - 1))
        floors = np.floor(weight.numpy().astype(np.float64) / scales)
        assert np.abs(rounded.codes).max() <= 7
        assert set(np.unique(rounded.codes - np.clip(floors, -7, 7))) <= {0, 1}
    assert error(model, {n: r.codes for n, r in found.items()}) < 0.5 * error(model, {})


@pytest.mark.parametrize(
    ("way", "stop", "saves"),
    [(adarounded, 3, 4), (reconstructed, 3, 4), (reconstructed, 2, 6)],
    ids=["a layer", "a block", "inside a block, which is learned anew"],
)
def test_a_run_that_was_stopped_ends_with_the_same_codes(
    made: dict[str, dict[str, Rounded]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: object,
    stop: int,
    saves: int,
) -> None:
    model, save, saved, heard = network(), Learning.save, [], Silent()

    def stopped(self: Learning, layer: object, learned: object) -> None:
        save(self, layer, learned)  # type: ignore[arg-type]
        saved.append(layer)
        if len(saved) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Learning, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        way(work_for(model, tmp_path))  # type: ignore[operator]
    assert len(list((tmp_path / "weights").glob("*.npz"))) == stop
    found = way(work_for(model, tmp_path, heard))  # type: ignore[operator]
    assert len(saved) == saves, "what was finished is not learned again"
    assert not heard.notices
    expected = made[way.__name__]  # type: ignore[attr-defined]
    assert found.keys() == expected.keys()
    for name in found:
        assert (found[name].codes == expected[name].codes).all()
    assert not (tmp_path / "activations").exists()


def test_another_seed_gives_other_codes_that_are_as_good(
    made: dict[str, dict[str, Rounded]], tmp_path: Path
) -> None:
    found = adarounded(work_for(network(), tmp_path, seed=1))
    assert any(
        (found[n].codes != r.codes).any() for n, r in made["adarounded"].items() if n in found
    )
    assert error(network(), {n: r.codes for n, r in found.items()}) < 0.5 * error(network(), {})


def test_a_block_that_torch_lacks_is_learned_layer_by_layer(tmp_path: Path) -> None:
    model, progress = network("Softplus"), Silent()
    found = reconstructed(work_for(model, tmp_path, progress, steps=100))
    assert progress.notices == [
        "brecq: the block from c1 to c3 is learned layer by layer: torch has no Softplus here"
    ]
    assert {"w1", "w2"} <= found.keys()


def test_memory_bounds_the_samples_of_a_block_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompile.planning import reconstruct

    monkeypatch.setattr(reconstruct, "BYTES", 40_000)
    progress = Silent()
    reconstructed(work_for(network(), tmp_path, progress, steps=5))
    assert any("is learned on 9 samples of 12" in notice for notice in progress.notices), (
        progress.notices
    )


def test_samples_that_cannot_be_joined_run_one_by_one(tmp_path: Path) -> None:
    body = """
        [a] p = MatMul(x, w1)
        [s] q = Reshape(p, whole)
        [b] r = MatMul(q, w2)
        [t] y = Softmax(r)
    """
    weights = {"w1": normal(1, 6, 6), "w2": normal(2, 6, 6), "whole": np.asarray([1, 3, 6])}
    model = graph_of("float[3, 6] x", body, **weights)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.uniform(0, 1, (3, 6)).astype(np.float32)} for _ in range(12)]
    tensors = {
        name: TensorPlan(kind="weight", type="int8", axis=1, scale=[0.4] * 6, zero_point=[0] * 6)
        for name in ("w1", "w2")
    }
    work = Learning(
        model,
        tensors,
        ["a", "b"],
        InMemory(feeds),
        1,
        Silent(),
        tmp_path,
        steps=200,
        seed=0,
        bits=4,
    )
    found = reconstructed(work)
    assert found.keys() == {"w1", "w2"}
    assert found["w1"].solved < 0.5 * found["w1"].plain


def blocks(model: ir.Model) -> list[list[str]]:
    layers = {node_name(n) for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul")}
    stages = cut(model, block_groups(model.graph, layers))
    found = [[node_name(n) for n in stage.nodes if node_name(n) in layers] for stage in stages]
    return [block for block in found if block]


def test_a_residual_block_is_a_block() -> None:
    assert blocks(network()) == [["c1", "c2", "c3"], ["fc"]]


def test_a_chain_is_cut_by_pairs_with_their_activation_functions() -> None:
    body = "\n".join(
        f"[c{i}] a{i} = Conv({f'p{i - 1}' if i else 'x'}, w)\n[r{i}] p{i} = Relu(a{i})"
        for i in range(5)
    )
    model = graph_of("float[1, 4, 4, 4] x", body + "\ny = Relu(p4)", w=normal(1, 4, 4, 1, 1))
    assert blocks(model) == [["c0", "c1"], ["c2", "c3"], ["c4"]]
    groups = block_groups(model.graph, {f"c{i}" for i in range(5)})
    assert [group.x.name for group in groups] == ["p1", "p3"]
    assert all(group == Group(group.x, ()) for group in groups)


def cifar(count: int) -> list[Feeds]:
    """Return pictures of CIFAR-10 as ResNet-20 takes them."""
    shown = np.load(asset("data", "cifar10_dev.npz"))["calib_x"][:count].astype(np.float32) / 255
    mean, deviation = np.asarray([0.485, 0.456, 0.406]), np.asarray([0.229, 0.224, 0.225])
    scaled = np.moveaxis((shown - mean) / deviation, -1, 1).astype(np.float32)
    return [{"input": picture[None]} for picture in scaled]


def resnet20(target: str, scheme: str) -> ir.Model:
    """Return ResNet-20 as a target's passes leave it."""
    path = asset("models", "resnet20_cifar10.onnx")
    return load(path, target, scheme, threads=1, dump_dir=None, progress=Silent()).model


@needs_assets
@pytest.mark.assets
@pytest.mark.slow
def test_convolutions_of_a_real_network_in_few_bits(tmp_path: Path) -> None:
    """All 18 that are large enough, in 4 bits with one scale a channel; half of what is gained."""
    model = resnet20("onnx", "weight-only")
    feeds, noises = cifar(80), {}
    for algorithm in ("rtn", "adaround"):
        about = model, tmp_path / algorithm, ONNX_STD
        job = job_of(*about, operators=("Conv",), group_size=0, algorithm=algorithm)
        solve_weights(job, InMemory(feeds[:48]))
        assert [plan.algorithm for plan in job.plans().values()] == [algorithm] * 18
        noises[algorithm] = noise(model, with_values(job), feeds[48:])
    errors = [plan.errors for plan in job.plans().values()]
    assert all(e["adaround"] < 0.9 * e["rtn"] for e in errors), errors
    assert noises["adaround"] < 0.5 * noises["rtn"], noises


@needs_assets
@pytest.mark.assets
@pytest.mark.slow
def test_on_a_real_network_blocks_are_best_and_plain_rounding_is_worst(tmp_path: Path) -> None:
    """The last stage of ResNet-20 in 4 bits; margins are half of what was measured."""
    model = resnet20("ort-cpu", "int8")
    nodes = [
        node
        for node in model.graph
        if node_name(node).startswith("/layer3/") and node.op_type == "Conv"
    ]
    tensors = {}
    for node in nodes:
        weight = node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
        scale = [float(s) for s in np.abs(weight).max(axis=(1, 2, 3)) / 7]
        tensors[str(node.inputs[1].name)] = TensorPlan(  # type: ignore[union-attr]
            kind="weight", type="int8", axis=0, scale=scale, zero_point=[0] * len(scale)
        )
    feeds = cifar(96)
    seen, fresh = InMemory(feeds[:64]), feeds[64:]
    names, errors = [node_name(node) for node in nodes], {}
    for way in (None, adarounded, reconstructed):
        codes = {}
        if way is not None:
            work = Learning(
                model,
                tensors,
                names,
                seen,
                1,
                Silent(),
                tmp_path / way.__name__,
                steps=200,
                seed=0,
                bits=4,
            )
            codes = {name: rounded.codes for name, rounded in way(work).items()}
        written = on_grids(model, tensors, codes)
        errors[way.__name__ if way else "nearest"] = noise(model, written, fresh)
    print(errors)
    assert errors["adarounded"] < 0.7 * errors["nearest"], errors
    assert errors["reconstructed"] < errors["adarounded"], errors
