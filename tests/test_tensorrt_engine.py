"""TensorRT's flows through the Python interface: files, engines, types of layers, refusals."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import qcompile
from qcompile.errors import EngineError, GateError, RecipeError
from qcompile.plan import read_plan
from qcompile.progress import Silent
from qcompile.runtime import rtx, tensorrt
from qcompile.runtime.rtx_library import is_installed
from qcompile.tensorrt_engine import RUN, UNSEEN, UNTIMED
from tests.emit.bundles import use_stand_ins
from tests.tiny import (
    CONV_WEIGHTS,
    CONVS,
    build,
    convs,
    products,
    weight,
    write_net,
    write_samples,
)

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
    assert half == {"c0": ("fp16", "fp16"), "c1": ("fp32", "fp32")}


@needs_rtx
def test_a_layer_that_a_plan_forces_and_the_engine_leaves_in_float_is_named_with_the_rule(tmp_path):
    body = """[c0] a = Conv<pads = [1, 1, 1, 1]> (x, w0)
    [c1] y = Conv<group = 32, pads = [4, 4, 4, 4]> (a, w1)"""
    weights = {"w0": weight(0, 32, 32, 3, 3), "w1": weight(1, 32, 1, 9, 9)}
    path = write_net(tmp_path / "net.onnx", "float[1, 32, 16, 16] x", body, **weights)
    write_samples(tmp_path / "data", 6, x=(1, 32, 16, 16))
    wished = {"target": "tensorrt-rtx", "sm": (89,), "scheme": "fp8"}
    report, _ = build(path, **wished)
    assert layers(report) == {"c0": ("fp8", "fp8")}

    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    plan["nodes"]["c1"] |= {"precision": "fp8", "reason": ""}
    plan["tensors"] |= {"a": plan["tensors"]["x"], "w1": plan["tensors"]["w0"]}
    edited = tmp_path / "plan.json"
    edited.write_text(json.dumps(plan))
    report, _ = build(path, "forced", plan=edited, **wished)
    missed, kept = report.delivery.layers
    assert (kept.node, kept.wanted, kept.obtained, kept.rule) == ("c0", "fp8", "fp8", "")
    assert (missed.node, missed.wanted, missed.obtained) == ("c1", "fp8", "fp16")
    assert missed.rule.startswith("L31: Conv has kernels of 81 elements")


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


# -- what is refused before anything is computed ---------------------------------------------


class Steps(Silent):
    """Hears of stages, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: set[str] = set()

    def step(self, stage: str, done: int, total: int) -> None:
        self.stages.add(stage)


def odd(folder: Path, last: str) -> Path:
    """Write a net with an odd node at its end, and samples."""
    body = f"[c0] a = Conv<pads = [1, 1, 1, 1]> (x, w0)\n[odd] y = {last}"
    write_samples(folder / "data", x=(1, 16, 8, 8))
    weights = {"w0": weight(0, 16, 16, 3, 3)}
    return write_net(folder / "net.onnx", "float[1,16,8,8] x", body, **weights)


def refused(path: Path, target: str) -> str:
    """Return the error of a build that ends before calibration."""
    steps, out = Steps(), path.parent / "out"
    asked = {"output": out, "recipe": qcompile.Recipe(target=target), "progress": steps}
    with pytest.raises(EngineError) as found:
        qcompile.build(path, calib=path.parent / "data", **asked)
    assert not [stage for stage in steps.stages if stage.startswith(("calibrate", "plan"))]
    assert not out.exists()
    return str(found.value)


@pytest.mark.parametrize("target", ["tensorrt", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_an_operator_that_tensorrt_lacks_is_named_before_calibration(tmp_path, target):
    message = "TensorRT would refuse the model: odd: TensorRT's parser has no Det"
    assert refused(odd(tmp_path, "Det(a)"), target).startswith(message)


@pytest.mark.parametrize(
    "device", [{"target": "tensorrt"}, {"target": "ort-cuda", "ep": "tensorrt"}]
)
def test_a_gate_that_no_sample_fits_is_refused_before_calibration(tmp_path, device):
    path = write_net(tmp_path / "net.onnx", "float[N,16,8,8] x", CONVS[1], **CONV_WEIGHTS)
    write_samples(tmp_path / "data", x=(1, 16, 8, 8))
    wished = {**device, "tensorrt": {"shapes": "x:2x16x8x8,4x16x8x8,8x16x8x8"}}
    with pytest.raises(RecipeError) as found:
        build(path, gates={"min_sqnr": 10.0}, **wished)
    assert str(found.value).startswith(
        "--min-sqnr is judged on the device, but no sample has shapes that the engine takes: "
        "x is 1x16x8x8, --shapes goes from 2x16x8x8 to 8x16x8x8"
    )
    _, heard = build(path, **wished)
    assert "samples.npz is empty: the engine will be built, but not compared" in heard.notices


@needs_rtx
def test_what_only_the_parser_refuses_is_named_before_calibration(tmp_path):
    path = odd(tmp_path, "MaxPool<kernel_shape = [3, 3], dilations = [2, 2]> (a)")
    told = refused(path, "tensorrt-rtx")
    assert told.startswith("net.onnx: TensorRT for RTX cannot read it: node 'odd' (MaxPool): ")
    _, heard = build(path, target="tensorrt", scheme="fp16", data=False)
    (notice,) = [notice for notice in heard.notices if notice.startswith(told)]
    assert "its own parser will say on the device" in notice


@needs_rtx
def test_a_parser_that_crashes_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(rtx, "_START", "import os, sys; sys.stdin.read(); os.abort()")
    told = refused(convs(tmp_path), "tensorrt-rtx")
    assert told.startswith("TensorRT for RTX crashed (SIGABRT: Aborted) while it parsed net.onnx")


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


def test_a_speed_is_left_to_the_device_with_the_float_model(tmp_path):
    report, heard = build(convs(tmp_path), target="tensorrt", gates={"min_speedup": 1.5})
    out = tmp_path / "out"
    request = json.loads((out / "build.json").read_text())
    assert (request["float_model"], request["gates"]) == ("float.onnx", {"min_speedup": 1.5})
    graph = onnx.load(out / "float.onnx").graph
    assert {node.op_type for node in graph.node} == {"Conv", "Relu", "Add"}
    assert {t.data_type for t in graph.initializer} == {onnx.TensorProto.FLOAT}
    (told,) = [n for n in heard.notices if n.startswith("float.onnx (0.02 MB)")]
    assert told.endswith("--min-speedup is judged on the device, against it")
    assert report.gates == ()
    assert report.status == "built"


@needs_rtx
def test_nothing_can_judge_the_speed_of_an_rtx_engine(tmp_path):
    with pytest.raises(RecipeError, match="--min-speedup: an engine of TensorRT for RTX is built"):
        build(tmp_path / "missing.onnx", target="tensorrt-rtx", gates={"min_speedup": 1.5})


@pytest.fixture
def gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Let stand-ins be TensorRT and its GPU."""
    use_stand_ins(monkeypatch, tmp_path_factory.getbasetemp())
    yield
    monkeypatch.undo()
    tensorrt.installed.cache_clear()
    tensorrt.has_gpu.cache_clear()


@needs_rtx
@pytest.mark.slow
def test_where_it_runs_figures_and_speed_are_in_their_sections(gpu, tmp_path):
    gates = {"min_sqnr": 20.0, "min_speedup": 0.01}
    report, heard = build(convs(tmp_path), target="tensorrt", gates=gates)
    delivery = report.delivery
    assert (delivery.state, delivery.path) == ("run", "model.engine")
    assert delivery.kind == "TensorRT 11 engine for stand-in"
    (note,) = delivery.notes
    assert "ms a run (host clock" in note
    speed = report.speed
    assert speed.ratio == pytest.approx(speed.float_ms / speed.engine_ms, rel=0.5)
    assert speed.interval[0] <= speed.ratio <= speed.interval[1]
    assert speed.pairs >= 20
    assert report.engine.samples == report.data.evaluation_samples > 0
    assert report.engine.outputs[0].sqnr_db > 20
    assert report.engine.notes == (RUN,)
    judged = {gate.name: gate.measured for gate in report.gates}
    assert judged == {"min-sqnr": report.engine.outputs[0].sqnr_db, "min-speedup": speed.ratio}
    assert UNTIMED not in heard.notices


@needs_rtx
@pytest.mark.slow
def test_an_engine_that_runs_slower_than_float_is_refused(gpu, tmp_path, monkeypatch):
    """No gate asks for the float model, which is built beside the engine all the same."""
    monkeypatch.setenv("STAND_IN_SLOW_MS", "3")
    with pytest.raises(GateError, match="gate missed: --not-slower") as found:
        build(convs(tmp_path), target="tensorrt")
    assert found.value.report.speed.ratio < 0.5
    notices = found.value.report.notices
    assert not any("float.onnx" in notice for notice in notices), "it is not in the bundle"


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


@needs_rtx
def test_int4_of_a_single_group_takes_smaller_ones(tmp_path):
    """64 weights a row are one group of 64 (and float); 128 and 192 are none of 128, or one."""
    body = "[a] h = MatMul(x, w)\n[b] g = MatMul(h, v)\n[c] y = MatMul(g, u)"
    weights = {"w": weight(0, 128, 192), "v": weight(1, 192, 64), "u": weight(2, 64, 128)}
    path = write_net(tmp_path / "net.onnx", "float[4,128] x", body, **weights)
    wished = {"scheme": "weight-only", "weights": {"group_size": 128, "algorithm": "rtn"}}
    report, _ = build(path, target="tensorrt", data=False, **wished)
    (node,) = report.plan.float_nodes
    alone = "each output sums 64 weights, no multiple of 128"
    assert (node.name, node.reason) == ("c", alone)
    assert [(row.name, row.group_size) for row in report.weights] == [("w", 64), ("v", 64)]
    entries = read_plan(tmp_path / "out" / "plan.json").nodes
    assert entries["a"].reason.endswith(
        "in groups of 64: each output sums 128 weights, one group: no kernel reads a single one"
    )
    wished |= {"target": "tensorrt-rtx", "sm": (89,)}
    report, _ = build(path, data=False, **wished)
    assert layers(report) == dict.fromkeys("abc", ("int4 weights", "int4 weights"))
    assert sorted(row.group_size for row in report.weights) == [32, 64, 64]
