"""Models that are quantized already, built as they are: real tools made them, real runs judge."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

import qcompile
from qcompile.commands import dequantize
from qcompile.errors import DataError, ModelError
from qcompile.numerics.metrics import error_sums
from qcompile.progress import Silent
from qcompile.report.schema import Report
from qcompile.runtime.ort import Session
from qcompile.runtime.rtx_library import is_installed
from tests.assets import asset, needs_assets
from tests.tiny import CONV_WEIGHTS, CONVS, write_net, write_samples

LOOSE = qcompile.Gates(allow_slower=True)
SHAPE = (1, 16, 8, 8)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples as ONNX Runtime's quantizer wants them."""

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self.left = iter(samples)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.left, None)


def samples_in(folder: Path, count: int = 16) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(file)) for file in sorted(folder.glob("*.npz"))[:count]]


def quantized(
    source: Path, out: Path, samples: list[dict[str, np.ndarray]], **options: object
) -> Path:
    quantize_static(source, out, Reader(samples), **{"per_channel": True, **options})
    return out


def build(model: Path, out: Path, calib: Path | None = None, **options: object) -> Report:
    recipe = qcompile.Recipe.model_validate({"gates": LOOSE, **options})
    evaluation = None if calib else out.parent / "data"
    return qcompile.build(model, calib=calib, evaluation=evaluation, output=out, recipe=recipe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net, samples, and the net as ONNX Runtime quantizes it: QDQ and operators on codes."""
    folder = tmp_path_factory.mktemp("requantize")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QCOMPILE_CACHE", str(folder / "cache"))
        net = write_net(folder / "net.onnx", *CONVS, **CONV_WEIGHTS)
        write_samples(folder / "data", x=SHAPE)
        samples = samples_in(folder / "data")
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantized(net, folder / "qdq.onnx", samples, quant_format=QuantFormat.QDQ, **types)
        quantized(net, folder / "qop.onnx", samples, quant_format=QuantFormat.QOperator, **types)
        sixteen = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt8}
        options = {"UseQDQContribOps": True}
        quantized(net, folder / "sixteen.onnx", samples, extra_options=options, **sixteen)
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(folder / "cache"))
    monkeypatch.setattr("qcompile.proof.SHOWN_SECONDS", 0.05)


def outputs(model: Path, folder: Path) -> Iterator[np.ndarray]:
    session = Session(model, optimize=False)
    for feeds in samples_in(folder / "data"):
        yield next(iter(session.run(feeds).values()))


def equal(first: Path, second: Path, folder: Path) -> bool:
    """Say whether two models give the same bits, optimizations off."""
    pairs = zip(outputs(first, folder), outputs(second, folder), strict=True)
    return all(np.array_equal(old, new) for old, new in pairs)


def kinds(path: Path, dtype: type, rank: int | None = None) -> list[bytes]:
    """Return the bytes of all constants of a type, sorted."""
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return sorted(a.tobytes() for a in arrays if a.dtype == dtype and rank in (None, a.ndim))


@pytest.mark.parametrize("name", ["qdq", "qop"])
def test_the_engine_is_the_source_bit_for_bit(folder: Path, name: str) -> None:
    """Without any data to calibrate with: the grids are those of the source."""
    report = build(folder / f"{name}.onnx", folder / f"{name}-out")
    assert report.source is not None
    assert (report.source.changes, report.source.calibrated) == ((), 0)
    assert report.kernels.expected == report.kernels.obtained != {}
    assert equal(folder / f"{name}.onnx", folder / f"{name}-out" / "model.onnx", folder)
    assert report.simulated is not None
    assert report.simulated.outputs[0].sqnr_db is None  # equal: no finite ratio


def test_a_bundle_of_our_own_gives_the_same_codes_and_scales(folder: Path) -> None:
    report = build(folder / "net.onnx", folder / "own", folder / "data")
    assert report.source is None
    again = build(folder / "own" / "model.onnx", folder / "again")
    assert again.source is not None
    assert (again.source.changes, again.source.dropped) == ((), 0)
    first, second = (folder / name / "model.onnx" for name in ("own", "again"))
    assert len(kinds(first, np.int8, 4)) == 2
    assert kinds(first, np.int8, 4) == kinds(second, np.int8, 4)
    for dtype in (np.float32, np.int32):
        assert kinds(first, dtype) == kinds(second, dtype)
    assert equal(first, second, folder)


def test_other_code_types_of_the_target(folder: Path) -> None:
    """Arm's int8 is the same grid; TensorRT's has no zero points, and the loss is told."""
    arm = build(folder / "qdq.onnx", folder / "arm", cpu="arm")
    assert arm.source is not None
    assert arm.source.changes == ()
    assert equal(folder / "qdq.onnx", folder / "arm" / "model.onnx", folder)
    rtx = build(folder / "qdq.onnx", folder / "rtx", target="tensorrt", sm=(87,))
    assert rtx.source is not None
    changes = {change.what.partition(":")[0]: change for change in rtx.source.changes}
    low, high = changes["uint8 to int8"].steps or (0, 0)
    assert 1.0 < (low or 0) <= (high or 0) < 2.01
    assert rtx.delivery is not None
    assert not [f for f in rtx.delivery.findings if f.severity == "error"]
    assert rtx.simulated is not None
    assert 25 < (rtx.simulated.outputs[0].sqnr_db or 0) < 60
    plan = qcompile.read_plan(folder / "rtx" / "plan.json")
    assert {t.type for t in plan.tensors.values()} == {"int8"}
    assert not any(any(t.zero_point) for t in plan.tensors.values())


def test_sixteen_bits_become_eight(folder: Path) -> None:
    report = build(folder / "sixteen.onnx", folder / "sixteen-out")
    assert report.source is not None
    assert {c.what.partition(":")[0] for c in report.source.changes} == {"uint16 to uint8"}
    assert all(c.steps and c.steps[0] and c.steps[0] > 250 for c in report.source.changes)
    assert report.simulated is not None
    assert (report.simulated.outputs[0].sqnr_db or 0) > 25


def halved(source: Path, out: Path) -> Path:
    """Write a model with all its floats, scales of codes included, in float16."""
    model = onnx.load(source)
    graph = model.graph
    half = onnx.TensorProto.FLOAT16
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for port in (*graph.input, *graph.output):
        port.type.tensor_type.elem_type = half
    del graph.value_info[:]
    model.opset_import[0].version = 19  # the first whose codes have scales in float16
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("name", ["qdq", "net"])
def test_half_precision_is_widened_around_the_same_codes(folder: Path, name: str) -> None:
    """float16 models get int8 layers as float32 ones do; ports stay, codes and grids, too."""
    model, data = halved(folder / f"{name}.onnx", folder / f"{name}-half.onnx"), folder / "halves"
    data.mkdir(exist_ok=True)
    for number, sample in enumerate(samples_in(folder / "data")):
        np.savez(data / f"{number}.npz", x=sample["x"].astype(np.float16))
    out = folder / f"{name}-widened"
    report = qcompile.build(model, calib=data, output=out, recipe=qcompile.Recipe(gates=LOOSE))
    assert any("it was widened to float32" in notice for notice in report.notices)
    assert report.kernels.expected == report.kernels.obtained != {}
    assert report.engine.outputs[0].sqnr_db is not None
    assert report.engine.outputs[0].sqnr_db > 30
    assert [str(port.dtype) for port in Session(out / "model.onnx").inputs] == ["float16"]
    if name == "qdq":
        assert report.source is not None
        assert (report.source.changes, report.source.dropped) == ((), 0)
        assert kinds(out / "model.onnx", np.int8, 4) == kinds(model, np.int8, 4)


def test_a_plan_of_a_quantized_source_can_be_given_back(folder: Path) -> None:
    build(folder / "qdq.onnx", folder / "planned")
    plan = folder / "planned" / "plan.json"
    out = folder / "followed"
    qcompile.build(folder / "qdq.onnx", output=out, plan=plan, recipe=qcompile.Recipe(gates=LOOSE))
    first, second = (folder / name / "model.onnx" for name in ("planned", "followed"))
    assert first.read_bytes() == second.read_bytes()


def test_without_a_grid_nodes_stay_in_float_unless_calibrated(folder: Path) -> None:
    """A source that rounds weights and the first input only, as tools for torch write it."""
    model = onnx.load(folder / "qdq.onnx")
    removed = {}
    for node in list(model.graph.node):
        if node.op_type == "QuantizeLinear" and node.input[0] not in ("x", *removed):
            reader = next(n for n in model.graph.node if n.input[:1] == node.output[:1])
            removed[reader.output[0]] = node.input[0]
            model.graph.node.remove(node)
            model.graph.node.remove(reader)
    for node in model.graph.node:
        node.input[:] = [removed.get(name, name) for name in node.input]
        node.output[:] = [removed.get(name, name) for name in node.output]
    for output in model.graph.output:
        new = removed.get(output.name, output.name)
        model.graph.node.append(helper.make_node("Identity", [new], [output.name]))
    onnx.save(model, folder / "partly.onnx")
    alone = build(folder / "partly.onnx", folder / "alone")
    assert alone.plan.nodes.get("int8", 0) == 0
    assert any("give --calib" in notice for notice in alone.notices)
    helped = build(folder / "partly.onnx", folder / "helped", folder / "data")
    assert helped.source is not None
    assert helped.source.calibrated > 0
    assert helped.plan.nodes["int8"] == 2  # a Conv and its Relu


def test_an_input_of_codes_stays_one(folder: Path) -> None:
    """Behind its DequantizeLinear the rest is planned, on the grid that the input has."""
    model = onnx.load(folder / "qdq.onnx")
    first = next(node for node in model.graph.node if node.input[:1] == ["x"])
    reader = next(node for node in model.graph.node if node.input[:1] == first.output[:1])
    reader.input[0] = "x"
    model.graph.node.remove(first)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, folder / "codes.onnx")
    (folder / "bytes").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        np.savez(folder / "bytes" / f"{number}.npz", x=rng.integers(0, 256, SHAPE).astype(np.uint8))
    out, recipe = folder / "codes-out", qcompile.Recipe(gates=LOOSE)
    report = qcompile.build(
        folder / "codes.onnx", evaluation=folder / "bytes", output=out, recipe=recipe
    )
    assert any("come from an input" in notice for notice in report.notices)
    assert report.plan.nodes["int8"] == 4
    assert report.kernels.obtained == {"QLinearConv": 2, "QLinearAdd": 1}
    assert report.simulated is not None
    assert report.simulated.outputs[0].identical


def test_floats_come_back(folder: Path) -> None:
    """The float model is as near to the one before quantization as its weights' codes."""
    for name in ("qdq", "qop"):
        result = dequantize(folder / f"{name}.onnx", folder / f"{name}-float.onnx", force=True)
        assert (result.weights, result.notices) == (2, ())
        floats = onnx.load(folder / f"{name}-float.onnx")
        assert [node.op_type for node in floats.graph.node] == ["Conv", "Relu", "Conv", "Add"]
        names = ("net", f"{name}-float")
        before, after = (np.stack([*outputs(folder / f"{n}.onnx", folder)]) for n in names)
        assert 0 < error_sums(before, after).relative_l2 < 0.01
    with pytest.raises(ModelError, match="float model already"):
        dequantize(folder / "qdq-float.onnx", folder / "none.onnx")
    assert not (folder / "none.onnx").exists()


def write_keras(path: Path) -> Path:
    """Write what tf2onnx 1.17 makes of a Keras CNN that TensorFlow Lite quantized to int8.

    Codes (int8, zero points at will) are moved to channels first and squeezed between Q and DQ,
    rounded anew behind MaxPool; biases are int32 codes on a scale a channel, that of the last layer
    in an Add behind a MatMul; Relus stay in front of grids that begin at 0.
    """
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {"perm": np.array([2, 3])}
    nodes: list[onnx.NodeProto] = []

    def node(op: str, inputs: list[str], **attributes: object) -> str:
        out = f"{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def real(codes: np.ndarray, scale: np.ndarray, axis: int) -> str:
        names = [f"{what}{len(constants)}" for what in ("codes", "scale", "zero")]
        zero = np.zeros(scale.shape, codes.dtype)
        constants.update(zip(names, (codes, scale.astype(np.float32), zero), strict=True))
        return node("DequantizeLinear", names, axis=axis)

    def rounded(value: str, scale: float, zero: int, mover: str = "", **attributes: object) -> str:
        grid = [f"s{scale}", f"z{zero}"]
        constants.update({grid[0]: np.float32(scale), grid[1]: np.int8(zero)})
        codes = node("QuantizeLinear", [value, *grid])
        if mover:
            codes = node(mover, [codes, *(["perm"] if mover == "Squeeze" else [])], **attributes)
        return node("DequantizeLinear", [codes, *grid])

    def weight(shape: tuple[int, ...], axis: int, step: float) -> list[str]:
        scale = rng.uniform(0.5, 1, shape[axis]) * 1e-3
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        bias = rng.integers(-9999, 9999, shape[axis]).astype(np.int32)
        return [real(codes, scale, axis), real(bias, step * scale, 0)]

    x = rounded("x", 0.03, -5, "Transpose", perm=[0, 3, 1, 2])
    x = node("Relu", [node("Conv", [x, *weight((32, 16, 3, 3), 0, 0.03)], pads=[1, 1, 1, 1])])
    x = skip = rounded(x, 0.02, -128)
    x = rounded(node("Conv", [x, *weight((32, 32, 1, 1), 0, 0.02)]), 0.01, 4)
    x = rounded(node("Relu", [node("Add", [x, skip])]), 0.025, -128)
    x = rounded(node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2]), 0.025, -128)
    x = rounded(node("GlobalAveragePool", [x]), 0.015, -128, "Squeeze")
    kernel, bias = weight((32, 10), 1, 0.015)
    rounded(node("Add", [node("MatMul", [x, kernel]), bias]), 0.05, 7)
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "keras",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8, 8, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    write_samples(folder / "data", x=(1, 8, 8, 16))
    return write_keras(folder / "keras.onnx")


def test_a_model_of_keras_keeps_its_grids(keras: Path) -> None:
    out = keras.parent / "cpu"
    report = build(keras, out)
    assert report.source is not None
    assert (report.source.changes, report.source.calibrated, report.source.dropped) == ((), 0, 0)
    assert report.kernels.expected == report.kernels.obtained
    assert sum(report.kernels.obtained.values()) == 5  # two Convs, an Add, the pooling, a product
    assert equal(keras, out / "model.onnx", keras.parent)


def test_a_model_of_keras_moves_to_tensorrt(keras: Path) -> None:
    """Without zero points steps at most double."""
    report = build(keras, keras.parent / "trt", target="tensorrt", sm=(87,))
    assert report.source is not None
    assert report.plan.nodes["int8"] >= 2
    moved = [c for c in report.source.changes if "one without a zero point" in c.what]
    assert moved
    assert all(c.steps and c.steps[1] <= 255 / 127 * 1.001 for c in moved)
    assert report.simulated is not None
    assert (report.simulated.outputs[0].sqnr_db or 0) > 25


def test_other_schemes_start_from_the_values(folder: Path) -> None:
    heard = Silent()
    report = qcompile.build(
        folder / "qdq.onnx",
        evaluation=folder / "data",
        output=folder / "dynamic",
        recipe=qcompile.Recipe(scheme="int8-dynamic", gates=LOOSE),
        progress=heard,
    )
    assert any("roundings of activations are left out" in notice for notice in report.notices)
    assert report.source is not None
    assert report.source.dropped == report.source.activations


def test_static_int8_of_a_float_model_still_needs_data(folder: Path) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        build(folder / "net.onnx", folder / "nothing")


@needs_assets
@pytest.mark.slow
def test_a_real_model_of_another_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """resnet20: the same bits on this CPU; 19 int8 layers and the same decisions on TensorRT."""
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    pixels = np.load(asset("data", "cifar10_dev.npz"))["calib_x"][:40]
    pictures = (pixels.transpose(0, 3, 1, 2) / np.float32(255) - 0.45).astype(np.float32) / 0.25
    (tmp_path / "data").mkdir()
    for number, picture in enumerate(pictures):
        np.savez(tmp_path / "data" / f"{number:03}.npz", input=picture[None].astype(np.float32))
    source = asset("models", "resnet20_cifar10.onnx")
    model = quantized(source, tmp_path / "qdq.onnx", samples_in(tmp_path / "data"))
    same = build(model, tmp_path / "cpu")
    assert same.source is not None
    assert (same.source.changes, same.source.dropped) == ((), 0)
    assert same.simulated is not None
    assert same.simulated.outputs[0].sqnr_db is None
    if is_installed() is None:
        pytest.skip("TensorRT for RTX is not installed (pip install 'qcompile[tensorrt-rtx]')")
    moved = build(model, tmp_path / "rtx", target="tensorrt-rtx", sm=(86,))
    assert moved.delivery is not None
    assert [layer.obtained for layer in moved.delivery.layers].count("int8") == 19
    assert moved.simulated is not None
    assert moved.simulated.agreements[0].share >= 0.95
