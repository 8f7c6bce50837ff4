"""Sessions for GPUs: their options, and what is said where there is no GPU. Here the CPU runs them.

Nothing here needs a GPU; what would needs ``onnxruntime-gpu`` and skips without.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.errors import EngineError
from qcompile.recipe import TensorRT
from qcompile.runtime import cuda
from qcompile.runtime.ort import Session
from qcompile.runtime.provider import CPU, Provider
from qcompile.runtime.tensorrt import has_gpu
from qcompile.runtime.timing import time_pair
from qcompile.targets.profiles import Profile
from tests.lint.models import Net, codes, reals, steps

PROFILES = {"x": Profile((1, 3), (4, 3), (8, 3)), "ids": Profile((1, 16), (1, 64), (1, 128))}
needs_gpu = pytest.mark.skipif(bool(cuda.missing("cuda")), reason=cuda.missing("cuda"))


def rounded_conv() -> ir.Model:
    """Conv with a float bias between codes on both sides."""
    net = Net()
    x = net.qdq(net.input((1, 16, 8, 8)))
    w = net.weight(codes(16, 16, 3, 3), steps(16), axis=0)
    y = net.op("Conv", x, w, reals(16), pads=[1, 1, 1, 1])
    return net.model(net.qdq(net.op("Relu", y)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ir.save(rounded_conv(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=(1, 16, 8, 8)).astype(np.float32)}


# -- providers ------------------------------------------------------------------------------------


def test_tensorrt_s_options() -> None:
    options = TensorRT(workspace_mib=512, optimization_level=5, hardware_compatible="ampere+")
    provider = cuda.tensorrt_provider(options, PROFILES)
    names = [name for name, _ in provider.chain]
    assert names == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    said = dict(provider.chain[0][1])
    assert said["trt_profile_min_shapes"] == "x:1x3,ids:1x16"
    assert said["trt_profile_opt_shapes"] == "x:4x3,ids:1x64"
    assert said["trt_profile_max_shapes"] == "x:8x3,ids:1x128"
    assert said["trt_max_workspace_size"] == str(512 << 20)
    assert said["trt_builder_optimization_level"] == "5"
    assert said["trt_engine_hw_compatible"] == "1"
    assert not provider.rewrites


@pytest.mark.parametrize("version", [10, 11])
def test_types_are_the_graph_s_so_no_precision_is_said(version: int) -> None:
    provider = cuda.tensorrt_provider(TensorRT(version=version), {})
    assert not {"trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable"} & set(provider.chain[0][1])


def test_names_that_the_options_cannot_hold_leave_the_shapes_out() -> None:
    provider = cuda.tensorrt_provider(TensorRT(), {"in:0": PROFILES["x"]})
    assert not [key for key in provider.chain[0][1] if "profile" in key]


def test_large_models_keep_their_engines_beside_the_context() -> None:
    small = cuda.tensorrt_provider(TensorRT(), {}, context_bytes=1000)
    large = cuda.tensorrt_provider(TensorRT(), {}, context_bytes=3 << 30)
    assert small.entries == {"ep.context_embed_mode": "1"}
    assert large.entries == {"ep.context_embed_mode": "0"}


def test_options_that_the_provider_lacks_are_named() -> None:
    asked = TensorRT(version_compatible=True, weight_streaming=True, hardware_compatible="same")
    assert cuda.not_taken(asked) == [
        "version_compatible",
        "weight_streaming",
        "hardware_compatible = 'same'",
    ]
    assert cuda.not_taken(TensorRT(hardware_compatible="ampere+")) == []


def test_paths_move_into_the_folder(tmp_path: Path) -> None:
    moved = cuda.in_folder(cuda.tensorrt_provider(TensorRT(), {}), tmp_path)
    paths = {k: v for k, v in moved.chain[0][1].items() if k.endswith("_path")}
    assert set(paths.values()) == {str(tmp_path / cuda.CACHE)}
    assert len(paths) == 2


# -- sessions -------------------------------------------------------------------------------------


def test_a_session_says_which_provider_is_missing(model: Path) -> None:
    absent = Provider((("RocketExecutionProvider", {}), *CPU.chain))
    with pytest.raises(EngineError, match=r"model\.onnx: .* has no RocketExecutionProvider"):
        Session(model, provider=absent)


def test_what_is_missing_is_what_the_machine_lacks() -> None:
    there = onnxruntime.get_available_providers()
    for device, name in cuda.NAMES.items():
        why = cuda.missing(device)
        assert bool(why) == (name not in there or not has_gpu())
        assert name not in there or why in {"", "no NVIDIA GPU"}


def test_without_rewrites_nodes_compute_what_the_file_says(
    model: Path, feeds: dict[str, np.ndarray]
) -> None:
    plain = Session(model, provider=Provider(CPU.chain, rewrites=False)).run(feeds)
    (name,) = plain
    expected = Session(model, optimize=False).run(feeds)[name]
    np.testing.assert_array_equal(plain[name], expected)


def test_two_models_are_timed_on_a_provider(model: Path, feeds: dict[str, np.ndarray]) -> None:
    other = Provider(CPU.chain, {"session.intra_op.allow_spinning": "0"})
    timing = time_pair(model, model, feeds, threads=2, seconds=0.2, provider=other)
    assert timing.pairs >= 10
    assert 0.5 < timing.ratio < 2


def test_onnxruntime_s_rewrites_quantize_a_float_bias(model: Path) -> None:
    """Why they are off in front of TensorRT, whose parser refuses int32 codes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(model.with_name("basic.onnx"))
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    before = Counter(node.op_type for node in ir.load(model).graph)
    after = Counter(node.op_type for node in ir.load(model.with_name("basic.onnx")).graph)
    assert after["DequantizeLinear"] > before["DequantizeLinear"]


@needs_gpu
def test_the_cuda_provider_runs_a_model(model: Path, feeds: dict[str, np.ndarray]) -> None:
    session = Session(model, provider=cuda.cuda_provider())
    (name,) = session.run(feeds)
    expected = Session(model, optimize=False).run(feeds)[name]
    np.testing.assert_allclose(session.run(feeds)[name], expected, atol=0.06)  # one step
