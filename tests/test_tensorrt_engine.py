"""TensorRT's flows through the Python interface: files, engines, types of layers, refusals."""

import json
import os
from pathlib import Path

import onnx
import pytest

import qcompile
from qcompile.delivery import UNSEEN, UNTIMED
from qcompile.errors import EngineError, GateError, RecipeError
from qcompile.progress import Silent
from qcompile.runtime.rtx_library import is_installed
from tests.tiny import build, convs, products, weight, write_net, write_samples

needs_rtx = pytest.mark.skipif(
    is_installed() is None, reason="TensorRT for RTX is not installed: extra [tensorrt-rtx]"
)
RTN = {"weights": {"group_size": 64, "algorithm": "rtn"}}
FILES = {"build.json", "build_engine.py", "build_engine.sh", "model.onnx", "samples.npz"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))


def layers(report: qcompile.Report) -> dict[str, tuple[str, str]]:
    assert report.delivery is not None
    return {layer.node: (layer.wanted, layer.obtained) for layer in report.delivery.layers}


# -- engines of TensorRT for RTX -------------------------------------------------------------


@needs_rtx
@pytest.mark.parametrize(
    ("net", "scheme", "wanted"),
    [
        (convs, "int8", {"c0": "int8", "c1": "int8"}),
        (products, "fp8", {"m0": "fp8", "m1": "fp8"}),
        (products, "weight-only", {"m0": "int4 weights", "m1": "int4 weights"}),
        (products, "fp16", {"m0": "fp16", "m1": "fp16"}),
        (convs, "bf16", {"c0": "bf16", "c1": "bf16"}),
    ],
)
def test_every_layer_computes_as_planned(tmp_path, net, scheme, wanted):
    report, heard = build(net(tmp_path), target="tensorrt-rtx", sm=(89,), scheme=scheme, **RTN)
    assert layers(report) == {node: (what, what) for node, what in wanted.items()}
    delivery = report.delivery
    assert delivery.state == "built"
    assert delivery.kind == "TensorRT for RTX engine for compute capability 8.9"
    assert delivery.library == f"TensorRT for RTX {is_installed()}"
    assert delivery.path == "model.engine"
    assert delivery.bytes == (tmp_path / "out" / "model.engine").stat().st_size > 0
    assert report.engine_bytes() == delivery.bytes
    assert report.speed is None
    assert report.engine.outputs == ()
    assert report.simulated.outputs[0].sqnr_db > 15
    assert UNTIMED in heard.notices


@needs_rtx
def test_a_layer_that_was_excluded_or_kept_in_fp32_is_told_apart(tmp_path):
    wished = {"target": "tensorrt-rtx", "sm": (89,), "exclude": ["c1"]}
    path = convs(tmp_path)
    assert layers(build(path, scheme="int8", **wished)[0]) == {"c0": ("int8", "int8")}
    half = layers(build(path, scheme="fp16", **wished)[0])
    assert half["c0"] == ("fp16", "fp16")
    assert (
        half["c1"][0] == "fp32"
    )  # 1.7.1 takes the casts around it into an fp16 kernel: it is told


@needs_rtx
def test_dynamic_axes_and_several_inputs(tmp_path):
    body = """[c0] a = Conv<pads = [1, 1, 1, 1]> (x, w0)
    [c1] b = Conv<pads = [1, 1, 1, 1]> (z, w1)
    [add] y = Add(a, b)"""
    weights = {"w0": weight(0, 16, 16, 3, 3), "w1": weight(1, 16, 16, 3, 3)}
    inputs = "float[N, 16, H, 8] x, float[N, 16, H, 8] z"
    path = write_net(tmp_path / "net.onnx", inputs, body, **weights)
    data = write_samples(tmp_path / "data", 6, x=(1, 16, 8, 8), z=(1, 16, 8, 8))
    larger = write_samples(tmp_path / "more", 4, x=(1, 16, 12, 8), z=(1, 16, 12, 8))
    for file in larger.iterdir():
        file.rename(data / f"larger-{file.name}")
    report, heard = build(path, target="tensorrt-rtx", sm=(86,))
    assert layers(report) == {"c0": ("int8", "int8"), "c1": ("int8", "int8")}
    (told,) = [n for n in heard.notices if "the shapes that the samples have" in n]
    assert told.endswith("'x:1x16x8x8,1x16x8x8,1x16x12x8 z:1x16x8x8,1x16x8x8,1x16x12x8'")
    shapes = "x:1x16x8x8,4x16x8x8,9x16x12x8 z:1x16x8x8,4x16x8x8,9x16x12x8"
    _, heard = build(path, target="tensorrt-rtx", sm=(86,), tensorrt={"shapes": shapes})
    assert not any("shapes" in notice for notice in heard.notices)


@needs_rtx
def test_an_operator_that_only_the_parser_refuses_is_named_with_its_node(tmp_path):
    body = """[c0] a = Conv<pads = [1, 1, 1, 1]> (x, w0)
    [odd] y = MaxPool<kernel_shape = [3, 3], dilations = [2, 2]> (a)"""
    path = write_net(tmp_path / "net.onnx", "float[1,16,8,8] x", body, w0=weight(0, 16, 16, 3, 3))
    with pytest.raises(EngineError) as found:
        build(path, target="tensorrt-rtx", sm=(89,), scheme="fp16", data=False)
    assert "node 'odd' (MaxPool)" in str(found.value)
    assert not (tmp_path / "out").exists()


# -- what is refused before anything is computed ---------------------------------------------


def test_an_operator_that_tensorrt_lacks_is_named_before_calibration(tmp_path):
    body = "[c0] a = Conv<pads = [1, 1, 1, 1]> (x, w0)\n[odd] y = Det(a)"
    path = write_net(tmp_path / "net.onnx", "float[1,16,8,8] x", body, w0=weight(0, 16, 16, 3, 3))
    write_samples(tmp_path / "data", x=(1, 16, 8, 8))
    heard: list[str] = []

    class Steps(Silent):
        def step(self, stage: str, done: int, total: int) -> None:
            heard.append(stage)

    for target in ("tensorrt", "tensorrt-rtx"):
        if target == "tensorrt-rtx" and is_installed() is None:
            continue
        with pytest.raises(EngineError) as found:
            qcompile.build(
                path,
                calib=tmp_path / "data",
                output=tmp_path / "out",
                recipe=qcompile.Recipe(target=target),
                progress=Steps(),
            )
        message = "TensorRT would refuse the model: odd: TensorRT's parser has no Det"
        assert str(found.value).startswith(message)
        assert not [stage for stage in heard if stage.startswith(("calibrate", "plan"))]
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strip": True}, "[tensorrt] strip: TensorRT for RTX strips weights on a machine with a"),
        ({"version_compatible": True}, "[tensorrt] version_compatible: TensorRT for RTX has no"),
        ({"hardware_compatible": "same"}, "are for the GPUs that --sm names"),
        ({"shapes": "x:1x2"}, "--shapes x: 1 shapes, not three"),
    ],
)
def test_options_that_need_a_gpu_are_refused_for_rtx(tmp_path, options, message):
    with pytest.raises(RecipeError) as found:
        build(tmp_path / "missing.onnx", target="tensorrt-rtx", tensorrt=options)
    assert message in str(found.value)


def test_options_of_tensorrt_are_not_passed_over_silently(tmp_path):
    options = {"tensorrt": {"shapes": "x:1x8x128,1x8x128,1x8x128"}}
    wished = {"target": "onnx", "scheme": "weight-only", "gates": {"allow_slower": True}}
    _, heard = build(products(tmp_path), data=False, **wished, **RTN, **options)
    assert "shapes and other options of TensorRT: not used for --target onnx" in heard.notices


# -- what TensorRT builds elsewhere ----------------------------------------------------------


@pytest.mark.parametrize("version", [10, 11])
def test_files_that_build_the_engine_on_the_device(tmp_path, version):
    gates = {"min_sqnr": 20.0, "min_agreement": None, "max_drop": None}
    report, heard = build(
        convs(tmp_path), target="tensorrt", sm=(87,), gates=gates, tensorrt={"version": version}
    )
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= FILES
    request = json.loads((out / "build.json").read_text())
    assert request["gates"]["min_sqnr"] == 20.0
    assert request["tensorrt"] == version
    assert os.access(out / "build_engine.sh", os.X_OK)
    delivery = report.delivery
    assert (delivery.state, delivery.path, delivery.bytes) == ("yet to be built", "", 0)
    assert delivery.kind == f"TensorRT {version} engine"
    assert "yet to be built; run python3 build_engine.py" in delivery.notes[0]
    assert report.gates[0].passed
    assert report.engine_bytes() == (out / "model.onnx").stat().st_size
    assert UNTIMED in heard.notices


def test_a_missed_gate_of_the_simulated_model(tmp_path):
    path = convs(tmp_path)
    with pytest.raises(GateError, match="gate missed: --min-sqnr") as found:
        build(path, target="tensorrt", gates={"min_sqnr": 90.0})
    assert found.value.report.status == "gate failed"
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"plan.json", "manifest.json", "report.json"}


def test_a_speed_cannot_be_judged_without_the_device(tmp_path):
    with pytest.raises(GateError) as found:
        build(convs(tmp_path), target="tensorrt", gates={"min_speedup": 1.5})
    (gate,) = found.value.report.gates
    assert (gate.name, gate.measured, gate.note) == ("min-speedup", None, "nothing was timed")


def test_fp8_codes_are_in_the_file_and_scales_have_no_rank(tmp_path):
    build(products(tmp_path), target="tensorrt", sm=(89,), scheme="fp8")
    tensors = {t.name: t for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    kinds = onnx.TensorProto
    codes = [t for t in tensors.values() if t.data_type == kinds.FLOAT8E4M3FN]
    assert sorted(tuple(t.dims) for t in codes if len(t.dims) == 2) == [(128, 256), (256, 64)]
    scales = [t for name, t in tensors.items() if "scale" in name]
    of_inputs = {t.name for t in scales if t.data_type == kinds.FLOAT}
    assert of_inputs == {"x.scale"}, "rounds the float32 input itself"
    assert {t.data_type for t in scales if t.name not in of_inputs} == {kinds.FLOAT16}
    assert {len(t.dims) for t in scales} == {0, 1}, "of activations, of channels"
    assert all((onnx.numpy_helper.to_array(t) > 0).all() for t in scales)


def test_int4_leaves_rows_that_are_no_whole_groups_in_float(tmp_path):
    body = "[a] h = MatMul(x, w)\n[b] y = MatMul(h, v)"
    weights = {"w": weight(0, 128, 96), "v": weight(1, 96, 64)}
    path = write_net(tmp_path / "net.onnx", "float[4,128] x", body, **weights)
    report, heard = build(path, target="tensorrt", scheme="weight-only", data=False, **RTN)
    assert report.plan.nodes == {"fp16": 1, "weight-only": 1}
    assert UNSEEN in heard.notices
    (node,) = report.plan.float_nodes
    assert (node.name, node.reason) == ("b", "each output sums 96 weights, no multiple of 64")
