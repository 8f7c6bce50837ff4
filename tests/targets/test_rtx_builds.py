"""Models that go to TensorRT, really parsed and built: by TensorRT for RTX, which needs no GPU.

Each build calibrates on two samples and is compared on a third: enough to see that layers get what
the plan says and that the graph computes what it should, not to judge the accuracy of an engine.
"""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.errors import PlanError
from qcompile.lint.rule import Severity
from qcompile.progress import Silent
from qcompile.recipe import Recipe
from qcompile.report.schema import Delivery, Report
from qcompile.runtime import rtx
from qcompile.runtime.obtained import obtained
from qcompile.runtime.rtx_library import is_installed
from tests.assets import asset, needs_assets
from tests.planning.tools import feeds_of, graph_of, normal

pytestmark = pytest.mark.skipif(
    is_installed() is None,
    reason="TensorRT for RTX is not installed (pip install 'qcompile[tensorrt-rtx]')",
)

CALIBRATED = 2
PLAIN = {"algorithm": "rtn", "search": False}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))


def recipe(**asked: object) -> Recipe:
    """Return a recipe that is quick to follow."""
    about = {"target": "tensorrt-rtx", "sm": (86,), "keep_accuracy": False}
    method = {"calibration": {"method": "minmax"}}
    return Recipe.model_validate({**about, **method, "jobs": 2, **asked})


def write_samples(folder: Path, samples: list[dict[str, np.ndarray]]) -> None:
    """Write calibration samples, and the last one for the comparison."""
    for number, feeds in enumerate(samples):
        where = folder / ("eval" if number == len(samples) - 1 else "calib")
        where.mkdir(exist_ok=True)
        np.savez(where / f"{number}.npz", **feeds)


def built(model: Path, folder: Path, plan: Path | None = None, **asked: object) -> Report:
    return qcompile.build(
        model,
        calib=folder / "calib",
        evaluation=folder / "eval",
        output=folder / "out",
        recipe=recipe(**({"calibration": {}} if plan else {}), **asked),
        plan=plan,
        force=True,
    )


def delivery(report: Report) -> Delivery:
    """Return what was delivered; the file is there, and the lint found nothing forbidden."""
    found = report.delivery
    assert found is not None
    assert found.state == "built"
    assert (Path(report.output) / found.path).stat().st_size == found.bytes
    assert not [f for f in found.findings if f.severity == Severity.ERROR.value]
    return found


def missed(report: Report) -> list[str]:
    return [row.node for row in delivery(report).layers if row.wanted != row.obtained]


def signal(report: Report) -> float:
    """Return the SQNR of the worst output of the simulated model, in dB."""
    assert report.simulated is not None
    found = [row.sqnr_db for row in report.simulated.outputs if row.sqnr_db is not None]
    return min(found)


# Real models


def real(name: str, folder: Path, **asked: object) -> Report:
    """Build one of the assets."""
    command = [sys.executable, str(asset("calib.py")), name, str(folder / "all")]
    subprocess.run([*command, str(CALIBRATED + 1)], check=True)
    files = sorted((folder / "all").glob("*.npz"))
    write_samples(folder, [dict(np.load(file, allow_pickle=False)) for file in files])
    return built(asset("models", f"{name}.onnx"), folder, **asked)


FLOAT = {"high_precision": "fp32"}
INT8 = {
    "resnet20_cifar10": (19, 20.0, {}),
    "squeezenet10_dc_imagenet": (26, 14.0, {"sm": (80,), **FLOAT}),
    "mobilenetv1_025_vww": (25, 15.0, FLOAT),
    "dscnn_kws": (8, 18.0, {"sm": (120,)}),
    "espcn_x3": (3, 22.0, FLOAT),
    "kwt1_kws": (73, 28.0, {}),
    "yolox_nano_coco": (106, 4.0, FLOAT),
    "espnetv2_s2_voc": (56, 15.0, {"exclude": ("/merge*", "/bu_dec*"), **FLOAT}),
    "stories260k": (36, 24.0, {"sm": (89,), **FLOAT}),
}
"""Model to the least layers in int8, the least SQNR in dB, and what else the recipe says.

What is left in float is float16 by default: two CNNs and a transformer show that it goes along.
YOLOX holds raw boxes beside scores, which two samples and minmax do not serve; the decoder of
ESPNetv2 needs ``keep_accuracy``, which takes minutes.
"""


@pytest.mark.slow
@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize("name", INT8)
def test_int8(name: str, tmp_path: Path) -> None:
    layers, decibels, asked = INT8[name]
    report = real(name, tmp_path, **asked)
    assert missed(report) == []
    rows = delivery(report).layers
    assert {row.wanted for row in rows} == {"int8"}
    assert len(rows) >= layers
    assert signal(report) > decibels


@pytest.mark.slow
@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "layers", "decibels"), [("resnet20_cifar10", 11, 19.0), ("kwt1_kws", 73, 24.0)]
)
def test_fp8(name: str, layers: int, decibels: float, tmp_path: Path) -> None:
    report = real(name, tmp_path, scheme="fp8", sm=(89,))
    assert missed(report) == []
    rows = delivery(report).layers
    assert {row.wanted for row in rows} == {"fp8"}
    assert len(rows) >= layers
    assert signal(report) > decibels


@pytest.mark.slow
@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "scheme", "layers", "decibels"),
    [("resnet20_cifar10", "bf16", 20, 25.0), ("stories260k", "fp16", 46, 45.0)],
)
def test_halves(name: str, scheme: str, layers: int, decibels: float, tmp_path: Path) -> None:
    report = real(name, tmp_path, scheme=scheme)
    rows = delivery(report).layers
    assert missed(report) == []
    assert {row.obtained for row in rows} == {scheme}
    assert len(rows) >= layers
    assert signal(report) > decibels


@pytest.mark.slow
@needs_assets
@pytest.mark.assets
def test_int4_of_a_language_model(tmp_path: Path) -> None:
    report = real("textlm5m", tmp_path, scheme="weight-only", weights={"group_size": 64, **PLAIN})
    rows = delivery(report).layers
    assert {row.wanted for row in rows} == {"int4 weights"}
    assert len(rows) >= 43
    assert missed(report) == [], "behind attention hold-codes keeps them"
    assert signal(report) > 15
    constants = ir.load(Path(report.output) / "model.onnx").graph.initializers
    codes = [v for v in constants.values() if v.dtype == ir.DataType.INT4]
    assert len(codes) == len(rows)
    for value in codes:
        (reader,) = [use.node for use in value.uses()]
        scale = reader.inputs[1]
        assert reader.op_type == "DequantizeLinear"
        assert reader.attributes["block_size"].as_int() == 64
        assert len(reader.inputs) == 2, "no zero point"
        assert scale is not None
        assert scale.const_value is not None
        assert scale.dtype == ir.DataType.FLOAT16
        assert (scale.const_value.numpy() > 0).all()


# What its builder makes of int4, which the tables go by


def int4_product(folder: Path, columns: int, block: int, before: str) -> str:
    """Return what a product of 256 rows with int4 weights is computed in, behind some nodes."""
    body = {
        "nothing": "r = Identity(x)",
        "attention": "r = Reshape(t, shape)",
        "attention and a product": "f = Reshape(t, shape)\nr = Mul(f, gain)",
    }[before]
    attention = """a = MatMul(x, k)
        p = Softmax(a)
        m = MatMul(p, v)
        t = Transpose <perm=[0, 2, 1, 3]> (m)
    """
    heads = f"float16[1, 8, 256, {columns // 8}]"
    inputs = f"float16[1, 256, {columns}] x"
    if before != "nothing":
        body = attention + body
        inputs = f"{heads} x, float16[1, 8, {columns // 8}, 256] k, {heads} v"
    text = f"{body}\nw = DequantizeLinear <axis=0, block_size={block}> (c, s)\n[n] y = MatMul(r, w)"
    rng = np.random.default_rng(0)
    more = {
        "s": rng.uniform(0.01, 0.02, (columns // block, 64)).astype(np.float16),
        "shape": np.asarray([1, 256, columns], np.int64),
        "gain": rng.uniform(0.5, 2, columns).astype(np.float16),
    }
    used = {name: more[name] for name in more if f"{name})" in text}
    codes = rng.integers(-7, 8, (columns, 64)).astype(ml_dtypes.int4)
    model = graph_of(inputs, text, "float16[] y", c=codes, **used)
    ir.save(model, folder / "m.onnx")
    request = rtx.RtxRequest(folder / "m.onnx", folder / "m.engine", sms=(89,))
    return obtained(model, rtx.build(request, Silent()).layers)["n"].precision


@pytest.mark.parametrize(
    ("columns", "block", "before", "precision"),
    [
        (128, 64, "nothing", "int4 weights"),
        pytest.param(256, 128, "nothing", "int4 weights", marks=pytest.mark.slow),
        (64, 64, "nothing", "fp16"),
        (256, 64, "attention", "fp16"),
        (256, 64, "attention and a product", "int4 weights"),
    ],
)
def test_behind_attention_and_with_a_single_group_int4_is_made_float_first(
    columns: int, block: int, before: str, precision: str, tmp_path: Path
) -> None:
    assert int4_product(tmp_path, columns, block, before) == precision


# Wishes and edited plans


NET = """[one] a = Conv <pads=[1, 1, 1, 1]> (x, w)
    [relu] r = Relu(a)
    [two] c = Conv <pads=[1, 1, 1, 1]> (r, w)
    [sum] s = Add(c, x)
    [three] y = Conv <pads=[1, 1, 1, 1]> (s, w)"""


def small(folder: Path) -> Path:
    """Write a net of three convolutions around a residual, and samples."""
    model = graph_of("float[1, 16, 8, 8] x", NET, w=normal(1, 16, 16, 3, 3, scale=0.1))
    ir.save(model, folder / "m.onnx")
    write_samples(folder, feeds_of(model, CALIBRATED + 1))
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({}, {"one", "two", "three"}),
        ({"float_first": True}, {"two"}),
        ({"float_last": True}, {"one", "two"}),
        ({"exclude": ("t*",)}, {"one"}),
    ],
    ids=["all", "float-first", "float-last", "exclude"],
)
def test_wishes(asked: dict[str, object], left: set[str], tmp_path: Path) -> None:
    report = built(small(tmp_path), tmp_path, **asked)
    assert missed(report) == []
    assert {row.node for row in delivery(report).layers} == left


def edited(folder: Path, what: str, name: str, **changes: object) -> Path:
    """Build for TensorRT, edit the plan, and return it."""
    report = built(small(folder), folder, target="tensorrt")
    plan = json.loads((Path(report.output) / "plan.json").read_text("utf-8"))
    plan[what][name].update(changes)
    plan["target"] = "tensorrt-rtx"
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    return folder / "plan.json"


def test_an_edited_plan_is_followed(tmp_path: Path) -> None:
    plan = edited(tmp_path, "nodes", "two", precision="float", reason="I say so")
    report = built(tmp_path / "m.onnx", tmp_path, plan)
    assert missed(report) == []
    assert {row.node for row in delivery(report).layers} == {"one", "three"}
    made = json.loads((Path(report.output) / "plan.json").read_text("utf-8"))
    assert made["nodes"]["two"]["reason"].startswith("I say so")


def test_a_plan_with_a_zero_point_is_refused(tmp_path: Path) -> None:
    plan = edited(tmp_path, "tensors", "x", zero_point=[1])
    with pytest.raises(PlanError, match="its zero point must be 0 on this target"):
        built(tmp_path / "m.onnx", tmp_path, plan)
