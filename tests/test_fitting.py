"""The last passes: sizes that a device wants fixed, and an opset that its runtime knows."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.data import split_data
from qcompile.errors import RecipeError
from qcompile.fitting import Fitting
from qcompile.frontend import load
from qcompile.halves import nothing_quantized
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Recipe, TensorRT
from qcompile.runtime.ort import Session
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.ort_mobile import ORT_MOBILE

BODY = """{
  s = Shape(x) i = Constant<value = int64[1] {0}>() n = Gather(s, i)
  m = Constant<value = int64[1] {-1}>() to = Concat<axis = 0>(n, m)
  r = Reshape(x, to)
  y = OPERATOR(r)
}"""


def fitted(folder: Path, device="nnapi", *, target=ORT_MOBILE, op="Relu", **options):
    """Build as far as the fitted graph: it, and what was said."""
    text = (
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[N, L, 3] x) => (float[N, K] y) {BODY}'
    )
    path = folder / "net.onnx"
    onnx.save(onnx.parser.parse_model(text.replace("OPERATOR", op)), path)
    sizes, shapes = options.get("sizes", (2,) * 32), options.get("shapes")
    calib = folder / "calib"
    calib.mkdir()
    for number, size in enumerate(sizes):
        np.savez(calib / f"{number:02d}.npz", x=np.full((1, size, 3), number, np.float32))
    log = StageLog(None)
    recipe = Recipe(target="ort-mobile", scheme="fp16", tensorrt=TensorRT(shapes=shapes))
    loaded = load(path, "ort-mobile", "fp16", threads=1, dump_dir=None, progress=log)
    data = split_data(calib if sizes else None, None, loaded, recipe, log)
    made = nothing_quantized(loaded, "fp16", target, device, None)
    done = Fitting(loaded, data, recipe, target, device, log).fit(made, folder / "dumps")
    return done, [notice for notice in log.notices if "ranges are shaky" not in notice]


def shapes(made: Quantized) -> list[str]:
    return [str(v.shape) for v in (*made.model.graph.inputs, *made.model.graph.outputs)]


def test_sizes_are_those_of_the_samples_and_what_follows_is_folded(tmp_path):
    made, notices = fitted(tmp_path)
    assert shapes(made) == ["[1,2,3]", "[1,6]"]
    assert [node.op_type for node in made.model.graph] == ["Reshape", "Relu"]
    assert any("--shapes 'x:1x2x3,1x2x3,1x2x3'" in notice for notice in notices)
    x = {"x": np.arange(-3, 3, dtype=np.float32).reshape(1, 2, 3)}
    np.testing.assert_array_equal(
        Session(made.model).run(x)["y"], np.maximum(x["x"], 0).reshape(1, 6)
    )
    assert [run.name for run in made.runs][-1] == "lower-opset"
    assert (tmp_path / "dumps" / "fit").is_dir()


def test_sizes_may_be_asked_for(tmp_path):
    made, _ = fitted(tmp_path, shapes="x:4x2x3,4x2x3,4x2x3")
    assert shapes(made) == ["[4,2,3]", "[4,6]"]


def test_one_shape_and_no_range(tmp_path):
    with pytest.raises(RecipeError, match="--shapes: nnapi takes one shape of x, not a range"):
        fitted(tmp_path, shapes="x:1x2x3,4x2x3,4x2x3")


def test_shapes_that_vary_stay_open_and_that_is_said(tmp_path):
    made, notices = fitted(tmp_path, sizes=(1, 2) * 16)
    assert shapes(made)[0] == "[N,L,3]"
    assert any("the samples have several" in notice for notice in notices)


def test_without_samples_sizes_stay_open_and_that_is_said(tmp_path):
    made, notices = fitted(tmp_path, sizes=())
    assert shapes(made)[0] == "[N,L,3]"
    assert any(notice.startswith("without samples") for notice in notices)


@pytest.mark.parametrize("device", ["cpu", "xnnpack"])
def test_others_leave_sizes_open(device, tmp_path):
    made, notices = fitted(tmp_path, device)
    assert shapes(made)[0] == "[N,L,3]"
    assert not notices
    assert made.model.opset_imports[""] == 19


def test_an_operator_that_demands_a_newer_opset_is_named(tmp_path):
    made, notices = fitted(tmp_path, "cpu", op="Gelu")
    assert made.model.opset_imports[""] == 20
    assert notices == ["the model is of opset 20, since opset 19: Gelu is not there yet"]


def test_targets_of_the_working_opset_change_nothing(tmp_path):
    made, notices = fitted(tmp_path, "vnni", target=ORT_CPU)
    assert made.model.opset_imports[""] == 21
    assert not notices
    assert not made.runs


def test_the_source_stays_as_it_is(tmp_path):
    fitted(tmp_path)
    assert str(ir.load(tmp_path / "net.onnx").graph.inputs[0].shape) == "[N,L,3]"
