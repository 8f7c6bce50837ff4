"""Models of another tool, onnxruntime's quantizer: the lint and TensorRT for RTX agree on them."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from qcompile.lint.rule import Setting, Severity
from qcompile.lint.typed import infer
from tests.cli.nets import MODEL
from tests.lint.cases import Case
from tests.lint.models import found
from tests.lint.rtx import asked, needs_rtx

PROFILE = {"image": ((1, 1, 8, 8), (4, 1, 8, 8), (8, 1, 8, 8))}
SETTING = Setting("tensorrt-rtx", sms=(89,), profiles=PROFILE)

SIGNED = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
FLOAT_BIAS = SYMMETRIC | {"QuantizeBias": False}
PLACED = FLOAT_BIAS | {
    "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "Add"],
    "DedicatedQDQPair": True,
}
UNSIGNED = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}

MADE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "default": ({}, {"L03", "L09", "L46"}),
    "unsigned": (UNSIGNED, {"L03", "L09", "L46"}),
    "signed": (SIGNED | {"extra_options": SYMMETRIC}, {"L09", "L46"}),
    "float bias": (SIGNED | {"extra_options": FLOAT_BIAS}, set()),
    "per channel": (SIGNED | {"extra_options": FLOAT_BIAS, "per_channel": True}, set()),
    "placed": (SIGNED | {"extra_options": PLACED, "per_channel": True}, set()),
    "operators": ({"quant_format": QuantFormat.QOperator}, {"L03", "L24", "L46"}),
}
"""Options of quantize_static, and the errors that the lint finds in what it makes."""


class Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.left: Iterator[np.ndarray] = iter(rng.random((4, 1, 1, 8, 8), np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {"image": image}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    logging.disable(logging.WARNING)
    for name, (options, _) in MADE.items():
        quantize_static(MODEL, folder / f"{name}.onnx", Samples(), **options)
    quantize_dynamic(MODEL, folder / "dynamic.onnx")
    logging.disable(logging.NOTSET)
    return {path.stem: path for path in folder.glob("*.onnx")}


def errors(path: Path) -> set[str]:
    return {f.rule for f in found(loaded(path), SETTING) if f.severity is Severity.ERROR}


def loaded(path: Path) -> ir.Model:
    model = ir.load(path)
    infer(model)
    return model


@pytest.mark.parametrize("name", MADE)
def test_what_its_options_lead_to(made: dict[str, Path], name: str) -> None:
    assert errors(made[name]) == MADE[name][1]


def test_all_that_must_be_set_is_named(made: dict[str, Path]) -> None:
    wanted = ["quant_format=QuantFormat.QDQ", "QuantizeBias=False", "ActivationSymmetric=True"]
    told = {f.rule: f.what for f in found(loaded(made["operators"]), SETTING)}["L46"]
    assert told.endswith(f"quantize again with {', '.join(wanted)}")


def test_dynamic_models_have_operators_that_the_parser_lacks(made: dict[str, Path]) -> None:
    assert errors(made["dynamic"]) == {"L24"}


@needs_rtx
def test_the_library_takes_what_the_lint_passes_and_nothing_else(
    made: dict[str, Path], tmp_path: Path
) -> None:
    cases = [Case(partial(ir.load, path), SETTING) for path in made.values()]
    verdicts = dict(zip(made, asked(cases, tmp_path), strict=True))
    built = {name for name, verdict in verdicts.items() if verdict["verdict"] == "built"}
    assert built == {name for name, path in made.items() if not errors(path)}, verdicts
