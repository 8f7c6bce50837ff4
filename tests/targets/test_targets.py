"""The target tables as data: complete, and without contradictions. test_insert_qdq runs them."""

import onnx.defs
import pytest

from qcompile.errors import RecipeError
from qcompile.plan import GROUP_SIZES
from qcompile.recipe import Recipe
from qcompile.runtime.host import host_cpu
from qcompile.targets import TARGETS, target_named
from qcompile.targets.onnx_std import ONNX_STD
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.ort_cuda import ORT_CUDA
from qcompile.targets.target import ANY, OPTIONS, OperatorRule, Output, Role, Target
from qcompile.targets.tensorrt import TENSORRT, TENSORRT_RTX

ALL = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
RULES = [*ORT_CPU.static.values(), *ORT_CPU.dynamic.values()]


def test_targets_by_name():
    assert target_named("ort-cpu") is ORT_CPU
    assert target_named("onnx") is ONNX_STD
    assert list(TARGETS) == [target.name for target in TARGETS.values()]
    with pytest.raises(RecipeError, match=r"--target toaster: no such target; there are: ort-cpu"):
        target_named("toaster")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.op)
def test_rules_fit_the_operators_of_the_standard(rule: OperatorRule):
    schema = onnx.defs.get_schema(rule.op, ORT_CPU.opset)
    inputs = schema.max_input
    indices = [*rule.activations, *(i for i in (rule.weight, rule.bias) if i is not None)]
    assert all(index < inputs for index in indices)
    assert (rule.weight is not None) == (rule.role is Role.WEIGHTED)
    assert (rule.role in (Role.WEIGHTED, Role.FOLLOWER)) == bool(rule.kernels)


@ALL
def test_tables_are_keyed_by_operator_and_do_not_contradict_each_other(target: Target):
    for table in (target.static, target.dynamic):
        assert all(op == rule.op for op, rule in table.items())
        assert all(onnx.defs.get_schema(op, target.opset) for op in table)
    assert not set(target.costs) & set(target.static)
    assert all(reason.strip() for reason in target.costs.values())
    assert set(target.rules("int8-dynamic")) <= set(target.rules("int8"))


def test_every_instruction_set_has_types():
    choices = Recipe.model_fields["cpu"].annotation
    assert set(ORT_CPU.devices) == {"avx2", "avx512", "vnni", "arm"}
    assert all(cpu in str(choices) for cpu in ORT_CPU.devices)
    assert host_cpu() in ORT_CPU.devices
    for cpu in ORT_CPU.devices:
        types = ORT_CPU.types("int8", cpu)
        assert types.why
        assert types.reduce_range == (cpu in ("avx2", "avx512")), "vpmaddubsw saturates there"
        assert types.activation == ("int8" if cpu == "arm" else "uint8")


# -- TensorRT --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX], ids=lambda target: target.name)
def test_tensorrt_takes_symmetric_codes_and_float_biases(target: Target):
    for device in target.devices:
        for scheme, code in (("int8", "int8"), ("fp8", "float8e4m3fn")):
            if scheme in target.schemes(device):
                types = target.types(scheme, device)
                assert (types.activation, types.weight) == (code, code)
                assert types.symmetric
                assert not types.reduce_range
    for rule in target.static.values():
        assert rule.bias is None, "a DequantizeLinear of int32 does not parse"
        assert rule.role is not Role.WEIGHTED or rule.output is Output.EITHER
    few = target.few_bits()
    assert few.symmetric_only
    assert few.whole_groups
    assert target.high_precision == "fp16"


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX], ids=lambda target: target.name)
def test_compute_capability_decides(target: Target):
    for device in target.devices:
        if device == ANY:
            continue
        found = set(target.schemes(device))
        assert ("fp8" in found) == (int(device) >= 89)
        assert ("bf16" in found) == (int(device) >= 80)
        assert ("weight-only" in found) == (int(device) >= 80)
        assert "fp16" in found
        assert found == set(target.schemes()) or target.devices[device].why


def test_rtx_builds_for_what_it_knows():
    library = pytest.importorskip("qcompile.runtime.rtx_library")
    if library.is_installed() is None:
        pytest.skip("TensorRT for RTX is not installed")
    assert {int(name) for name in TENSORRT_RTX.devices} <= set(library.known_sms())


def test_several_devices_have_what_all_of_them_have():
    assert "fp8" in TENSORRT.schemes("89,120")
    assert "fp8" not in TENSORRT.schemes("86,89")
    assert "weight-only" not in TENSORRT.schemes("75,89")


# -- what a target has not -------------------------------------------------------------------


def has(schemes: str) -> str:
    return ", ".join(OPTIONS[scheme] for scheme in schemes.split())


@pytest.mark.parametrize(
    ("target", "scheme", "device", "message"),
    [
        (ONNX_STD, "int8", "", f"--target onnx has no scheme int8; it has: {has('weight-only')}"),
        (ONNX_STD, "int8-dynamic", "", "--target onnx has no scheme int8-dynamic; it has: --int4"),
        (ORT_CPU, "fp16", "vnni", "--target ort-cpu has no scheme fp16; it has: --int8, --dynamic"),
        (
            TENSORRT,
            "fp8",
            "86",
            f"8.9 or later); it has: {has('int8 weight-only fp16 bf16')}",
        ),
        (TENSORRT, "fp8", "86,89", "--target tensorrt --sm 86,89 has no scheme fp8"),
        (TENSORRT, "fp8", "100,86", "--sm 100,86 has no scheme fp8 (FP8 needs compute capability"),
        (TENSORRT, "bf16", ANY, "--target tensorrt without --sm has no scheme bf16 ("),
        (TENSORRT, "int8", "88", "--sm 88: tensorrt has no such device; there are: 75, 80, 86, 87"),
        (TENSORRT, "int8", "87,88", "--sm 88: tensorrt has no such device"),
        (
            TENSORRT_RTX,
            "int8",
            "75",
            "--target tensorrt-rtx --sm 75 has no scheme int8 (int8 convolutions compute in float",
        ),
        (ORT_CUDA, "int8", "cuda", "--ep tensorrt has); it has: --int4 or --weight-bits N, --fp16"),
        (ORT_CUDA, "int8", "rocm", "--ep rocm: ort-cuda has no such device; there are: cuda"),
    ],
)
def test_a_scheme_or_device_that_a_target_lacks(target, scheme, device, message):
    with pytest.raises(RecipeError) as found:
        target.check(scheme, device)
    assert message in str(found.value)


@ALL
def test_check_agrees_with_the_schemes(target: Target):
    for device in target.devices or [""]:
        for scheme in OPTIONS:
            if scheme in target.schemes(device):
                target.check(scheme, device)
            else:
                with pytest.raises(RecipeError, match="it has: --"):
                    target.check(scheme, device)
    some = {s for device in target.devices or [""] for s in target.schemes(device)}
    assert some == set(target.schemes())


def test_a_device_may_have_rules_of_its_own():
    mobile = TARGETS["ort-mobile"]
    assert TENSORRT.on("89") is TENSORRT
    for device, entry in mobile.devices.items():
        assert mobile.on(device).static == (mobile.static if entry.static is None else entry.static)


# -- weights in few bits ---------------------------------------------------------------------

WIDTHS = {
    "ort-cpu": {2, 3, 4, 8},
    "ort-mobile": {2, 3, 4, 8},
    "ort-cuda": {3, 4, 8},
    "onnx": {2, 3, 4, 8},
    "tensorrt": {3, 4},
    "tensorrt-rtx": {3, 4},
}


@ALL
def test_tables_of_weights_in_few_bits(target: Target):
    few = target.few_bits()
    assert set(few.widths) == WIDTHS[target.name]
    for bits, width in few.widths.items():
        assert bits <= width.stored
        assert set(width.group_sizes) <= set(GROUP_SIZES)
        assert set(width.levels) <= set(few.levels)
        assert width.why
    assert {op: rule.op for op, rule in few.operators.items()} == {op: op for op in few.operators}
    for rule in few.operators.values():
        assert rule.role is Role.STORED
        assert rule.weight is not None
        assert onnx.defs.get_schema(rule.op, target.opset).max_input > rule.weight
    assert not set(few.costs) & set(few.operators)
    assert target.rules("weight-only") is few.operators


@ALL
def test_levels_are_there_where_an_operator_has_them(target: Target):
    few = target.few_bits()
    nbits = few.form == "nbits"
    assert all(bool(width.levels) == nbits for width in few.widths.values())


def test_levels_of_the_cpu():
    few = ORT_CPU.few_bits()
    assert {bits: width.levels for bits, width in few.widths.items()} == {
        2: (4,),
        3: (4, 0),
        4: (4, 0),
        8: (4,),
    }
