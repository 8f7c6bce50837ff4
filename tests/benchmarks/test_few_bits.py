"""The parts of the few-bit benchmarks: shares, layer errors, memory, and a build that is killed."""

import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.benchmarks import large, splits, weights
from tests.benchmarks.decoders import TINY, write_decoder

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])


def linear(path, weight, *, few_bits=False):
    """y = x @ weight, the weight as int8 codes in blocks if asked for."""
    parts = [numpy_helper.from_array(weight, "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if few_bits:
        parts = [
            numpy_helper.from_array(np.round(weight * 64).astype(np.int8), "codes"),
            numpy_helper.from_array(np.full((1, weight.shape[1]), 1 / 64, np.float32), "scale"),
        ]
        unpack = helper.make_node("DequantizeLinear", [part.name for part in parts], ["w"], axis=0)
        unpack.attribute.append(helper.make_attribute("block_size", 32))
        nodes.insert(0, unpack)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, weight.shape[1]])
    graph = helper.make_graph(nodes, "g", [X], [y], parts)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_layer_error_is_that_of_the_outputs(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 8)).astype(np.float32) / 2
    source = linear(tmp_path / "float.onnx", weight)
    engine = linear(tmp_path / "engine.onnx", weight, few_bits=True)
    feeds = [{"x": rng.standard_normal((2, 32)).astype(np.float32)} for _ in range(3)]
    x = np.concatenate([feed["x"] for feed in feeds])
    moved = x @ (weight - np.round(weight * 64) / 64)
    want = np.linalg.norm(moved) / np.linalg.norm(x @ weight)
    assert want > 1e-3
    # ONNX Runtime makes MatMulNBits of it, which rounds activations to 8 bits: 0.5 %.
    assert weights.layer_error(source, engine, feeds) == pytest.approx(want, abs=6e-3)


def test_what_awq_divides_is_not_compared(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["gate"]),
        helper.make_node("Sigmoid", ["gate"], ["s"]),
        helper.make_node("MatMul", ["x", "w"], ["up"]),
        helper.make_node("Mul", ["s", "up"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["down"]),
        helper.make_node("Add", ["down", "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "sum"], ["square"]),
        helper.make_node("MatMul", ["square", "w"], ["y"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])
    model = helper.make_model(helper.make_graph(nodes, "g", [X], [y]))
    assert weights._factors(model) == {"up"}


def test_what_keeps_no_name_is_not_compared(tmp_path):
    weight = np.ones((32, 8), np.float32)
    source = linear(tmp_path / "float.onnx", weight)
    with pytest.raises(ValueError, match="no quantized layer"):
        weights.layer_error(source, source, [])


def test_regained_share_and_verdicts():
    losses = {weights.PLAIN: 24.0, "qcompile GPTQ": 23.4, "qcompile AWQ": 23.9, weights.BEST: 23.3}
    by_text = {label: {"a": v, "b": 5.0} for label, v in losses.items()}
    by_text[weights.PLAIN]["b"] = 5.5
    shares = weights.regained(by_text, {"a": 23.0, "b": 5.0}, {"a": 1})
    assert shares == pytest.approx(dict(zip(losses, [0, 0.6, 0.1, 0.7], strict=True)), abs=0.01)
    both = weights.regained(by_text, {"a": 23.0, "b": 5.0}, {"a": 1, "b": 2})
    lost = np.log(24 / 23) + 2 * np.log(1.1)
    assert both["qcompile AWQ"] == pytest.approx(1 - np.log(23.9 / 23) / lost)
    verdicts = [weights._verdict(label, shares)[1] for label in losses]
    assert verdicts == ["", "pass", "**miss**", "pass"]


def test_memory_of_this_process():
    resident, anonymous = large._memory(os.getpid())
    assert 0.02 < anonymous <= resident < 100
    assert os.getpid() in large._family(os.getpid())


@pytest.mark.slow
def test_a_build_is_killed_on_the_way_and_goes_on(tmp_path):
    model = write_decoder(tmp_path / "decoder.onnx", replace(TINY, blocks=1))
    windows = tmp_path / "windows.npz"
    tokens = np.random.default_rng(0).integers(0, TINY.vocab, (4, 32))
    np.savez(windows, input_ids=tokens)
    out, cache = tmp_path / "out", tmp_path / "cache"
    options = ["--algorithm", "gptq", "--calib", str(windows)]
    large.build(model, options, out, cache, stop=large._solved(3))
    left = len(list(cache.glob("solving-*/weights/*.npz")))
    assert 3 <= left < large.LAYERS + 1
    large.build(model, options, out, cache)
    whole = large.digest(out)
    assert set(whole) >= {"plan.json", "model.onnx"}
    with (out / "model.onnx").open("r+b") as file:
        file.write(b"\1")
    differ = {name for name, found in large.digest(out).items() if found != whole[name]}
    assert differ == {"model.onnx"}


@pytest.mark.parametrize(("count", "half"), [(4, 2), (64, 32)])
def test_halves_of_the_samples_are_different_and_leave_none_out(count, half):
    found = splits.halves(count)
    assert len({tuple(one) for one in found}) == splits.HALVES
    assert {len(set(one)) for one in found} == {half}
    assert np.bincount(np.concatenate(found)).tolist() == [splits.HALVES // 2] * count


def test_the_difference_is_given_with_its_standard_error():
    shares = {weights.PLAIN: 0.0}
    shares |= {f"gptq {i}": share for i, share in enumerate([0.5, 0.6, 0.4])}
    shares |= {f"awq+gptq {i}": share for i, share in enumerate([0.52, 0.64, 0.46])}
    assert splits._summary(shares) == ["50.0% +- 10.0", "54.0% +- 9.2", "+4.0 +- 1.2"]


def test_log_shares_sum_to_one_and_keep_differences():
    logits = np.array([[1000.0, 999.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    found = splits._log_shares(logits)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1)
    np.testing.assert_allclose(np.diff(found, axis=1), np.diff(logits, axis=1))
