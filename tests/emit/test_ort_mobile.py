"""ORT-format files by onnxruntime's own converter: converted, read back, run, compared."""

import functools
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from qcompile.emit import ort_mobile
from qcompile.emit.ort_mobile import MODEL, OPERATORS, TYPES, computes_in_halves, write_ort
from qcompile.errors import EngineError, OutputError, RuntimeMissingError
from qcompile.runtime.ort import Session, as_on_arm, kernel_nodes, kernels, replays
from tests.assets import asset, needs_assets
from tests.cli.process import run

X = np.random.default_rng(1).normal(size=(1, 16, 8, 8)).astype(np.float32)
STEP = 0.05
"""The scale of what the nets make."""


def net(activation="int8", kind="float", opset=17):
    """Q, convolution and Relu, convolution, DQ; both convolutions on codes."""
    middle, low = {"int8": (0, -128), "uint8": (128, 0)}[activation]
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g ({kind}[1, 16, 8, 8] X) => ({kind}[1, 16, 8, 8] Y)
    <{kind} xs = {{0.05}}, {activation} xz = {{{middle}}}, {kind} ws = {{0.002}}, int8 wz = {{0}},
     {kind} ys = {{0.04}}, {activation} yz = {{{low}}}>
    {{
      xq = QuantizeLinear(X, xs, xz)
      x = DequantizeLinear(xq, xs, xz)
      w = DequantizeLinear(W, ws, wz)
      [first] c = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(x, w)
      r = Relu(c)
      rq = QuantizeLinear(r, ys, yz)
      y = DequantizeLinear(rq, ys, yz)
      v = DequantizeLinear(V, ws, wz)
      [second] d = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(y, v)
      dq = QuantizeLinear(d, xs, xz)
      Y = DequantizeLinear(dq, xs, xz)
    }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in "WV":
        codes = rng.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(codes, name))
    return model


def saved(folder, model, name="model.onnx"):
    path = folder / name
    onnx.save(model, path)
    return path


def half_net():
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float16[1, 16, 8, 8] X) => (float16[1, 16, 8, 8] Y)
    { c = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(X, W) Y = Relu(c) }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    return model


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Convert the net of some type in some style, once; give the folder of both and what came."""

    @functools.cache
    def files(activation, style):
        folder = tmp_path_factory.mktemp(f"{activation}-{style}")
        return folder, write_ort(saved(folder, net(activation)), folder, style)

    return files


@pytest.mark.parametrize("activation", ["int8", "uint8"])
def test_fixed_holds_int8_kernels_of_the_models_own_types(converted, activation):
    folder, files = converted(activation, "Fixed")
    path = folder / "model.onnx"
    assert files.kernels["com.microsoft::QLinearConv"] == 2
    assert not {"ai.onnx::Conv", "ai.onnx::Relu"} & set(files.kernels)
    text = files.types.read_text("utf-8")
    assert f'com.microsoft;1;QLinearConv{{"inputs": {{"0": ["{activation}_t"]}}}}' in text
    simulated = Session(path, optimize=False).run({"X": X})["Y"]
    found = Session(files.model).run({"X": X})["Y"]
    assert np.abs(found - simulated).max() <= 1.01 * STEP
    assert np.mean(found != simulated) < 0.01
    assert np.abs(simulated).max() > 20 * STEP, "the net must say something"


def test_runtime_keeps_the_graph_and_saves_the_rewrites(converted):
    folder, files = converted("int8", "Runtime")
    assert files.kernels["ai.onnx::Conv"] == 2
    simulated = Session(folder / "model.onnx", optimize=False).run({"X": X})["Y"]
    np.testing.assert_array_equal(Session(files.model).run({"X": X})["Y"], simulated)
    assert kernels(files.model)["ai.onnx::Conv"] == 2
    assert "QLinearConv" in files.operators.read_text("utf-8"), "a minimal build needs both forms"


def test_saved_rewrites_are_applied_where_that_is_asked_for(converted):
    folder, files = converted("int8", "Runtime")
    simulated = Session(folder / "model.onnx", optimize=False).run({"X": X})["Y"]
    found = Session(files.model, replay=True).run({"X": X})["Y"]
    assert np.abs(found - simulated).max() <= 1.01 * STEP
    nodes = {node.op for node in kernel_nodes(files.model, replay=True)}
    assert "com.microsoft::QLinearConv" in nodes
    assert "ai.onnx::Conv" not in nodes


def test_the_same_model_gives_the_same_files_but_for_the_order_inside(converted, tmp_path):
    # ONNX Runtime writes parts of the flatbuffer in the order of addresses in memory.
    again = tmp_path, write_ort(saved(tmp_path, net(), "again.onnx"), tmp_path, "Fixed")
    written = []
    for folder, files in (converted("int8", "Fixed"), again):
        (source,) = folder.glob("*.onnx")
        there = sorted(p.name for p in folder.iterdir())
        assert there == sorted([source.name, MODEL, OPERATORS, TYPES])
        assert files.sizes() == {n: (folder / n).stat().st_size for n in (MODEL, OPERATORS, TYPES)}
        assert str(folder).encode() not in files.model.read_bytes()
        made = Session(files.model).run({"X": X})["Y"].tobytes()
        written.append(
            (
                files.operators.read_text(),
                files.types.read_text(),
                files.kernels,
                files.sizes(),
                made,
            )
        )
    assert written[0] == written[1]


@pytest.mark.parametrize(("activation", "style"), [("uint8", "Fixed"), ("int8", "Runtime")])
def test_operators_are_those_that_the_converter_lists_itself(
    converted, tmp_path, activation, style
):
    folder, files = converted(activation, style)
    out = tmp_path / "own"
    converter = "onnxruntime.tools.convert_onnx_models_to_ort"
    command = [sys.executable, "-m", converter, folder / "model.onnx"]
    options = ["--output_dir", out, "--optimization_style", style, "--target_platform", "arm"]
    subprocess.run([*command, *options], capture_output=True, check=True)
    own = next(out.glob("*.config")).read_text("utf-8").splitlines()
    ours = files.operators.read_text("utf-8").splitlines()
    assert ours[1:] == [line for line in own if not line.startswith("#")]
    assert ours[0].startswith("# model.ort, converted by onnxruntime ")


def test_the_converter_and_this_process_do_not_touch_each_other(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL", "disable")
    files = write_ort(saved(tmp_path, net()), tmp_path, "Fixed")
    assert files.kernels["com.microsoft::QLinearConv"] == 2
    assert capfd.readouterr() == ("", "")
    assert "onnxruntime.tools.convert_onnx_models_to_ort" not in sys.modules


def test_weights_beside_the_model_end_up_inside(tmp_path):
    model = ir.from_proto(net())
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data", size_threshold_bytes=0)
    files = write_ort(path, tmp_path, "Fixed")
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    for file in path.parent.iterdir():
        file.unlink()
    assert Session(files.model).run({"X": X})["Y"].shape == X.shape


SLICED = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1, 4, 8, 8] X) => (float[1, 4, 4, 4] Y)
<float s = {0.05}, int8 z = {3}, int64[2] start = {0, 0}, int64[2] end = {8, 8},
 int64[2] axes = {2, 3}, int64[2] steps = {2, 2}>
{
  q = QuantizeLinear(X, s, z)
  x = DequantizeLinear(q, s, z)
  t = Slice(x, start, end, axes, steps)
  r = Sin(t)
  rq = QuantizeLinear(r, s, z)
  Y = DequantizeLinear(rq, s, z)
}"""


def test_int8_that_moves_through_a_slice_loads_on_x86_too(tmp_path):
    # Of such a graph ONNX Runtime 1.31 makes one on x86, of opset 21, that it then refuses itself.
    path = saved(tmp_path, onnx.parser.parse_model(SLICED))
    x = X[:, :4]
    simulated = Session(path, optimize=False).run({"X": x})["Y"]
    for style in ("Fixed", "Runtime"):
        found = Session(write_ort(path, tmp_path, style).model).run({"X": x})["Y"]
        np.testing.assert_allclose(found, simulated, atol=1.01 * STEP)


def test_int8_stays_int8_where_the_session_is_told_to_be_arm(tmp_path):
    path = saved(tmp_path, onnx.parser.parse_model(SLICED))
    x = X[:, :4]
    simulated = Session(path, optimize=False).run({"X": x})["Y"]
    found = Session(path, provider=as_on_arm(path)).run({"X": x})["Y"]
    np.testing.assert_allclose(found, simulated, atol=1.01 * STEP)
    uint8 = saved(tmp_path, net("uint8"), "uint8.onnx")
    assert kernel_nodes(uint8, provider=as_on_arm(uint8)) == kernel_nodes(uint8)
    path = saved(tmp_path, net())
    nodes = kernel_nodes(path, provider=as_on_arm(path))
    named = {node.name: node.op for node in nodes}
    assert named["first"] == "com.microsoft::QLinearConv"


PRODUCT = """<ir_version: 9, opset_import: ["" : 19]>
g (float[4, 8] X) => (float[4, 8] Y)
<float s = {0.05}, uint8 z = {128}>
{
  q = QuantizeLinear(X, s, z)
  x = DequantizeLinear(q, s, z)
  w = DequantizeLinear(W, s, z)
  m = MatMul(x, w)
  mq = QuantizeLinear(m, s, z)
  Y = DequantizeLinear(mq, s, z)
}"""


def test_rewrites_that_cannot_be_applied_are_known_to_be_such(converted, tmp_path):
    # ONNX Runtime 1.31 saves no produced node for a MatMul, and then misses it.
    model = onnx.parser.parse_model(PRODUCT)
    codes = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(codes, "W"))
    path = saved(tmp_path, model)
    file = write_ort(path, tmp_path, "Runtime").model
    found = Session(file, replay=replays(file)).run({"X": X[0, :4, 0]})["Y"]
    simulated = Session(path, optimize=False).run({"X": X[0, :4, 0]})["Y"]
    np.testing.assert_allclose(found, simulated, atol=1.01 * STEP)
    if not replays(file):
        with pytest.raises(EngineError, match="Not enough produced nodes"):
            Session(file, replay=True)
    assert replays(converted("int8", "Runtime")[1].model)
    assert not replays(path), "an ONNX file has saved nothing"


def test_halves_are_seen(tmp_path):
    assert computes_in_halves(ir.from_proto(half_net()))
    assert not computes_in_halves(ir.from_proto(net()))


# -- bad input ------------------------------------------------------------------------------------


def refused(path, folder, words, kind=EngineError):
    before = sorted(folder.iterdir())
    with pytest.raises(kind) as caught:
        write_ort(path, folder, "Fixed")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before


def test_float16_is_refused_since_the_converter_would_undo_it(tmp_path):
    path = saved(tmp_path, half_net())
    refused(path, tmp_path, "model.onnx: onnxruntime's converter puts 2 casts to float32")


def test_casts_of_the_models_own_are_fine(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float16[4] X) => (float16[4] Y)
    { a = Cast<to = 1>(X) b = Sin(a) Y = Cast<to = 10>(b) }"""
    files = write_ort(saved(tmp_path, onnx.parser.parse_model(text)), tmp_path, "Fixed")
    assert files.kernels["ai.onnx::Cast"] == 2


def test_models_beyond_a_flatbuffer_are_refused_before_any_work(tmp_path, monkeypatch):
    path = saved(tmp_path, net())
    monkeypatch.setattr(ort_mobile, "FLATBUFFER_BYTES", 4000)
    monkeypatch.setattr(ort_mobile, "_convert", lambda *_: pytest.fail("must not be reached"))
    refused(path, tmp_path, "an .ort file ends at 2.1 GB")


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"not a model" * 9)
    refused(tmp_path / "junk.onnx", tmp_path, "junk.onnx: ")
    refused(tmp_path / "absent.onnx", tmp_path, "absent.onnx: ")


def test_what_onnx_runtime_refuses_is_named(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 17, "my.domain" : 1]>
    g (float[4] X) => (float[4] Y) { Y = my.domain.Foo(X) }"""
    path = saved(tmp_path, onnx.parser.parse_model(text))
    refused(path, tmp_path, "model.onnx: onnxruntime's converter failed: ONNX Runtime has no")


def test_a_folder_that_cannot_be_written(tmp_path):
    path = saved(tmp_path, net())
    with pytest.raises(OutputError, match=r"absent: cannot be written"):
        write_ort(path, tmp_path / "absent", "Fixed")


def test_without_onnx_runtime(tmp_path, monkeypatch):
    path = saved(tmp_path, net())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(path, tmp_path, "pip install 'qcompile[cpu]'", RuntimeMissingError)


# -- what qcompile builds for ARM -----------------------------------------------------------------


@needs_assets
@pytest.mark.slow
def test_a_real_network_for_arm_keeps_its_int8_kernels(tmp_path):
    data = np.load(asset("data", "kws_mfcc.npz"), allow_pickle=False)
    calib = tmp_path / "calib"
    calib.mkdir()
    for number, x in enumerate(data["calib_x"][:48]):
        np.savez(calib / f"{number:03d}.npz", input=x[None])
    model, slower = asset("models", "dscnn_kws.onnx"), "--allow-slower"  # int8 by int8, on x86
    done = run(
        tmp_path,
        "build",
        model,
        "--cpu",
        "arm",
        "--calib",
        calib,
        slower,
        "-o",
        tmp_path / "bundle",
    )
    assert done.code == 0, done.err
    engine = tmp_path / "bundle" / "model.onnx"
    files = write_ort(engine, tmp_path, "Fixed")
    assert files.kernels["com.microsoft::QLinearConv"] == 9
    assert "int8_t" in files.types.read_text("utf-8")
    assert "uint8_t" not in files.types.read_text("utf-8")
    x = data["eval_x"][:32]
    simulated = Session(engine, optimize=False).run({"input": x})["probs"]
    found = Session(files.model).run({"input": x})["probs"]
    assert np.abs(found - simulated).max() < 0.05
    assert np.mean(found.argmax(1) == simulated.argmax(1)) > 0.95
