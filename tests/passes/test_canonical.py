"""The canonical form of real models: equal outputs, a fixed point, and what planners rely on."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from qcompile.graph.dump import dump
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.graph.walk import is_constant, is_op
from qcompile.passes import CANONICAL
from qcompile.source.onnx_file import load_model
from tests.assets import asset, needs_assets
from tests.passes.tools import Arrays, relative_l2, session

MODELS = {
    "dscnn_kws": {"Conv": 9, "Gemm": 1, "AveragePool": 1},
    "espcn_x3": {"Conv": 4},
    "espnetv2_s2_voc": {"Conv": 123, "PRelu": 64, "BatchNormalization": 20},
    "kwt1_kws": {"MatMul": 97, "Gelu": 12, "LayerNormalization": 24, "Tanh": 0},
    "magika_v3_3": {"MatMul": 2, "Conv": 1, "Gelu": 2, "Tanh": 0},
    "mobilenetv1_025_vww": {"Conv": 27, "Gemm": 1, "Pad": 0},
    "resnet20_cifar10": {"Conv": 19, "Gemm": 1, "Add": 9},
    "silero_vad_16k": {"Conv": 6, "LSTM": 1, "If": 1},
    "squeezenet10_dc_imagenet": {"Conv": 26, "MaxPool": 3},
    "stories260k": {"MatMul": 46, "Softmax": 5},
    "textlm5m": {"MatMul": 55, "Softmax": 6},
    "yolox_nano_coco": {"Conv": 113, "Sigmoid": 110},
}
DIMS = {"N": 2, "T": 12, "batch": 2, "sequence": 12}


def feeds_of(model: ir.Model, name: str) -> Arrays:
    rng = np.random.default_rng(0)
    dims = {**DIMS, "sequence": 576} if name == "silero_vad_16k" else DIMS
    feeds: Arrays = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [d if isinstance(d, int) else dims.get(str(d), 2) for d in value.shape]
        if value.dtype.is_floating_point():
            feeds[str(value.name)] = rng.standard_normal(shape).astype(value.dtype.numpy())
        else:
            feeds[str(value.name)] = rng.integers(1, 255, shape).astype(value.dtype.numpy())
    if "sr" in feeds:
        feeds["sr"] = np.array(16000, np.int64)
    return feeds


@needs_assets
@pytest.mark.parametrize("name", MODELS)
def test_real_models(name):
    path = asset("models", f"{name}.onnx")
    model = load_model(path)
    interface = [
        (v.name, str(v.type), str(v.shape)) for v in [*model.graph.inputs, *model.graph.outputs]
    ]
    feeds = feeds_of(model, name)
    run_passes(model, list(CANONICAL), paranoid=True)
    verify(model)
    text = dump(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert interface == [
        (v.name, str(v.type), str(v.shape)) for v in [*model.graph.inputs, *model.graph.outputs]
    ]
    before, after = session(str(path)).run(None, feeds), session(proto).run(None, feeds)
    assert relative_l2(before, after) <= 1e-5
    check_form(model, MODELS[name])
    run_passes(model, list(CANONICAL))
    assert dump(model) == text, "the canonical form is a fixed point"


def check_form(model: ir.Model, counts: dict[str, int]) -> None:
    operators = Counter(node.op_type for node in model.graph)
    assert {op: operators[op] for op in counts} == counts
    assert not {"Identity", "Constant", "Dropout"} & set(operators)
    for node in model.graph:
        if is_op(node, "Conv", "ConvTranspose", "Gemm"):
            assert all(is_constant(v) for v in node.inputs[1:] if v is not None)
        if is_op(node, "BatchNormalization"):
            source = node.inputs[0].producer() if node.inputs[0] else None
            assert not is_op(source, "Conv", "ConvTranspose", "Gemm")
        assert all(v.dtype is not None for v in node.outputs if v.name)


def test_batch_norm_behind_a_pad_and_a_transposed_weight_meet():
    """Passes must open the way for one another: Transpose folds, so the norm behind Gemm folds."""
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (float[N, 2] x) => (float[N, 3] y)
    <float[3, 2] w = {1,2,3,4,5,6}, float[3] s = {1,2,3}, float[3] b = {0,1,0},
     float[3] m = {1,0,1}, float[3] v = {1,4,9}> {
      t = Transpose<perm = [1, 0]>(w)
      i = Identity(t)
      g1 = Gemm(x, i)
      n = BatchNormalization(g1, s, b, m, v)
      y = Identity(n)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    run_passes(model, list(CANONICAL), paranoid=True)
    assert [node.op_type for node in model.graph] == ["Gemm"]
    assert len(model.graph.initializers) == 2


@pytest.mark.slow
def test_a_model_larger_than_two_gib_passes_in_little_memory(tmp_path):
    """Two sparse weights of 1 GiB, one of them transposed, and a small one: none may be held."""
    size, small = 1 << 14, 1 << 8
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Transpose", ["w1"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    columns = (size, size, small)
    weights = [
        TensorProto(name=f"w{i}", data_type=1, dims=[size, n]) for i, n in enumerate(columns)
    ]
    for i, weight in enumerate(weights):
        weight.data_location = TensorProto.EXTERNAL
        entries = {"location": "weights.bin", "offset": i << 30, "length": 4 * size * columns[i]}
        for key, value in entries.items():
            weight.external_data.add(key=key, value=str(value))
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(2 * (1 << 30) + 4 * size * small)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n])
        for name, n in (("x", size), ("y", small))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    operators, megabytes = done.stdout.split()
    assert operators == "MatMul,MatMul,MatMul"
    assert int(megabytes) < 700


# Private memory only: pages of the mapped file belong to the page cache and can be dropped.
SCRIPT = """
import sys
from pathlib import Path
from qcompile.graph.digest import model_digest
from qcompile.graph.runner import run_passes
from qcompile.passes import CANONICAL
from qcompile.source.onnx_file import load_model

model = load_model(Path(sys.argv[1]))
model_digest(model)
run_passes(model, list(CANONICAL))
status = Path("/proc/self/status").read_text()
anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
print(",".join(n.op_type for n in model.graph), int(anonymous.split()[1]) // 1024)
"""
