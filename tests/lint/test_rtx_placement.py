"""What the real builder of TensorRT for RTX makes of models that break a rule of lost precision.

The wanted precision is read from the graph, the obtained one from the builder's list of layers.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.lint.rule import Setting
from qcompile.lint.tensorrt import check_model
from qcompile.progress import Silent
from qcompile.runtime.layer_dump import EngineLayer
from qcompile.runtime.obtained import obtained
from qcompile.runtime.rtx import RtxRequest
from qcompile.runtime.rtx_library import is_installed
from tests.assets import asset, needs_assets
from tests.lint import test_placement, test_weights
from tests.lint.cases import Case
from tests.lint.models import fp8, int4
from tests.lint.test_attention import E4M3, attention
from tests.lint.test_neighbours import between
from tests.lint.test_placement import blocks, deconvolution
from tests.runtime.rtx_forks import built

pytestmark = pytest.mark.skipif(
    is_installed() is None,
    reason="TensorRT for RTX is absent: pip install 'qcompile[tensorrt-rtx]'",
)

FLOATS = {"fp32", "fp16", "bf16"}
TABLES = (test_placement, test_weights)


def layers(model: ir.Model, folder: Path, *sms: int) -> tuple[EngineLayer, ...]:
    path = folder / "model.onnx"
    ir.save(model, path)
    profiles = {
        value.name: ((1, *value.shape[1:]),) * 3
        for value in model.graph.inputs
        if not value.shape.is_static()
    }
    request = RtxRequest(path, folder / "model.engine", sms=sms or (89,), profiles=profiles)
    return built(request).layers


def precisions(model: ir.Model, folder: Path) -> dict[str, str]:
    """Return what each Conv, MatMul and Gemm that is worth quantizing computes in."""
    found = obtained(model, layers(model, folder), ("Conv", "MatMul", "Gemm"))
    return {name: one.precision for name, one in found.items()}


def cases(which: str, rule: str) -> list[Case]:
    return [case for table in TABLES for case in getattr(table, which).get(rule, ())]


def parameters(which: str) -> list[object]:
    """Return the cases of rules of lost precision; the first of each rule is quick enough."""
    return [
        pytest.param(case, id=f"{rule}-{case.label}", marks=pytest.mark.slow if index else ())
        for rule in ("L18", "L19", "L20", "L21", "L26", "L33")
        for index, case in enumerate(cases(which, rule))
        if not of_tensorrt_alone(rule, case)
    ]


def of_tensorrt_alone(rule: str, case: Case) -> bool:
    """Say whether a case is about TensorRT: RTX has other blocks, and no int8 ConvTranspose."""
    blocks_of_four_bits = rule == "L33" and case.label in {"four_bits-32", "four_bits-256"}
    return blocks_of_four_bits or case.label.startswith("deconvolution")


@pytest.mark.parametrize("case", parameters("BREAKS"))
def test_a_broken_model_computes_in_float(case: Case, tmp_path: Path) -> None:
    assert FLOATS & set(precisions(case.make(), tmp_path).values())


@pytest.mark.parametrize("case", parameters("KEEPS"))
def test_a_kept_one_does_not(case: Case, tmp_path: Path) -> None:
    got = precisions(case.make(), tmp_path)
    assert got
    assert not FLOATS & set(got.values()), got


@pytest.mark.parametrize("dtype", [np.int8, int4, fp8])
def test_blocks_are_multiplied_as_channels(dtype: type, tmp_path: Path) -> None:
    """L36: codes are summed over all blocks before any scale is applied."""
    model = blocks(dtype, fp8 if dtype is fp8 else np.int8)
    made = layers(model, tmp_path)
    [product] = [layer for layer in made if layer.kind == "gemm"]
    assert product.inputs[0].dtype == ("fp8" if dtype is fp8 else "int8")
    assert not any(tensor.dtype == "fp16" for tensor in product.constants)
    assert made[-1].kind == "kgen"
    assert "Mul" in made[-1].name


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (attention("", keys=64), True),
        (attention(zero=E4M3, keys=64), True),
        (attention(keys=64), False),
        (attention("qk", keys=64), False),
        (attention("qkv", E4M3, keys=64), False),
        (attention(zero=E4M3, keys=64, head=512), False),
    ],
    ids=["float", "fp8", "int8", "int8-scores", "fp8-float-softmax", "fp8-large-heads"],
)
def test_attention(model: ir.Model, fused: bool, tmp_path: Path) -> None:
    """L32."""
    made = layers(model, tmp_path)
    assert any("mha" in layer.name for layer in made) == fused


def test_pooling_by_average_is_float(tmp_path: Path) -> None:
    """L40."""
    for kind, wanted in (("AveragePool", {"fp32"}), ("MaxPool", {"int8"})):
        model = between(kind)
        got = obtained(model, layers(model, tmp_path), (kind,))
        assert {one.precision for one in got.values()} == wanted


def test_deconvolution_is_float(tmp_path: Path) -> None:
    """L41."""
    model = deconvolution()
    [got] = obtained(model, layers(model, tmp_path), ("ConvTranspose",)).values()
    assert got.precision == "fp32"


def scale_in_a_list(model: ir.Model, dequantize: ir.Node) -> None:
    """Give a DQ a scale of shape [1]."""
    old = dequantize.inputs[1]
    tensor = ir.tensor(old.const_value.numpy().reshape(1), name=f"{dequantize.name}.scale")
    value = ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=old.type)
    model.graph.initializers.add(value)
    dequantize.replace_input_with(1, value)


@pytest.mark.slow
@needs_assets
def test_the_lint_foretells_each_layer_of_a_real_model(tmp_path: Path) -> None:
    """ResNet-20 by onnxruntime's quantizer; half of its activations get a scale of shape [1]."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    rng = np.random.default_rng(0)
    samples = [{"input": rng.random((1, 3, 32, 32), np.float32)}]

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return samples.pop() if samples else None

    path = tmp_path / "quantized.onnx"
    options = {"ActivationSymmetric": True, "QuantizeBias": False}
    source = asset("models/resnet20_cifar10.onnx")
    quantization.quantize_static(source, path, Reader(), per_channel=True, extra_options=options)
    model = ir.load(path)
    activations = [
        node
        for node in model.graph
        if node.op_type == "DequantizeLinear" and not node.inputs[0].is_initializer()
    ]
    for dequantize in rng.permutation(np.array(activations, object))[: len(activations) // 2]:
        scale_in_a_list(model, dequantize)
    foretold = {
        reader.name
        for finding in check_model(model, Setting("tensorrt-rtx"), Silent())
        if finding.rule == "L19"
        for reader in model.graph.node(finding.where).outputs[0].consumers()
        if reader.op_type == "Conv"
    }
    got = precisions(model, tmp_path)
    assert 5 < len(foretold) < 15
    assert {name for name, precision in got.items() if precision in FLOATS} == foretold
