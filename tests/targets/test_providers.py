"""The tables of execution providers: they fit the standard, the shipped lists and each other."""

import inspect
from pathlib import Path

import numpy as np
import onnx.defs
import onnx_ir as ir
import pytest

from qcompile.errors import RecipeError
from qcompile.planning.demands import shipped_operators
from qcompile.targets.execution_provider import UNITS, Codes, Demand, Unit
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.ort_mobile import ORT_MOBILE
from qcompile.targets.providers import PROVIDERS
from qcompile.targets.target import Output, Role
from tests.planning.tools import graph_of

OPSET = 21
DEMANDS = [
    pytest.param(op, demand, id=f"{provider.name}-{kind}-{op}")
    for provider in PROVIDERS.values()
    for kind, table in (("quantized", provider.quantized), ("plain", provider.plain))
    for op, demand in table.items()
    if op != "RMSNormalization"  # of opset 23
]
NEWER = {"Upsample"}
"""Gone from the standard since opset 10; the provider still knows it."""


def test_providers_by_name():
    assert list(PROVIDERS) == ["cpu", "xnnpack", "nnapi", "coreml", "qnn"]
    assert all(name == provider.name for name, provider in PROVIDERS.items())
    for provider in PROVIDERS.values():
        assert provider.summary
        assert provider.source
        assert provider.boundary
        assert provider.registered.endswith("ExecutionProvider")


def test_onnx_runtime_knows_them():
    onnxruntime = pytest.importorskip("onnxruntime")
    assert {p.registered for p in PROVIDERS.values()} <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize(("op", "demand"), DEMANDS)
def test_demands_fit_the_standard(op: str, demand: Demand):
    schema = onnx.defs.get_schema(op, 9 if op in NEWER else OPSET)
    assert all(index < schema.max_input for index in demand.constants)
    assert set(demand.attributes) <= set(schema.attributes) | {"auto_pad"}
    weights = {codes.weight is not None for codes in demand.codes}
    assert weights <= {UNITS.get(op) is Unit.WEIGHTED}
    assert all(codes.weight == "int8" for codes in demand.codes if codes.per_channel)


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS.keys())
def test_the_planner_plans_what_the_provider_takes_first(provider):
    types = provider.device.int8
    assert (types is None) == (not provider.static)
    if types is None or not provider.quantized:
        return
    best = provider.quantized["Conv"].codes[0]
    assert (types.activation, types.weight, True) == (
        best.activation,
        best.weight,
        best.per_channel,
    )


@pytest.mark.parametrize("name", ["nnapi", "qnn"])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_weights_of_products_are_uint8_with_one_scale(name, op):
    provider = PROVIDERS[name]
    assert provider.quantized[op].codes[0] == Codes("uint8", "uint8")
    assert provider.static[op].per_tensor
    assert not provider.static["Conv"].per_tensor


@pytest.mark.parametrize("name", ["nnapi", "qnn", "cpu", "xnnpack"])
def test_what_is_slow_on_the_cpu_is_nothing_to_others(name):
    target = ORT_MOBILE.on(name)
    cpu = name in {"cpu", "xnnpack"}
    assert bool(target.slow_convolutions) == bool(target.costs) == bool(target.pays_from) == cpu


def test_the_opset_is_one_that_all_know():
    assert ORT_MOBILE.opset <= min(p.max_opset for p in PROVIDERS.values() if p.max_opset)


@pytest.mark.parametrize("name", ["nnapi", "qnn"])
def test_compiling_providers_get_only_codes_that_they_take(name):
    provider = PROVIDERS[name]
    for op, rule in provider.static.items():
        assert rule.output is Output.CODES, "float behind a product makes no node unit"
        if rule.role is not Role.ABSORBED:
            assert op in provider.quantized
            assert op in UNITS


def test_others_leave_the_rest_to_the_int8_kernels_of_the_cpu():
    assert PROVIDERS["cpu"].static is ORT_CPU.static
    assert PROVIDERS["xnnpack"].static is ORT_CPU.static
    assert PROVIDERS["xnnpack"].device.int8.activation == PROVIDERS["cpu"].device.int8.activation


def test_core_ml_takes_no_codes():
    provider = PROVIDERS["coreml"]
    assert provider.device.int8 is None
    assert provider.device.halves == ("fp16",)
    assert provider.device.why
    assert not any("quantize" in op for op in shipped_operators(provider.shipped))


@pytest.mark.parametrize("name", ["nnapi", "coreml"])
def test_demands_are_of_operators_in_the_shipped_list(name):
    provider = PROVIDERS[name]
    listed = shipped_operators(provider.shipped)
    ours = {f"ai.onnx:{op}".lower() for op in (*provider.quantized, *provider.plain)}
    assert len(listed) > 40
    assert ours - set(listed) <= {"ai.onnx:batchnormalization"}, "the shipped list lags there"


@pytest.mark.parametrize("name", ["nnapi", "coreml", "qnn"])
def test_codes_that_are_found_while_running_are_for_the_cpu_alone(name):
    target = ORT_MOBILE
    assert "int8-dynamic" not in target.schemes(name)
    assert {"int8-dynamic", "weight-only"} <= set(target.schemes("cpu")) & set(
        target.schemes("xnnpack")
    )
    with pytest.raises(RecipeError, match=f"--ep {name} has no scheme int8-dynamic") as refused:
        target.check("int8-dynamic", name)
    assert "--dynamic" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "scheme", "there"),
    [("nnapi", "fp8", "--int8"), ("coreml", "fp8", "--fp16"), ("qnn", "bf16", "--int8")],
)
def test_schemes_that_no_phone_has_are_refused_with_what_there_is(name, scheme, there):
    with pytest.raises(RecipeError, match=f"has no scheme {scheme}; it has: .*{there}"):
        ORT_MOBILE.check(scheme, name)


def test_units_are_of_the_standard():
    assert all(onnx.defs.has(op) for op in UNITS)
    assert set(UNITS.values()) == set(Unit)


class OneSample:
    """Calibration data for ONNX Runtime's quantizer."""

    def __init__(self) -> None:
        self.left = [{"x": np.ones((1, 2, 4), np.float32)}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def test_pads_keep_the_grid_where_onnx_runtimes_own_quantizer_lets_them(tmp_path: Path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    weights = {"by": np.array([0, 0, 1] * 2), "nine": np.float32(9)}
    body = """[zero] b = Pad(x, by) [edge] d = Pad <mode = "edge"> (b, by)
        [nine] e = Pad(d, by, nine) [r] y = Relu(e)"""
    ir.save(graph_of("float[1, 2, 4] x", body, **weights), tmp_path / "net.onnx")
    quantization.quantize_static(
        tmp_path / "net.onnx",
        tmp_path / "quantized.onnx",
        OneSample(),
        op_types_to_quantize=["Pad"],
    )
    made = {node.name: node for node in ir.load(tmp_path / "quantized.onnx").graph}
    tied = {}
    for name in ("zero", "edge", "nine"):
        (reader, _), *_ = made[name].outputs[0].uses()
        before = made[name].inputs[0].producer()
        tied[name] = before.inputs[1:] == reader.inputs[1:]
    assert tied == {"zero": True, "edge": True, "nine": False}


def test_qnn_types_are_those_of_onnx_runtimes_own_helper():
    qnn = pytest.importorskip("onnxruntime.quantization.execution_providers.qnn")
    defaults = inspect.signature(qnn.get_qnn_qdq_config).parameters
    provider = PROVIDERS["qnn"]
    assert defaults["activation_type"].default.name == "QUInt8"
    assert provider.device.int8.activation == "uint8"
    assert defaults["weight_type"].default.name == "QUInt8"
    assert not any(codes.per_channel for codes in provider.quantized["MatMul"].codes)
    assert "QNN does not support per-channel MatMul" in inspect.getsource(
        inspect.getmodule(qnn.get_qnn_qdq_config)
    )
