"""Graphs in half precision, parsed and built by TensorRT for RTX."""

from itertools import islice

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.frontend import load
from qcompile.graph.halves import HALVES
from qcompile.graph.runner import run_passes
from qcompile.passes.cast_floats import CastFloats
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.hold_floats import HoldFloats
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from qcompile.planning.half import float32_nodes
from qcompile.progress import Silent
from qcompile.runtime.rtx import RtxRequest
from qcompile.runtime.rtx_library import is_installed
from qcompile.samples import InMemory
from tests.assets import asset, needs_assets, tool
from tests.planning.tools import graph_of, normal
from tests.runtime import rtx_forks

pytestmark = pytest.mark.skipif(is_installed() is None, reason="TensorRT for RTX is not installed")

SHORT = {"float16": "fp16", "bfloat16": "bf16"}
SHAPES = {"resnet20_cifar10": ("input", (3, 32, 32)), "kwt1_kws": ("input", (98, 40))}
OPSET = [ConvertOpset(opset=22), NameValues(), InferShapes()]
WEIGHTED = ("correlation", "gemm")


def built(model, folder, profiles=None):
    ir.save(model, folder / "model.onnx")
    request = RtxRequest(
        folder / "model.onnx", folder / "engine", sms=(89,), profiles=profiles or {}
    )
    return rtx_forks.built(request)


def types(layers):
    """Return the float types that the weighted layers read and write."""
    tensors = [t for layer in layers if layer.kind in WEIGHTED for t in layer.inputs]
    tensors += [t for layer in layers if layer.kind in WEIGHTED for t in layer.outputs]
    return {t.dtype for t in tensors}


@pytest.mark.slow
@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("resnet20_cifar10", "float16"), ("resnet20_cifar10", "bfloat16"), ("kwt1_kws", "float16")],
)
def test_real_models_compute_in_half(name, dtype, tmp_path):
    path = asset("models", f"{name}.onnx")
    loaded = load(path, "ort-cpu", "weight-only", threads=1, dump_dir=None, progress=Silent())
    model = loaded.model
    run_passes(model, list(OPSET), holds=loaded.holds)
    samples = InMemory(list(islice(tool("calib").SETS[name](), 4)))
    step = CastFloats(dtype=dtype, kept=float32_nodes(model, samples, dtype))
    run_passes(model, [step], holds=loaded.holds)
    port, shape = SHAPES[name]
    result = built(model, tmp_path, {port: ((1, *shape), (8, *shape), (16, *shape))})
    assert result.bytes > 0
    assert types(result.layers) == {SHORT[dtype]}


@pytest.mark.parametrize("dtype", HALVES)
def test_int8_with_a_half_remainder(dtype, tmp_path):
    body = """
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        k = DequantizeLinear<axis=0>(w, v)
        a = Conv<pads=[1, 1, 1, 1]>(d, k, b)
        r = Relu(a)
        e = QuantizeLinear(r, s, z)
        f = DequantizeLinear(e, s, z)
        g = Conv<pads=[1, 1, 1, 1]>(f, k, b)
        y = Sigmoid(g)
    """
    codes = np.random.default_rng(0).integers(-127, 128, (32, 32, 3, 3)).astype(np.int8)
    weights = {"s": np.float32(2**-5), "z": np.int8(0), "w": codes, "b": normal(1, 32)}
    model = graph_of("float[1, 32, 16, 16] x", body, **weights, v=np.full(32, 2**-9, np.float32))
    for step in OPSET:
        step(model)
    plain = built(model, tmp_path).layers
    assert CastFloats(dtype=dtype)(model).modified
    layers = built(model, tmp_path).layers
    assert [layer.kind for layer in layers] == [layer.kind for layer in plain]
    convolutions = [layer for layer in layers if layer.kind == "correlation"]
    assert len(convolutions) == 2
    assert all([t.dtype for t in layer.inputs] == ["int8"] for layer in convolutions)
    constants = [{t.dtype for t in layer.constants} for layer in layers if layer.kind == "kgen"]
    assert sum(SHORT[dtype] in found for found in constants) == 2, "the bias is in half"


@pytest.mark.parametrize(
    ("between", "held"),
    [
        ("b = Conv<pads = [1, 1, 1, 1]> (a, w)", False),
        ("c = Identity(a)\nb = Conv<pads = [1, 1, 1, 1]> (c, w)", False),
        ("c = Mul(a, one)\nb = Conv<pads = [1, 1, 1, 1]> (c, w)", False),
        ("c = Conv<pads = [1, 1, 1, 1]> (a, w)\nb = Relu(c)", True),
    ],
)
def test_what_holds_a_product_in_float32(between, held, tmp_path):
    """What ``HoldFloats`` is for; where it finds nothing to do, nothing needs to be done."""
    body = f"a = Cast<to = 1> (x)\n{between}\ny = Cast<to = 10> (b)"
    weights = {"w": normal(0, 16, 16, 3, 3), "one": np.float32(1)}
    used = {name: array for name, array in weights.items() if f"{name})" in between}
    model = graph_of("float16[1, 16, 8, 8] x", body, "float16[] y", **used)
    assert types(built(model, tmp_path).layers) == {"fp32" if held else "fp16"}
    if "c = " not in between:
        assert HoldFloats()(model).modified
        assert types(built(model, tmp_path).layers) == {"fp32"}
