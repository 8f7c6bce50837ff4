"""What a recipe and a target together decide: devices, the float remainder, the types of codes."""

import pytest

from qcompile.devices import check_algorithms, device_of, remainder_of, types_of
from qcompile.errors import RecipeError, RuntimeMissingError
from qcompile.numerics import adaround
from qcompile.progress import Silent, StageLog
from qcompile.recipe import Recipe
from qcompile.runtime.host import host_cpu
from qcompile.targets import TARGETS, target_named


def recipe(**options) -> Recipe:
    return Recipe.model_validate(options)


def device(**options) -> str:
    asked = recipe(**options)
    return device_of(asked, target_named(asked.target), Silent())


def remainder(**options) -> str:
    asked = recipe(**options)
    target = target_named(asked.target)
    return remainder_of(asked, target, device_of(asked, target, Silent()))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, host_cpu()),
        ({"cpu": "avx2"}, "avx2"),
        ({"target": "tensorrt"}, "any"),
        ({"target": "tensorrt", "sm": (87,)}, "87"),
        ({"target": "tensorrt", "sm": (89, 87, 89)}, "87,89"),
        ({"target": "tensorrt-rtx", "scheme": "int8"}, "80,86,89,120,121"),
        ({"target": "tensorrt-rtx", "scheme": "fp8"}, "89,120,121"),
        ({"target": "tensorrt-rtx", "scheme": "fp16"}, "75,80,86,89,120,121"),
        ({"target": "tensorrt-rtx", "scheme": "weight-only"}, "80,86,89,120,121"),
        ({"target": "ort-cuda", "scheme": "fp16"}, "cuda"),
        ({"target": "ort-cuda", "ep": "tensorrt"}, "tensorrt"),
        ({"target": "ort-mobile"}, next(iter(TARGETS["ort-mobile"].devices))),
    ],
)
def test_devices(options, found):
    assert device(**options) == found


def test_devices_that_were_not_named_are_told():
    log = StageLog(Silent())
    device_of(recipe(target="tensorrt-rtx", scheme="fp8"), target_named("tensorrt-rtx"), log)
    assert log.notices == ["--sm was not given: built for 89, 120, 121"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sm": (86,)}, "--sm 86: --target ort-cpu is chosen by --cpu"),
        ({"ep": "coreml"}, "--ep coreml: --target ort-cpu is chosen by --cpu"),
        ({"target": "tensorrt", "cpu": "arm"}, "--cpu arm: --target tensorrt is chosen by --sm"),
        ({"target": "ort-mobile", "sm": (87,)}, "--sm 87: --target ort-mobile is chosen by --ep"),
        (
            {"target": "tensorrt", "sm": (88,)},
            "--sm 88: tensorrt has no such device; there are: 75",
        ),
        ({"target": "tensorrt", "sm": (86, 89), "scheme": "fp8"}, "has no scheme fp8 (FP8 needs"),
        ({"target": "tensorrt", "scheme": "int8-dynamic"}, "has no scheme int8-dynamic; it has: "),
        ({"target": "onnx", "scheme": "int8"}, "it has: --int4 or --weight-bits N"),
    ],
)
def test_devices_that_are_refused(options, message):
    with pytest.raises(RecipeError) as found:
        device(**options)
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "fp32"),
        ({"scheme": "int8-dynamic"}, "fp32"),
        ({"scheme": "int8-dynamic", "high_precision": "fp32"}, "fp32"),
        ({"target": "tensorrt"}, "fp16"),
        ({"target": "tensorrt", "high_precision": "fp32"}, "fp32"),
        ({"target": "tensorrt", "high_precision": "bf16", "sm": (87,)}, "bf16"),
        ({"target": "tensorrt", "scheme": "fp16"}, "fp16"),
        ({"target": "tensorrt", "scheme": "bf16", "sm": (87,)}, "bf16"),
        ({"target": "tensorrt", "scheme": "bf16", "sm": (87,), "high_precision": "bf16"}, "bf16"),
        ({"target": "tensorrt", "scheme": "weight-only", "half_ports": True}, "fp16"),
        ({"target": "ort-mobile", "ep": "coreml", "scheme": "fp16"}, "fp16"),
    ],
)
def test_what_computes_in_float_becomes(options, found):
    assert remainder(**options) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scheme": "int8-dynamic", "high_precision": "fp16"},
            "--high-precision: --dynamic leaves the rest in fp32",
        ),
        (
            {"target": "tensorrt", "scheme": "fp16", "high_precision": "fp32"},
            "--high-precision fp32: --fp16 has decided that",
        ),
        (
            {"target": "tensorrt", "high_precision": "bf16"},
            "--target tensorrt without --sm has no scheme bf16",
        ),
        (
            {"target": "tensorrt", "high_precision": "bf16", "sm": (75,)},
            "--target tensorrt --sm 75 has no scheme bf16",
        ),
        (
            {"target": "tensorrt", "scheme": "weight-only", "high_precision": "bf16", "sm": (87,)},
            "--high-precision bf16: scales of weights in few bits are fp32 or fp16",
        ),
        (
            {"high_precision": "fp16"},
            "--high-precision fp16: --target ort-cpu has no scheme fp16",
        ),
        ({"half_ports": True}, "--half-ports: what computes in float is fp32 here"),
        ({"target": "tensorrt", "high_precision": "fp32", "half_ports": True}, "--half-ports: "),
    ],
)
def test_remainders_that_are_refused(options, message):
    with pytest.raises(RecipeError) as found:
        remainder(**options)
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("name", "scheme", "half", "scale"),
    [
        ("tensorrt", "int8", "fp16", "float16"),
        ("tensorrt", "int8", "bf16", "bfloat16"),
        ("tensorrt", "fp8", "fp32", "float32"),
        ("ort-cpu", "int8", "fp32", "float32"),
    ],
)
def test_scales_have_the_type_of_the_float_beside_them(name, scheme, half, scale):
    target = target_named(name)
    device = "89" if name == "tensorrt" else "vnni"
    types = types_of(recipe(target=name, scheme=scheme), target, device, half)
    assert types is not None
    assert types.scale == scale
    assert types.symmetric == (name == "tensorrt")


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "weight-only"])
def test_schemes_without_codes_of_activations_have_no_types(scheme):
    asked = recipe(target="tensorrt", scheme=scheme)
    assert types_of(asked, target_named("tensorrt"), "89", "fp16") is None


@pytest.mark.parametrize(
    ("scheme", "accuracy", "message"),
    [
        ("fp16", {"algorithms": "smoothquant"}, "--algorithm smoothquant: it is for --int8, --fp8"),
        ("int8-dynamic", {"algorithms": "equalize"}, "--dynamic takes smoothquant, llm-int8, rtn"),
        ("fp8", {"algorithms": "gptq"}, "codes of --fp8 are rounded to the nearest"),
        (
            "int8",
            {"algorithms": "llm-int8", "run_time_outliers": True},
            "accuracy.run_time_outliers: it is for --dynamic",
        ),
        (
            "int8",
            {"algorithms": "llm-int8", "threshold": 5, "outlier_share": 0.1},
            "accuracy.outlier_share stands in place of accuracy.threshold",
        ),
    ],
)
def test_algorithms_that_are_refused(scheme, accuracy, message):
    with pytest.raises(RecipeError) as found:
        check_algorithms(recipe(scheme=scheme, accuracy=accuracy), Silent())
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("asked", "idle"),
    [
        ({"accuracy": {"strength": 0.5, "threshold": 5}}, []),
        ({"accuracy": {"algorithms": "gptq", "strength": 0.5}}, ["strength"]),
        ({"accuracy": {"steps": 5, "correction": "analytic"}}, ["steps"]),
        ({"scheme": "int8-dynamic", "accuracy": {"correction": "analytic"}}, ["correction"]),
        ({"scheme": "weight-only", "accuracy": {"strength": 0.5}}, ["strength"]),
    ],
)
def test_options_of_what_is_not_done_are_told(asked, idle):
    heard = Silent()
    check_algorithms(recipe(**asked), heard)
    assert [n.split()[0] for n in heard.notices] == [f"accuracy.{name}" for name in idle]


def test_torch_is_missed_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(adaround.importlib.util, "find_spec", lambda name: None)
    for name in ("adaround", "brecq"):
        with pytest.raises(RuntimeMissingError, match="needs torch"):
            check_algorithms(recipe(accuracy={"algorithms": name}), Silent())
