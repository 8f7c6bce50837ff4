"""What keeps int4 weights packed behind attention, built by TensorRT for RTX."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.passes.hold_codes import HoldCodes
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from qcompile.runtime.obtained import obtained
from qcompile.runtime.rtx import RtxRequest
from qcompile.runtime.rtx_library import is_installed
from tests.planning.tools import graph_of
from tests.runtime import rtx_forks

pytestmark = pytest.mark.skipif(is_installed() is None, reason="TensorRT for RTX is not installed")

NUMPY = {"float16": np.float16, "float": np.float32, "bfloat16": ml_dtypes.bfloat16}
HEADS = "p = MatMul(q, k)\ns = Softmax(p)\na = MatMul(s, v)\n"
MERGED = "t = Transpose<perm = [0, 2, 1, 3]> (a)\nr = Reshape(t, shape)\n"
PRODUCT = "w = DequantizeLinear<axis = 0, block_size = 32> (codes, scale)\n[o] y = MatMul(r, w)"
PORTS = "{0}[1, 4, T, 16] q, {0}[1, 4, 16, T] k, {0}[1, 4, T, 16] v"
AXES = {"q": lambda t: (1, 4, t, 16), "k": lambda t: (1, 4, 16, t), "v": lambda t: (1, 4, t, 16)}


def net(between="", dtype="float16"):
    """Return attention whose heads are multiplied with int4 weights, in two groups a row."""
    codes = np.random.default_rng(0).integers(-8, 8, (64, 64)).astype(ml_dtypes.int4)
    scale = np.full((2, 64), 0.05, NUMPY[dtype])
    constants = {"codes": codes, "scale": scale, "shape": np.array([1, -1, 64])}
    if "one" in between:
        constants["one"] = np.ones((), NUMPY[dtype])
    product = PRODUCT.replace("MatMul(r", "MatMul(m") if between else PRODUCT
    body = f"{HEADS}{MERGED}{between}\n{product}"
    model = graph_of(PORTS.format(dtype), body, f"{dtype}[] y", **constants)
    for step in (NameValues(), InferShapes()):
        step(model)
    return model


def precision(model, folder, sm=86):
    ir.save(model, folder / "model.onnx")
    profiles = {name: tuple(map(shape, (8, 32, 64))) for name, shape in AXES.items()}
    request = RtxRequest(folder / "model.onnx", folder / "engine", sms=(sm,), profiles=profiles)
    return obtained(model, rtx_forks.built(request).layers)["o"].precision


@pytest.mark.parametrize(
    ("dtype", "sm", "without"), [("float16", 86, "fp16"), ("bfloat16", 89, "bf16")]
)
def test_products_behind_attention_stay_on_codes(dtype, sm, without, tmp_path):
    model = net(dtype=dtype)
    assert precision(model, tmp_path, sm) == without, "else the pass has nothing to do"
    assert HoldCodes()(model).modified
    assert precision(model, tmp_path, sm) == "int4 weights"


@pytest.mark.parametrize("between", ["m = Identity(r)", "m = Mul(r, one)"])
def test_what_does_not_hold_them(between, tmp_path):
    assert precision(net(between), tmp_path) == "fp16"
