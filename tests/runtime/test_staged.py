"""Stages run one after another compute what the whole model computes."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcompile.errors import DataError
from qcompile.graph.edit import lazy_tensor
from qcompile.graph.stages import cut, reader_groups
from qcompile.runtime.activations import ActivationStore
from qcompile.runtime.ort import Session
from qcompile.runtime.staged import finished_stages, run_stage, run_staged
from qcompile.samples import InMemory
from tests.assets import ROOT, asset, needs_assets
from tests.benchmarks.decoders import TINY, Decoder, write_decoder
from tests.graph.graphs import built, control_flow, graphs

WEIGHTED = ("MatMul", "Gemm", "Conv")
FLOAT32 = replace(TINY, dtype="float32")


def groups_of(model):
    weighted = [n for n in model.graph if n.op_type in WEIGHTED and n.inputs[1].is_initializer()]
    return reader_groups(weighted)


def tokens(vocab, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return InMemory([{"input_ids": rng.integers(0, vocab, (1, n))} for n in lengths])


def staged(model, stages, samples, folder, **options):
    store = ActivationStore(folder)
    for stage in stages:
        run_stage(model, stage, samples, store, threads=1, **options)
    return store


def check_equal(model, samples, folder, rtol=1e-5):
    """Run the model as a whole and in stages; return the number of stages."""
    stages = cut(model, groups_of(model))
    store = staged(model, stages, samples, folder)
    whole = Session(model)
    for index in range(len(samples)):
        for name, expected in whole.run(samples[index]).items():
            np.testing.assert_allclose(
                store.get(name, index), expected, rtol=rtol, atol=rtol * np.abs(expected).max()
            )
    assert set(store.names) == {v.name for v in model.graph.outputs}
    return len(stages)


@pytest.fixture
def decoder(tmp_path):
    return ir.load(write_decoder(tmp_path / "decoder.onnx", FLOAT32))


def test_decoder_with_samples_of_different_lengths(decoder, tmp_path):
    assert check_equal(decoder, tokens(256, (10, 3, 17, 1)), tmp_path / "store") == 10


@pytest.mark.parametrize("fused_norm", [False, True])
def test_float16_decoder(tmp_path, fused_norm):
    path = write_decoder(tmp_path / "d.onnx", replace(TINY, fused_norm=fused_norm))
    # a whole graph keeps some values in float32 that a cut rounds to float16
    check_equal(ir.load(path), tokens(256, (10, 3)), tmp_path / "store", rtol=4e-3)


@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize("name", ["textlm5m", "stories260k", "magika_v3_3", "kwt1_kws"])
def test_real_models(name, tmp_path):
    model = ir.load(asset("models", f"{name}.onnx"))
    rng = np.random.default_rng(0)
    files = [{"bytes": rng.integers(0, 256, (n, 2048), np.int32)} for n in (2, 1)]
    sounds = [{"input": rng.normal(size=(n, 98, 40)).astype(np.float32)} for n in (1, 3)]
    samples = {
        "textlm5m": tokens(1024, (40, 7)),
        "stories260k": tokens(512, (40, 7)),
        "magika_v3_3": InMemory(files),
        "kwt1_kws": InMemory(sounds),
    }[name]
    assert check_equal(model, samples, tmp_path) > 3


def test_if_and_loop(tmp_path):
    rng = np.random.default_rng(1)
    samples = InMemory(
        [
            {
                "x": rng.normal(size=(size, 4)).astype(np.float32),
                "n": np.array(size),
                "c": np.array(flag),
            }
            for size, flag in ((2, True), (3, False))
        ]
    )
    assert check_equal(control_flow(), samples, tmp_path) == 4


@given(graphs(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_any_graph(tmp_path_factory, parts, flag):
    model, rng = built(*parts), np.random.default_rng(0)
    x = {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("x0", "x1")}
    samples, folder = InMemory([x | {"c": np.array(flag)}]), tmp_path_factory.mktemp("store")
    whole = Session(model).run(samples[0])
    for budget in (1, 100):
        run = run_staged(model, samples, folder / str(budget), threads=1, budget_bytes=budget)
        found = run.outputs(0)
        for name, expected in whole.items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)


def test_visit_sees_the_activation_of_each_sample(decoder, tmp_path):
    samples, stages = tokens(256, (5, 9)), cut(decoder, groups_of(decoder))
    copy = decoder.clone()
    value = next(v for n in copy.graph for v in n.outputs if v.name == "layers.1.norm2")
    copy.graph.outputs.append(value)
    whole, seen = Session(copy), []
    store = ActivationStore(tmp_path / "store")
    for stage in stages:
        found = stage.group and stage.group.x.name == "layers.1.norm2"
        visit = (lambda i, x: seen.append((i, x.copy()))) if found else None
        run_stage(decoder, stage, samples, store, threads=1, visit=visit)
    assert [i for i, _ in seen] == [0, 1]
    for index, x in seen:
        expected = whole.run(samples[index], ["layers.1.norm2"])["layers.1.norm2"]
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


def test_visit_of_a_graph_input(tmp_path):
    rng, seen = np.random.default_rng(0), []
    model = control_flow()
    feeds = {"x": rng.normal(size=(2, 4)), "n": np.array(1), "c": np.array(True)}
    samples = InMemory([feeds | {"x": feeds["x"].astype(np.float32)}])
    (stage, *_) = cut(model, reader_groups([next(iter(model.graph))]))
    store = ActivationStore(tmp_path)
    run_stage(model, stage, samples, store, threads=1, visit=lambda i, x: seen.append(x))
    assert seen[0] is samples[0]["x"]
    assert store.names == ()


@pytest.mark.parametrize("kind", ["memory", "lazy", "another folder"])
def test_replaced_weights(decoder, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("qcompile.runtime.staged._EMBEDDED_BYTES", 1 << 10)
    name, samples = "layers.0.k.weight", tokens(256, (5, 9))
    tensor = decoder.graph.initializers[name].const_value
    array = -2 * tensor.numpy()
    replaced = decoder.clone()
    replaced.graph.initializers[name].const_value = ir.tensor(array, name=name)
    expected = Session(replaced).run(samples[1])["logits"]
    (tmp_path / "other").mkdir()
    array.tofile(tmp_path / "other" / "k.data")
    replacement = {
        "memory": ir.tensor(array, name=name),
        "lazy": lazy_tensor(name, tensor.dtype, array.shape, lambda: array),
        "another folder": ir.ExternalTensor(
            "k.data",
            0,
            array.nbytes,
            tensor.dtype,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=tmp_path / "other",
        ),
    }[kind]
    stages = cut(decoder, groups_of(decoder))
    store = staged(decoder, stages, samples, tmp_path / "s", replacements={name: replacement})
    np.testing.assert_allclose(store.get("logits", 1), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(Session(decoder).run(samples[1])["logits"], expected, rtol=1e-2)


def test_engine_with_int4_weights(tmp_path):
    """Operators without shape inference, and weights that are codes."""
    rng = np.random.default_rng(0)
    attributes = {"domain": "com.microsoft", "K": 64, "N": 64, "bits": 4, "block_size": 32}
    nodes, weights = [], []
    for index, (x, y) in enumerate([("x", "a"), ("r", "b"), ("s", "y")]):
        codes = rng.integers(0, 256, (64, 2, 16), np.uint8)
        scales = rng.uniform(0.01, 0.02, 128).astype(np.float32)
        weights += [
            numpy_helper.from_array(codes, f"q{index}"),
            numpy_helper.from_array(scales, f"s{index}"),
        ]
        nodes.append(
            helper.make_node("MatMulNBits", [x, f"q{index}", f"s{index}"], [y], **attributes)
        )
    nodes.insert(1, helper.make_node("Relu", ["a"], ["r"]))
    nodes.insert(3, helper.make_node("Add", ["b", "r"], ["s"]))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", "T", 64]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, ir_version=10, opset_imports=opsets))
    samples = InMemory([{"x": rng.normal(size=(2, n, 64)).astype(np.float32)} for n in (3, 5)])
    run = run_staged(model, samples, tmp_path, threads=1, budget_bytes=3000)
    assert len(run.store.names) == 1
    whole = Session(model)
    for index in range(2):
        expected = whole.run(samples[index])["y"]
        np.testing.assert_allclose(run.outputs(index)["y"], expected, rtol=1e-4, atol=1e-5)


def test_run_staged_answers_for_its_samples_only(decoder, tmp_path):
    samples = tokens(256, (5, 9, 4))
    run = run_staged(decoder, samples, tmp_path / "s", threads=1, budget_bytes=100_000)
    whole = Session(decoder)
    for index in (2, 0, 1):
        found = run.run(samples[index])
        assert list(found) == ["logits"]
        np.testing.assert_allclose(
            found["logits"], whole.run(samples[index])["logits"], rtol=1e-5, atol=1e-5
        )
    with pytest.raises(DataError, match="not run on this sample"):
        run.run(tokens(256, (5,), seed=1)[0])
    with pytest.raises(DataError, match="no samples"):
        run_staged(decoder, InMemory([]), tmp_path / "n", threads=1, budget_bytes=1)


def test_outputs_that_no_node_computes(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[N, 2] x) => (float[N, 2] y, float[N, 2] x, float[2, 2] w) { y = MatMul(x, w) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "w"))
    x = np.ones((3, 2), np.float32)
    samples = InMemory([{"x": x}])
    found = run_staged(ir.from_proto(proto), samples, tmp_path, threads=1, budget_bytes=1).outputs(
        0
    )
    assert list(found) == ["y", "x", "w"]
    np.testing.assert_array_equal(found["y"], x)
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["w"], np.eye(2))


def test_a_finished_stage_is_visited_again_but_not_run_again(decoder, tmp_path):
    samples, stages = tokens(256, (5, 9)), cut(decoder, groups_of(decoder))
    store = staged(decoder, stages[:3], samples, tmp_path / "s")
    assert finished_stages(stages, store, 2) == 3
    assert finished_stages(stages, store, 3) == 0
    seen: list[bytes] = []
    broken = {"layers.0.o.weight": ir.tensor(np.zeros((1, 1), np.float32))}
    for _ in range(2):
        run_stage(
            decoder,
            stages[2],
            samples,
            ActivationStore(tmp_path / "s"),
            threads=1,
            replacements=broken,
            visit=lambda i, x: seen.append(x.tobytes()),
        )
    assert len(set(seen)) == 2
    assert len(seen) == 4


KILLED = """
import os, signal, sys
import onnx_ir as ir
from pathlib import Path
from qcompile.runtime.activations import ActivationStore
from tests.runtime.test_staged import run_staged, tokens

left, put = int(sys.argv[3]), ActivationStore.put

def killed(self, *args):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, *args)

ActivationStore.put = killed
samples = tokens(256, (5, 9, 4))
run_staged(ir.load(sys.argv[1]), samples, Path(sys.argv[2]), threads=1, budget_bytes=40_000)
"""


def test_killed_and_called_again_gives_the_same_bits(decoder, tmp_path):
    samples, model = tokens(256, (5, 9, 4)), tmp_path / "decoder.onnx"
    options = {"threads": 1, "budget_bytes": 40_000}
    expected = run_staged(decoder, samples, tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    for puts in (1, 5, 14):
        command = [sys.executable, "-c", KILLED, str(model), str(folder), str(puts)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, check=False, cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
    steps = []

    class Listener:
        def step(self, stage, done, total):
            steps.append(done)

        def notice(self, message):
            raise AssertionError(message)

    found = run_staged(decoder, samples, folder, progress=Listener(), **options)
    assert steps[0] > 0
    for index in range(3):
        a, b = found.outputs(index)["logits"], expected.outputs(index)["logits"]
        assert a.tobytes() == b.tobytes()


MEASURED = """
import sys
from pathlib import Path
import onnx_ir as ir
from tests.memory import peak_kib
from tests.runtime.test_staged import run_staged, tokens

model = ir.load(sys.argv[1])
run = run_staged(model, tokens(4000, (64, 64)), Path(sys.argv[2]), threads=2, budget_bytes=1)
print(run.outputs(1)["logits"].shape, file=sys.stderr)
print(peak_kib() * 1024)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_a_stage(tmp_path):
    """352 MB of float16 weights, 8 MB the largest matrix, 17 MB the most that a group has."""
    shape = Decoder(blocks=10, hidden=1024, ffn=4096, heads=16, kv_heads=16, vocab=4000)
    path = write_decoder(tmp_path / "large.onnx", shape)
    command = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=True, cwd=ROOT, capture_output=True)
    assert int(done.stdout) < 0.8 * path.with_name("large.onnx.data").stat().st_size


def test_decoder_runs_in_float16_and_is_causal(tmp_path):
    for dtype in ("float16", "float32"):
        path: Path = write_decoder(tmp_path / "d.onnx", replace(TINY, dtype=dtype))
        onnx.checker.check_model(path, full_check=True)
        session = Session(path)
        ids = np.arange(24).reshape(2, 12)
        logits = session.run({"input_ids": ids})["logits"]
        assert logits.dtype == dtype
        assert np.isfinite(logits).all()
        assert logits.std() > 0.1
        prefix = session.run({"input_ids": ids[:, :7]})["logits"]
        np.testing.assert_allclose(logits[:, :7], prefix, rtol=1e-2, atol=1e-2)
