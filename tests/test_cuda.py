"""``--target ort-cuda``: options of the check, and what becomes of a model where a GPU is.

There the CPU stands in for the GPU; all else is real.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from qcompile.checking import check
from qcompile.errors import RecipeError
from qcompile.pipeline import build
from qcompile.recipe import Gates, Recipe
from qcompile.runtime import cuda
from qcompile.runtime.provider import CPU, Provider
from qcompile.runtime.timing import time_pair
from tests import tiny
from tests.cli.nets import CALIB, EVAL, MODEL
from tests.lint import test_ports
from tests.lint.models import matmul

STAND_IN = Provider(CPU.chain, {"session.intra_op.allow_spinning": "0"})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qcompile.proof.time_pair", partial(time_pair, seconds=0.05))
    monkeypatch.setattr(cuda, "missing", lambda device: "")
    monkeypatch.setattr(cuda, "cuda_provider", lambda: STAND_IN)


def test_a_model_is_run_compared_and_timed_on_its_provider(gpu: None, tmp_path: Path) -> None:
    gates = Gates(min_sqnr=40, allow_slower=True)
    recipe = Recipe(scheme="fp16", target="ort-cuda", gates=gates, jobs=1)
    report = build(
        MODEL, calib=str(CALIB), evaluation=str(EVAL), output=tmp_path / "out", recipe=recipe
    )
    delivery = report.delivery
    assert delivery is not None
    assert (delivery.state, delivery.path) == ("run", "model.onnx")
    assert delivery.library.startswith("ONNX Runtime ")
    assert delivery.placed == {}  # measured, not predicted
    assert delivery.notes[0].startswith("nodes by provider: CPUExecutionProvider ")
    assert "ms a run" in delivery.notes[1]
    assert report.engine.samples > 0
    assert report.speed is not None
    assert [gate.passed for gate in report.gates] == [True]
    assert (tmp_path / "out" / "result.json").is_file()


@pytest.mark.skipif(not cuda.missing("cuda"), reason="a GPU would judge it here")
def test_a_speed_is_left_to_the_device_with_the_float_model(tmp_path: Path) -> None:
    wished = {"target": "ort-cuda", "scheme": "fp16", "gates": {"min_speedup": 1.5}}
    report, heard = tiny.build(tiny.products(tmp_path), data=False, **wished)
    told = json.loads((tmp_path / "out" / "session_options.json").read_text("utf-8"))
    assert (told["float_model"], told["gates"]) == ("float.onnx", {"min_speedup": 1.5})
    assert (tmp_path / "out" / "float.onnx").is_file()
    assert any("--min-speedup is judged on the device" in notice for notice in heard.notices)
    assert report.gates == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "ort-cuda", "ep": "rocm"}, "--ep rocm: ort-cuda has no such device"),
        ({"ep": "cuda"}, "--ep cuda: there are rules of providers for --target ort-cuda alone"),
        ({"target": "ort-cuda", "sms": (89,)}, "--sm: is for TensorRT"),
        ({"target": "ort-cuda", "version": 10}, "--trt-version: is for TensorRT"),
        ({"target": "ort-cuda", "shapes": "x:1,2,3"}, "--shapes: is for TensorRT"),
    ],
)
def test_options_that_are_not_its_own(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    ir.save(matmul(), tmp_path / "model.onnx")
    with pytest.raises(RecipeError) as refused:
        check(tmp_path / "model.onnx", **options)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("ep", "setting"),
    [
        (None, "CUDAExecutionProvider of ONNX Runtime, by a table of its kernels"),
        (
            "tensorrt",
            "TensorrtExecutionProvider of ONNX Runtime with TensorRT 11, by a table of its kernels",
        ),
    ],
)
def test_what_it_was_checked_for(tmp_path: Path, ep: str | None, setting: str) -> None:
    ir.save(matmul(), tmp_path / "model.onnx")
    result = check(tmp_path / "model.onnx", target="ort-cuda", ep=ep)
    assert (result.target, result.setting) == ("ort-cuda", setting)


def test_shapes_answer_the_warning_of_dynamic_axes(tmp_path: Path) -> None:
    ir.save(test_ports.dynamic(), tmp_path / "model.onnx")
    about = partial(check, tmp_path / "model.onnx", target="ort-cuda", ep="tensorrt")
    assert [found.rule for found in about().findings] == ["L39"]
    assert about(shapes="x:1x16x8x8,4x16x8x8,8x16x8x8").findings == ()
