"""From an export of a transformer to the kernels that ONNX Runtime takes for the lowered graph."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import qcompile
from qcompile.graph.runner import run_passes
from qcompile.passes import CANONICAL, LOWERING
from qcompile.recipe import Calibration
from qcompile.runtime.ort import Session, kernels
from qcompile.runtime.timing import time_pair
from tests.benchmarks.models import Builder, bert_base, token_ids
from tests.passes.tools import relative_l2

HIDDEN, HEADS, WORDS = 32, 4, 50
SKIP = "com.microsoft::SkipLayerNormalization"


def dynamic_encoder(layers: int = 2) -> onnx.ModelProto:
    """Like torch's export with dynamic batch and sequence: shapes are computed at run time."""
    b = Builder(np.random.default_rng(0))

    def size(x: str, axis: int) -> str:
        taken = b.add("Gather", b.add("Shape", x), b.weight(np.array(axis)))
        return b.add("Unsqueeze", taken, b.weight(np.array([0])))

    def view(x: str, like: str, *rest: int) -> str:
        parts = [size(like, 0), size(like, 1), *(b.weight(np.array([d])) for d in rest)]
        return b.add("Reshape", x, b.add("Concat", *parts, axis=0))

    def norm(x: str) -> str:
        scale = b.weight(b.rng.uniform(0.8, 1.2, HIDDEN))
        return b.add("LayerNormalization", x, scale, b.weight(np.zeros(HIDDEN)), axis=-1)

    x = norm(b.add("Gather", b.normal(WORDS, HIDDEN, fan_in=1), "ids"))
    for _ in range(layers):
        q, k, v = (
            b.add(
                "Transpose",
                view(b.linear(x, HIDDEN, HIDDEN), x, HEADS, HIDDEN // HEADS),
                perm=perm,
            )
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        mixed = b.add("MatMul", b.add("Softmax", b.add("MatMul", q, k), axis=-1), v)
        joined = view(b.add("Transpose", mixed, perm=[0, 2, 1, 3]), x, HIDDEN)
        x = norm(b.add("Add", b.linear(joined, HIDDEN, HIDDEN), x))
        y = b.add("Relu", b.linear(x, HIDDEN, 2 * HIDDEN))
        x = norm(b.add("Add", b.linear(y, 2 * HIDDEN, HIDDEN), x))
    port = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    return b.model("encoder", port, x)


def lowered(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    run_passes(model, [*CANONICAL, *LOWERING["ort-cpu"]], paranoid=True)
    return model


def test_dynamic_sizes_stay_dynamic_and_the_stream_is_flat() -> None:
    proto = dynamic_encoder()
    model = lowered(proto)
    assert not any(
        node.op_type == "MatMul" and node.inputs[1].is_initializer() for node in model.graph
    )
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert [len(node.inputs[0].shape) for node in norms] == [2] * 5
    assert SKIP in kernels(ir.from_proto(proto))
    assert SKIP not in kernels(model)
    before, after = Session(ir.from_proto(proto)), Session(model)
    rng = np.random.default_rng(0)
    for batch, length in ((1, 7), (3, 1), (2, 16)):
        feeds = {"ids": rng.integers(0, WORDS, (batch, length))}
        assert relative_l2([*before.run(feeds).values()], [*after.run(feeds).values()]) <= 1e-5


@pytest.mark.parametrize(
    ("scheme", "kernel"),
    [("int8", "com.microsoft::QGemm"), ("int8-dynamic", "com.microsoft::DynamicQuantizeMatMul")],
)
def test_every_linear_layer_gets_its_kernel(
    scheme: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qcompile.proof.time_pair", partial(time_pair, seconds=0.05))
    path, calib = tmp_path / "bert.onnx", tmp_path / "calib.npz"
    onnx.save(bert_base(layers=2, hidden=64, heads=4, words=WORDS), path)
    feeds = token_ids(20, words=WORDS)
    np.savez(calib, ids=np.concatenate([feed["ids"] for feed in feeds]))
    recipe = qcompile.Recipe(
        scheme=scheme,
        calibration=Calibration(method="minmax"),
        keep_accuracy=False,
        gates=qcompile.Gates(allow_slower=True),
    )
    output = tmp_path / "out"
    qcompile.build(path, calib=calib, output=output, recipe=recipe)
    found = kernels(output / "model.onnx")
    assert found[kernel] == 12
    assert found["ai.onnx::Gelu"] == 2
    assert found["ai.onnx::LayerNormalization"] == 5
    assert not {SKIP, "ai.onnx::DequantizeLinear", "ai.onnx::Gemm"} & found.keys()
    # One Q serves query, key and value; the others stand before the other three layers.
    assert found["ai.onnx::QuantizeLinear"] == (8 if scheme == "int8" else 0)
    # The places and the two residuals of each layer: no bias is left.
    assert found["ai.onnx::Add"] == 5
