"""What is folded without onnxscript, and graphs for which that is not even imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from onnxscript.optimizer import _constant_folding

from qcompile.graph.dump import dump
from qcompile.graph.runner import run_passes
from qcompile.graph.walk import is_op
from qcompile.passes import CANONICAL
from qcompile.passes.compute_integers import compute_integers
from qcompile.passes.fold_constants import _RESOLVED, FoldConstants
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from qcompile.source.onnx_file import load_model
from tests.assets import asset, needs_assets
from tests.passes.test_canonical import MODELS
from tests.passes.test_numeric import chains
from tests.passes.tools import prepared

PADDED = """
<ir_version: 10, opset_import: ["" : 21]>
padded (float[N, 2, 8, 8] x) => (float[N, 2, A, B] y)
<float[2, 2, 1, 1] w = {0.5, 0.25, 2.0, 4.0}, int64[1] four = {4}, int64[4] front = {0, 0, 1, 1},
 int64[1] last = {-1}, int64[1] start = {-9223372036854775807}, int64[1] first = {0},
 int64[2] pairs = {-1, 2}, int64[1] flat = {-1}, float zero = {0.0}>
{
  rest = ConstantOfShape <value = int64[1] {0}> (four)
  both = Concat <axis = 0> (front, rest)
  table = Reshape (both, pairs)
  turned = Slice (table, last, start, first, last)
  sides = Transpose <perm = [1, 0]> (turned)
  pads = Reshape (sides, flat)
  wide = Pad (x, pads, zero)
  y = Conv (wide, w)
}
"""


def padded() -> onnx.ModelProto:
    return onnx.parser.parse_model(PADDED)


def test_paddings_need_no_onnxscript(tmp_path: Path):
    onnx.save(padded(), tmp_path / "padded.onnx")
    script = (
        "import sys; from qcompile.commands import inspect; "
        "inspect(sys.argv[1]); print('onnxscript' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "padded.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_paddings_are_what_the_folder_computes(tmp_path: Path):
    onnx.save(padded(), tmp_path / "padded.onnx")
    here, there = load_model(tmp_path / "padded.onnx"), load_model(tmp_path / "padded.onnx")
    for model in (here, there):
        NameValues()(model)
        InferShapes()(model)
    assert compute_integers(here)
    assert [node.op_type for node in here.graph] == ["Pad", "Conv"]
    pads = here.graph.initializers["pads"].const_value
    assert pads is not None
    np.testing.assert_array_equal(pads.numpy(), [0, 0, 1, 0, 0, 0, 1, 0])
    FoldConstants()._fold(there)
    for model in (here, there):
        InferShapes()(model)
    assert dump(here) == dump(there)


def test_large_results_are_left():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    large (float[1] x) => (float[1] y)
    <int64[1] many = {10000}, int64[1] zero = {0}>
    {
      huge = ConstantOfShape <value = int64[1] {7}> (many)
      one = Gather (huge, zero)
      number = Cast <to = 1> (one)
      y = Add (x, number)
    }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    InferShapes()(model)
    assert not compute_integers(model)


def test_every_evaluator_is_known():
    """What a new onnxscript learns to resolve must not be passed over."""
    resolved = {name for domain, name in _constant_folding.registry.op_evaluators if not domain}
    asked = {"Cast", "Concat", "If", "Reshape", "Shape"}
    only_followed = {"Add", "Gather", "Squeeze"}
    assert resolved == {*_RESOLVED, *asked, *only_followed}


def check_nothing_left(model: ir.Model) -> None:
    """Where no node may be folded, the folder changes nothing."""
    step = FoldConstants()
    if not any(step._may_fold(node) for node in model.graph):
        assert not step._fold(model)


@given(chains())
def test_what_is_passed_over_cannot_be_folded(model):
    model = prepared(model, FoldConstants())
    InferShapes()(model)
    check_nothing_left(model)


@needs_assets
@pytest.mark.parametrize("name", MODELS)
def test_what_is_passed_over_in_real_models_cannot_be_folded(name):
    model = load_model(asset("models", f"{name}.onnx"))
    for step in CANONICAL:
        run_passes(model, [step], holds=frozenset(step.needs))
        if isinstance(step, InferShapes):
            check_nothing_left(model)
    assert not any(is_op(node, "ConstantOfShape") for node in model.graph)
