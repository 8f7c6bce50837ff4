"""Real builds with TensorRT for RTX: what its parser takes, and which types each layer gets.

These are the facts that the target's table and the lint rest on; a new version of the library that
differs makes a test fail here.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.errors import EngineError, ModelError, OutputError, RecipeError, RuntimeMissingError
from qcompile.progress import Silent
from qcompile.runtime import rtx
from qcompile.runtime.obtained import obtained
from qcompile.runtime.rtx import RtxRequest, build
from qcompile.runtime.rtx_library import is_installed, known_sms
from tests.assets import asset, needs_assets
from tests.runtime import rtx_forks
from tests.runtime.rtx_graphs import Graph

pytestmark = pytest.mark.skipif(
    is_installed() is None,
    reason="TensorRT for RTX is not installed (pip install 'qcompile[tensorrt-rtx]')",
)


def request_for(path, sm=89, **options):
    return RtxRequest(path, path.with_suffix(".engine"), sms=(sm,), **options)


def built(path, **options):
    """Build where many are built; ``build`` itself starts a process for each."""
    return rtx_forks.built(request_for(path, **options))


def precisions(path, **options):
    """Build the file; return node name to precision."""
    layers = built(path, **options).layers
    return {name: one.precision for name, one in obtained(ir.load(path), layers).items()}


def conv(folder, *, dtype="fp32", kind="int8", scale=(), act_axis=None, axis=0, **sizes):
    """Q and DQ -> Conv(32 -> 32, 3x3) with bias."""
    g = Graph(dtype)
    x = g.qdq(g.input("x", 1, 32, 16, 16), kind, scale, act_axis)
    w = g.weight("w", 32, 32, 3, 3, axis=axis, kind=kind)
    g.node("Conv", [x, w, g.floats("b", 32)], name="conv", pads=[1] * 4)
    return g.save(folder / "conv.onnx", "conv_out")


def matmul(folder, *, dtype="fp32", kind="int8", scale=(), axis=1, rows=16):
    g = Graph(dtype)
    x = g.qdq(g.input("x", rows, 64), kind, scale)
    g.node("MatMul", [x, g.weight("w", 64, 128, axis=axis, kind=kind)])
    return g.save(folder / "matmul.onnx", "matmul_out")


# What computes in codes


@pytest.mark.parametrize(
    "sm", [80, 89, *(pytest.param(sm, marks=pytest.mark.slow) for sm in (86, 120))]
)
def test_int8_conv(tmp_path, sm):
    assert precisions(conv(tmp_path), sm=sm) == {"conv": "int8"}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_int8_conv_between_half_floats(tmp_path, dtype):
    assert precisions(conv(tmp_path, dtype=dtype)) == {"conv": "int8"}


def test_int8_conv_with_one_scale_for_the_weight(tmp_path):
    assert precisions(conv(tmp_path, axis=None)) == {"conv": "int8"}


def test_int8_conv_of_a_weight_that_the_builder_quantizes(tmp_path):
    g = Graph()
    x = g.qdq(g.input("x", 1, 32, 16, 16))
    more = [g.scale("s", 32), g.zeros("z", "int8", 32)]
    q = g.node("QuantizeLinear", [g.floats("w", 32, 32, 3, 3), *more], name="w_Q", axis=0)
    w = g.node("DequantizeLinear", [q, *more], name="w_DQ", axis=0)
    g.node("Conv", [x, w])
    assert precisions(g.save(tmp_path / "m.onnx", "conv_out")) == {"conv": "int8"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "group", "shape"),
    [
        ((32, 1, 3, 3), 32, (1, 32, 16, 16)),
        ((32, 8, 3, 3), 4, (1, 32, 16, 16)),
        ((16, 3, 3, 3), 1, (1, 3, 16, 16)),
        ((17, 5, 3, 3), 1, (1, 5, 9, 9)),
        ((32, 16, 3), 1, (1, 16, 50)),
        ((64, 64, 1, 1), 1, (1, 64, 8, 8)),
    ],
    ids=["depthwise", "grouped", "three-channels", "odd", "1d", "pointwise"],
)
def test_int8_conv_of_any_shape(tmp_path, weight, group, shape):
    g = Graph()
    g.node("Conv", [g.qdq(g.input("x", *shape)), g.weight("w", *weight, axis=0)], group=group)
    assert precisions(g.save(tmp_path / "m.onnx", "conv_out")) == {"conv": "int8"}


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_int8_matmul(tmp_path, rows):
    assert precisions(matmul(tmp_path, rows=rows)) == {"matmul": "int8"}


def test_int8_matmul_of_two_activations(tmp_path):
    g = Graph()
    g.node("MatMul", [g.qdq(g.input("a", 16, 64)), g.qdq(g.input("b", 64, 32))])
    assert precisions(g.save(tmp_path / "m.onnx", "matmul_out")) == {"matmul": "int8"}


@pytest.mark.parametrize(
    ("transposed", "axis", "precision"),
    [(1, 0, "int8"), (1, 1, "fp32"), (0, 1, "int8"), (0, 0, "fp32")],
)
def test_gemm_wants_a_scale_for_each_output(tmp_path, transposed, axis, precision):
    g = Graph()
    x = g.qdq(g.input("x", 16, 64))
    shape = (128, 64) if transposed else (64, 128)
    w = g.weight("w", *shape, axis=axis)
    g.node("Gemm", [x, w, g.floats("b", 128)], transB=transposed)
    assert precisions(g.save(tmp_path / "m.onnx", "gemm_out")) == {"gemm": precision}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_fp8(tmp_path, dtype):
    assert precisions(matmul(tmp_path, dtype=dtype, kind="fp8")) == {"matmul": "fp8"}
    assert precisions(conv(tmp_path, dtype=dtype, kind="fp8")) == {"conv": "fp8"}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "block", [64, 128, *(pytest.param(size, marks=pytest.mark.slow) for size in (16, 32, 256))]
)
def test_int4_weights_in_blocks_are_unpacked_by_the_kernel_that_multiplies(tmp_path, block, dtype):
    g = Graph(dtype)
    g.node("MatMul", [g.input("x", 4, 512), g.blocks("w", 512, 128, block)])
    path = g.save(tmp_path / "m.onnx", "matmul_out")
    layers = built(path).layers
    assert [layer.kind for layer in layers] == ["runtime_fusion"]
    assert obtained(ir.load(path), layers)["matmul"].precision == "int4 weights"


def test_int8_weights_alone(tmp_path):
    g = Graph("fp16")
    g.node("MatMul", [g.input("x", 4, 64), g.weight("w", 64, 128, axis=1)])
    assert precisions(g.save(tmp_path / "m.onnx", "matmul_out")) == {"matmul": "int8 weights"}


@pytest.mark.parametrize("axis", [None, 1], ids=["one-scale", "scale-per-column"])
def test_int4_weights_without_blocks_are_unpacked_by_a_kernel_of_their_own(tmp_path, axis):
    g = Graph("fp16")
    g.node("MatMul", [g.input("x", 16, 128), g.weight("w", 128, 128, axis=axis, kind="int4")])
    assert precisions(g.save(tmp_path / "m.onnx", "matmul_out")) == {"matmul": "fp16"}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_float(tmp_path, dtype):
    g = Graph(dtype)
    g.node("Conv", [g.input("x", 1, 32, 16, 16), g.floats("w", 32, 32, 3, 3)])
    g.node("Relu", ["conv_out"])
    assert precisions(g.save(tmp_path / "m.onnx", "relu_out")) == {"conv": dtype}


def test_max_pool_between_codes_and_average_pool_in_float(tmp_path):
    for op, precision in (("MaxPool", "int8"), ("AveragePool", "fp32")):
        g = Graph()
        x = g.qdq(g.input("x", 1, 32, 16, 16))
        y = g.node(op, [x], name="pool", kernel_shape=[2, 2], strides=[2, 2])
        w = g.weight("w", 32, 32, 3, 3, axis=0)
        g.node("Conv", [g.qdq(y), w])
        types = precisions(g.save(tmp_path / "m.onnx", "conv_out"))
        assert types == {"pool": precision, "conv": "int8"}


def test_residual_block_reads_a_quantized_skip_as_codes(tmp_path):
    g = Graph()
    x = g.qdq(g.node("Relu", [g.input("x", 1, 32, 16, 16)]))
    w = [g.weight(name, 32, 32, 3, 3, axis=0) for name in ("w1", "w2")]
    y = g.node("Conv", [x, w[0]], name="conv1", pads=[1] * 4)
    y = g.qdq(g.node("Relu", [y], name="inner"))
    y = g.node("Conv", [y, w[1]], name="conv2", pads=[1] * 4)
    g.node("Add", [y, x])
    path = g.save(tmp_path / "m.onnx", "add_out")
    layers = built(path).layers
    types = {name: one.precision for name, one in obtained(ir.load(path), layers).items()}
    assert types == {"conv1": "int8", "conv2": "int8", "add": "fp32"}
    (add,) = [layer for layer in layers if "add" in layer.nodes]
    assert sorted(tensor.dtype for tensor in add.inputs) == ["fp32", "int8"]


@pytest.mark.parametrize(
    ("kind", "fused"), [(None, True), ("int8", False), ("fp8", True)], ids=["fp16", "int8", "fp8"]
)
def test_attention_is_one_kernel_unless_it_is_int8(tmp_path, kind, fused):
    g = Graph("fp16")
    q, k, v = (
        g.input("q", 1, 8, 128, 64),
        g.input("k", 1, 8, 64, 128),
        g.input("v", 1, 8, 128, 64),
    )
    code = (lambda x: g.qdq(x, kind)) if kind else (lambda x: x)
    scores = g.node("MatMul", [code(q), code(k)], name="scores")
    scaled = g.node("Mul", [scores, g.scale("root", value=0.125)])
    weights = g.node("Softmax", [scaled], axis=-1)
    g.node("MatMul", [code(weights), code(v)], name="mix")
    path = g.save(tmp_path / "m.onnx", "mix_out")
    layers = built(path).layers
    types = {name: one.precision for name, one in obtained(ir.load(path), layers).items()}
    assert types == {"scores": kind or "fp16", "mix": kind or "fp16"}
    both = [one for one in layers if {"scores", "mix"} <= set(one.nodes)]
    assert len(both) == fused


def test_dynamic_shapes(tmp_path):
    g = Graph()
    x = g.qdq(g.input("x", "N", 32, "H", "W"))
    g.node("Conv", [x, g.weight("w", 32, 32, 3, 3, axis=0)])
    path = g.save(tmp_path / "m.onnx", "conv_out")
    shapes = {"x": ((1, 32, 16, 16), (2, 32, 32, 32), (8, 32, 64, 64))}
    layers = built(path, profiles=shapes).layers
    (layer,) = [layer for layer in layers if layer.kind == "correlation"]
    assert layer.inputs[0].shape == (-1, 32, -1, -1)
    assert obtained(ir.load(path), layers)["conv"].precision == "int8"


# Operators that the clean-up makes


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("op", "opset", "weights", "attributes"),
    [
        ("LayerNormalization", 21, 2, {"axis": -1}),
        ("SimplifiedLayerNormalization", 21, 1, {"axis": -1}),
        ("RMSNormalization", 23, 1, {"axis": -1}),
        ("Gelu", 21, 0, {"approximate": "tanh"}),
        ("Gelu", 21, 0, {}),
        ("HardSwish", 21, 0, {}),
        ("Mish", 21, 0, {}),
        ("Swish", 24, 0, {}),
    ],
)
def test_operators_that_are_taken(tmp_path, op, opset, weights, attributes, dtype):
    g = Graph(dtype, opset)
    parameters = [g.floats(f"p{number}", 64) for number in range(weights)]
    g.node(op, [g.input("x", 4, 64), *parameters], name="op", **attributes)
    layers = built(g.save(tmp_path / "m.onnx", "op_out")).layers
    assert [layer.kind for layer in layers] == ["kgen"]


def test_quick_gelu_is_not_taken(tmp_path):
    g = Graph()
    g.node("QuickGelu", [g.input("x", 4, 64)], domain="com.microsoft")
    with pytest.raises(EngineError, match="no operator QuickGelu"):
        built(g.save(tmp_path / "m.onnx", "quickgelu_out"))


# Traps: these parse and build, and compute in float


def test_trap_activation_scale_of_shape_1(tmp_path):
    assert precisions(conv(tmp_path, scale=(1,))) == {"conv": "fp32"}
    assert precisions(conv(tmp_path, scale=(1,), kind="fp8")) == {"conv": "fp32"}
    assert precisions(conv(tmp_path, scale=(1,)), sm=120) == {"conv": "fp32"}


def test_no_trap_scale_of_shape_1_elsewhere(tmp_path):
    assert precisions(matmul(tmp_path, scale=(1,))) == {"matmul": "int8"}
    g = Graph()
    x = g.qdq(g.input("x", 1, 32, 16, 16))
    w = g.node(
        "DequantizeLinear",
        [g.codes("w", "int8", 32, 32, 3, 3), g.scale("s", 1), g.zeros("z", "int8", 1)],
    )
    g.node("Conv", [x, w])
    assert precisions(g.save(tmp_path / "m.onnx", "conv_out")) == {"conv": "int8"}


def test_trap_weight_scales_of_inputs(tmp_path):
    assert precisions(conv(tmp_path, axis=1)) == {"conv": "fp32"}
    assert precisions(matmul(tmp_path, axis=0)) == {"matmul": "fp32"}


def test_trap_codes_that_a_fused_kernel_turns_into_floats(tmp_path):
    """Both operands are int8 where the kernel reads them: reading types alone would say int8."""
    layers = built(matmul(tmp_path, axis=0)).layers
    (fused,) = [layer for layer in layers if "matmul" in layer.nodes]
    assert fused.kind == "runtime_fusion"
    assert fused.inputs[0].dtype == "int8"
    assert "int8" in {tensor.dtype for tensor in fused.constants}


def test_trap_activation_scales_of_channels(tmp_path):
    assert precisions(conv(tmp_path, scale=(32,), act_axis=1)) == {"conv": "fp32"}


def test_trap_activations_alone(tmp_path):
    g = Graph()
    g.node("Conv", [g.qdq(g.input("x", 1, 32, 16, 16)), g.floats("w", 32, 32, 3, 3)])
    assert precisions(g.save(tmp_path / "m.onnx", "conv_out")) == {"conv": "fp32"}


def test_trap_conv_transpose(tmp_path):
    g = Graph()
    x = g.qdq(g.input("x", 1, 32, 16, 16))
    g.node("ConvTranspose", [x, g.weight("w", 32, 32, 3, 3, axis=1)], name="deconv")
    assert precisions(g.save(tmp_path / "m.onnx", "deconv_out")) == {"deconv": "fp32"}


@pytest.mark.parametrize(
    ("shape", "axis", "precision"),
    [
        ((64, 128, 1, 1), 1, "int8"),
        ((8, 8, 128), 2, "int8"),
        ((64 * 128,), None, "int8"),
        ((64, 16, 8), 1, "fp32"),
    ],
    ids=["squeezed", "rows-joined", "flat-one-scale", "columns-joined"],
)
def test_reshaped_weight_keeps_int8_while_its_columns_stay_whole(tmp_path, shape, axis, precision):
    g = Graph()
    x = g.qdq(g.input("x", 16, 64))
    target = g.constant("shape", np.array([64, 128], np.int64))
    w = g.node("Reshape", [g.weight("w", *shape, axis=axis), target])
    g.node("MatMul", [x, w])
    assert precisions(g.save(tmp_path / "m.onnx", "matmul_out")) == {"matmul": precision}


def test_transposed_weight_keeps_int8(tmp_path):
    g = Graph()
    x = g.qdq(g.input("x", 16, 64))
    w = g.node("Transpose", [g.weight("w", 128, 64, axis=0)], perm=[1, 0])
    g.node("MatMul", [x, w])
    assert precisions(g.save(tmp_path / "m.onnx", "matmul_out")) == {"matmul": "int8"}


def test_trap_cast_behind_a_weight(tmp_path):
    g = Graph()
    x = g.qdq(g.input("x", 1, 32, 16, 16))
    half = g.node("Cast", [g.weight("w", 32, 32, 3, 3, axis=0)], name="half", to=10)
    w = g.node("Cast", [half], name="back", to=1)
    g.node("Conv", [x, w])
    assert precisions(g.save(tmp_path / "m.onnx", "conv_out")) == {"conv": "fp32"}


def test_trap_int8_weights_in_blocks_are_unpacked_by_a_kernel_of_their_own(tmp_path):
    g = Graph("fp16")
    g.node("MatMul", [g.input("x", 16, 128), g.blocks("w", 128, 128, 64, kind="int8")])
    assert precisions(g.save(tmp_path / "m.onnx", "matmul_out")) == {"matmul": "fp16"}


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_trap_blocks_under_int8_activations_are_summed_before_they_are_scaled(tmp_path, kind):
    """One product over all 128 rows, then a factor for each of 2 x 128 blocks: it cannot be right.

    Each block of 64 rows needs its scale before the sum over rows, so rule L36 forbids the pair.
    """
    g = Graph()
    x = g.qdq(g.input("x", 16, 128))
    g.node("MatMul", [x, g.blocks("w", 128, 128, 64, kind=kind)])
    layers = built(g.save(tmp_path / "m.onnx", "matmul_out")).layers
    (product,) = [layer for layer in layers if layer.kind == "gemm"]
    assert product.inputs[0].shape == (16, 128)
    assert product.outputs[0].shape == (16, 128)
    assert layers[-1].kind == "kgen"
    assert layers[-1].constants[-1].shape == (1, 2 * 128)


def test_trap_turing(tmp_path):
    assert precisions(conv(tmp_path), sm=75) == {"conv": "fp32"}


# What is refused, and how it is said


def test_unsupported_operator_is_named(tmp_path):
    g = Graph()
    g.node("Relu", [g.input("x", 1, 4)])
    g.node("Frobnicate", ["relu_out"], name="odd/one", domain="my.domain")
    path = g.save(tmp_path / "m.onnx", "odd/one_out")
    with pytest.raises(EngineError, match=r"m\.onnx: .*node 'odd/one' \(Frobnicate\): .*no operat"):
        build(request_for(path), Silent())
    assert list(tmp_path.iterdir()) == [path]


def test_parser_errors_name_the_node_and_leave_out_the_driver(tmp_path):
    g = Graph()
    g.input("x", 1, 4)
    g.node("Add", ["x", g.constant("b", np.ones(4, np.float16))], name="mixed")
    with pytest.raises(EngineError, match=r"node 'mixed' \(Add\): .*Float and Half") as error:
        built(g.save(tmp_path / "m.onnx", "mixed_out"))
    assert "driver" not in str(error.value)
    assert "/_src" not in str(error.value)


def test_zero_point(tmp_path):
    g = Graph()
    inputs = [g.input("x", 1, 4), g.scale("s"), g.constant("z", np.int8(3))]
    q = g.node("QuantizeLinear", inputs, name="q")
    g.node("DequantizeLinear", [q, *inputs[1:]], name="dq")
    with pytest.raises(EngineError, match=r"node 'q' \(QuantizeLinear\): Non-zero zero point"):
        built(g.save(tmp_path / "m.onnx", "dq_out"))


def test_file_that_is_no_model(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model" * 100)
    with pytest.raises(EngineError, match=r"m\.onnx: .*[Ff]ailed to parse"):
        build(request_for(path), Silent())
    with pytest.raises(ModelError, match="no such file"):
        build(request_for(tmp_path / "other.onnx"), Silent())


def test_fp8_needs_ada(tmp_path):
    with pytest.raises(EngineError, match=r"sm80.*fp8_e4m3"):
        built(matmul(tmp_path, kind="fp8"), sm=80)


def test_unknown_device(tmp_path):
    assert {80, 86, 89, 120} <= set(known_sms())
    with pytest.raises(RecipeError, match=r"sm 77; it knows 75, 80, 86, 89, 120"):
        built(conv(tmp_path), sm=77)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, r"input 'x' has shape \?x4: .*--shapes x:"),
        ({"y": ((1, 4),) * 3}, "no input 'y' .* it has x"),
        ({"x": ((1,),) * 3}, "1 has 1 dimensions, but input 'x' .* has 2"),
        ({"x": ((1, 4), (1, 4), (1, 5))}, "1x5 contradicts input 'x'"),
        ({"x": ((3, 4), (2, 4), (5, 4))}, "least .* 3, 2, 5"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, shapes, message):
    g = Graph()
    g.node("Relu", [g.input("x", "N", 4)])
    with pytest.raises(RecipeError, match=message):
        built(g.save(tmp_path / "m.onnx", "relu_out"), profiles=shapes)


def test_input_that_is_a_shape(tmp_path):
    g = Graph()
    g.node("Reshape", [g.input("x", 2, 4), g.input("to", 2, dtype=onnx.TensorProto.INT64)])
    with pytest.raises(EngineError, match="input 'to' is a shape"):
        built(g.save(tmp_path / "m.onnx", "reshape_out"))


def test_too_little_workspace(tmp_path):
    with pytest.raises(EngineError, match=r"cannot build it: .*workspace"):
        built(conv(tmp_path), workspace_bytes=1024)


def test_no_output_folder(tmp_path):
    request = RtxRequest(conv(tmp_path), tmp_path / "none" / "m.engine", sms=(89,))
    with pytest.raises(OutputError, match="no such folder"):
        build(request, Silent())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "with_name", lambda self, name: tmp_path / "full")
    (tmp_path / "full").symlink_to("/dev/full")
    request = RtxRequest(conv(tmp_path), tmp_path / "m.engine", sms=(89,))
    with pytest.raises(OutputError, match="cannot write the engine: No space left"):
        build(request, Silent())


def test_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(rtx, "is_installed", lambda: None)
    with pytest.raises(RuntimeMissingError, match=r"qcompile\[tensorrt-rtx\]"):
        build(request_for(conv(tmp_path)), Silent())


# The process


class Watch(Silent):
    """Calls a function when the builder reports its first step."""

    def __init__(self, act=lambda: None):
        super().__init__()
        self.steps, self.act = [], act

    def step(self, stage, done, total):
        self.steps.append((done, total))
        if len(self.steps) == 1:
            self.act()


def children(pid="self"):
    """Return the builder processes that a process has started."""
    found = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for child in found.split() if runs(int(child))]


def runs(pid):
    """Return whether the process is a builder's and alive; one that has ended has no arguments."""
    try:
        return b"rtx_child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="there is no /proc")


def test_progress_goes_from_nothing_to_all(tmp_path):
    watch = Watch()
    build(RtxRequest(conv(tmp_path), tmp_path / "m.engine", sms=(89,)), watch)
    assert watch.steps[0][0] == 0
    assert watch.steps[-1][0] == watch.steps[-1][1] > 1
    assert watch.steps == sorted(watch.steps)


@needs_proc
def test_a_child_that_is_killed_is_an_error_and_leaves_nothing(tmp_path):
    watch = Watch(lambda: [os.kill(pid, signal.SIGSEGV) for pid in children()])
    path = conv(tmp_path)
    with pytest.raises(EngineError, match=r"crashed \(SIGSEGV.*conv\.onnx; the last its log says"):
        build(RtxRequest(path, tmp_path / "m.engine", sms=(89,)), watch)
    assert list(tmp_path.iterdir()) == [path]


def test_a_builder_that_crashes_by_itself_is_an_error(tmp_path):
    """A scale that is computed at run time takes the builder of a Conv down (1.7.1)."""
    g = Graph()
    g.input("s", dtype=onnx.TensorProto.FLOAT)
    inputs = [g.input("x", 1, 32, 16, 16), "s", g.zeros("z", "int8")]
    q = g.node("QuantizeLinear", inputs, name="q")
    x = g.node("DequantizeLinear", [q, *inputs[1:]], name="dq")
    g.node("Conv", [x, g.weight("w", 32, 32, 3, 3, axis=0)])
    with pytest.raises(EngineError, match=r"m\.onnx"):
        build(request_for(g.save(tmp_path / "m.onnx", "conv_out")), Silent())


@needs_proc
def test_ctrl_c_ends_the_child(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    path = conv(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build(RtxRequest(path, tmp_path / "m.engine", sms=(89,)), Watch(interrupt))
    assert not children()
    assert list(tmp_path.iterdir()) == [path]


@needs_proc
def test_the_child_ends_when_its_parent_is_killed(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from qcompile.progress import Silent
from qcompile.runtime.rtx import RtxRequest, build

class Wait(Silent):
    def step(self, *_):
        print("ready", flush=True)
        signal.pause()

folder = Path({str(tmp_path)!r})
build(RtxRequest(folder / "conv.onnx", folder / "m.engine", sms=(89,)), Wait())
"""
    conv(tmp_path)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    with parent:
        assert parent.stdout.readline() == b"ready\n"
        (child,) = children(parent.pid)
        parent.kill()
    deadline = time.monotonic() + 20
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)


def test_same_request_same_bytes(tmp_path):
    path = conv(tmp_path)
    engines = []
    for number in range(2):
        engine = tmp_path / f"{number}.engine"
        build(RtxRequest(path, engine, sms=(86, 89)), Silent())
        engines.append(engine.read_bytes())
    assert engines[0] == engines[1]


@pytest.mark.slow
def test_several_builds_at_once(tmp_path):
    path, results = conv(tmp_path), []

    def one(number):
        engine = tmp_path / f"{number}.engine"
        results.append(build(RtxRequest(path, engine, sms=(89,)), Silent()))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.bytes for result in results}) == 1
    assert len(results) == 3


def test_external_data_and_options(tmp_path):
    g = Graph()
    g.node("MatMul", [g.input("x", 4, 64), g.floats("w", 64, 128)])
    path = g.save(tmp_path / "m.onnx", "matmul_out", save_as_external_data=True, location="m.data")
    assert (tmp_path / "m.data").stat().st_size >= 64 * 128 * 4
    options = {"weight_streaming": True, "optimization_level": 5, "workspace_bytes": 1 << 28}
    result = build(request_for(path, **options), Silent())
    assert result.bytes == path.with_suffix(".engine").stat().st_size > 64 * 128 * 4
    assert result.seconds > 0


def test_default_devices(tmp_path):
    path = conv(tmp_path)
    result = build(RtxRequest(path, tmp_path / "m.engine"), Silent())
    types = obtained(ir.load(path), result.layers)
    assert types["conv"].precision == "int8"


def test_warnings_are_told_once(tmp_path):
    g = Graph()
    g.input("i", 4, dtype=onnx.TensorProto.INT64)
    y = g.node("Cast", ["i"], to=1)
    result = built(g.save(tmp_path / "m.onnx", y))
    assert [w for w in result.warnings if "i" in w.split() and "Int64" in w]
    assert len(set(result.warnings)) == len(result.warnings)


@pytest.mark.slow
@needs_assets
@pytest.mark.parametrize(
    ("name", "shapes", "least"),
    [
        ("resnet20_cifar10", {"input": ((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))}, 19),
        ("dscnn_kws", {"input": ((1, 49, 10, 1), (8, 49, 10, 1), (64, 49, 10, 1))}, 9),
    ],
)
def test_float_assets_build(tmp_path, name, shapes, least):
    model = asset("models", f"{name}.onnx")
    request = RtxRequest(model, tmp_path / "m.engine", sms=(89,), profiles=shapes)
    types = obtained(ir.load(model), build(request, Silent()).layers)
    convs = [one.precision for one in types.values() if one.op == "Conv"]
    assert convs == ["fp32"] * len(convs)
    assert len(convs) >= least
