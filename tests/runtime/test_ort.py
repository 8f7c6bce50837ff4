import subprocess
import sys
import threading

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.errors import EngineError, RuntimeMissingError
from qcompile.runtime import ort
from qcompile.runtime.ort import Session, kernel_nodes, kernels, save_optimized
from tests.assets import asset, needs_assets

HEAD = '<ir_version: 10, opset_import: ["" : 21, "my.domain" : 1]>'


def model(text):
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def matmul(seed=0, side=64):
    """Y = X W, W (side, side)."""
    m = model(f"agraph (float[N, {side}] X) => (float[N, {side}] Y) {{ Y = MatMul(X, W) }}")
    weight = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    value = next(v for node in m.graph for v in node.inputs if v.name == "W")
    value.const_value = ir.tensor(weight, name="W")
    value.shape, value.dtype = ir.Shape(weight.shape), ir.DataType.FLOAT
    m.graph.register_initializer(value)
    return m, weight


X = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)


@pytest.mark.parametrize("optimize", [True, False])
def test_run_computes_what_the_graph_says(optimize):
    m, weight = matmul()
    session = Session(m, optimize=optimize)
    np.testing.assert_allclose(session.run({"X": X})["Y"], X @ weight, rtol=1e-4, atol=1e-5)


def test_ports():
    session = Session(
        model(
            "g (float16[N, 4, 2] a, int64[?, 3] b, string[2] s, float c) => "
            "(float16[N, 4, 2] y, int64[?, 3] z, string[2] t, float u) "
            "{ y = Identity(a) z = Identity(b) t = Identity(s) u = Identity(c) }"
        )
    )
    assert [(p.name, p.dtype, p.shape) for p in session.inputs] == [
        ("a", np.float16, ("N", 4, 2)),
        ("b", np.int64, (None, 3)),
        ("s", np.dtype(object), (2,)),
        ("c", np.float32, None),
    ]
    assert [p.name for p in session.outputs] == ["y", "z", "t", "u"]
    feeds = {
        "a": np.ones((1, 4, 2), np.float16),
        "b": np.ones((2, 3), np.int64),
        "s": np.array(["x", "y"], object),
        "c": np.array(2, np.float32),
    }
    outputs = session.run(feeds)
    assert outputs["t"].tolist() == ["x", "y"]
    assert outputs["u"].shape == ()
    assert list(session.run(feeds, ["z", "y"])) == ["z", "y"]


def test_all_ways_to_hand_over_weights_agree(tmp_path, monkeypatch):
    m, weight = matmul()
    ir.save(m, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    monkeypatch.chdir(tmp_path)
    external = ir.load("m.onnx")  # a relative path: its weights name no folder
    expected = Session(tmp_path / "m.onnx").run({"X": X})["Y"]
    np.testing.assert_allclose(expected, X @ weight, rtol=1e-4, atol=1e-5)
    for graph, limit in ((m, 1 << 30), (m, 10), (external, 1 << 30)):
        monkeypatch.setattr(ort, "EMBEDDED_BYTES", limit)
        np.testing.assert_array_equal(Session(graph).run({"X": X})["Y"], expected)
    assert isinstance(external.graph.initializers["W"].const_value, ir.ExternalTensor)
    assert not isinstance(m.graph.initializers["W"].const_value, ir.ExternalTensor)


def test_weights_of_two_folders(tmp_path):
    graphs = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        ir.save(matmul(seed)[0], folder / "m.onnx", external_data="d", size_threshold_bytes=0)
        graphs.append(ir.load(folder / "m.onnx"))
    m = model("g (float[N, 64] X) => (float[N, 64] Y) { h = MatMul(X, A) Y = MatMul(h, B) }")
    for name, source in zip("AB", graphs, strict=True):
        value = next(v for node in m.graph for v in node.inputs if v.name == name)
        value.const_value = source.graph.initializers["W"].const_value
        value.const_value.name = name
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape((64, 64))
        m.graph.register_initializer(value)
    expected = X @ matmul(0)[1] @ matmul(1)[1]
    np.testing.assert_allclose(Session(m).run({"X": X})["Y"], expected, rtol=1e-3, atol=1e-3)


def test_run_is_thread_safe():
    m, weight = matmul()
    session = Session(m)
    wrong = []

    def work(seed):
        x = np.random.default_rng(seed).normal(size=(5, 64)).astype(np.float32)
        expected = x @ weight
        found = [session.run({"X": x})["Y"] for _ in range(50)]
        wrong.extend(y for y in found if not np.allclose(y, expected, rtol=1e-3, atol=1e-4))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = my.domain.Foo(x)", "no operator my.domain::Foo"),
        ("y = NoSuchOp(x)", "no operator ai.onnx::NoSuchOp"),
        ("y = Add(x, missing)", "missing"),
        ("y = Conv(x)", "Conv"),
    ],
)
def test_load_errors_say_what_is_wrong(body, words):
    with pytest.raises(EngineError) as caught:
        Session(model(f"g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}"))
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert "onnxruntime_src" not in text


def test_sequences_are_refused():
    with pytest.raises(EngineError, match=r"'y' is a seq\(tensor\(float\)\)"):
        Session(model("g (float[4] x) => (seq(float[4]) y) { y = SequenceConstruct(x) }"))


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(EngineError, match=r"absent\.onnx"):
        Session(tmp_path / "absent.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"not a model" * 9)
    with pytest.raises(EngineError, match=r"junk\.onnx: .*parsing failed"):
        Session(tmp_path / "junk.onnx")
    with pytest.raises(EngineError, match=r"junk\.onnx"):
        save_optimized(tmp_path / "junk.onnx", tmp_path / "out.onnx")


def test_run_errors_name_the_input_or_the_node():
    session = Session(
        model("g (float[N, 4] a, float[M, 4] b) => (float[K, 4] y) { [adder] y = Add(a, b) }")
    )
    a, b = np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32)
    for feeds, words in (
        ({"a": a}, "input 'b' is missing"),
        ({"a": a, "b": a, "c": a}, "no input 'c'"),
        ({"a": a, "b": a.astype(np.float64)}, "input 'b' must be float32, not float64"),
        ({"a": a, "b": a[:, :3]}, "b"),
        ({"a": a, "b": b}, "Add"),
    ):
        with pytest.raises(EngineError) as caught:
            session.run(feeds)
        assert words in str(caught.value)
        assert "onnxruntime_src" not in str(caught.value)
    with pytest.raises(EngineError, match="nowhere"):
        session.run({"a": a, "b": a}, ["nowhere"])


def test_onnx_runtime_prints_nothing(capfd):
    session = Session(model("g (float[N] a, float[M] b) => (float[K] y) { y = Add(a, b) }"))
    with pytest.raises(EngineError):
        session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_missing_onnxruntime_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'qcompile\[cpu\]'"):
        Session(matmul()[0])


def test_importing_the_package_loads_no_runtime():
    code = (
        "import sys, qcompile, qcompile.runtime.ort, qcompile.runtime.host, qcompile.compare.gates;"
        "sys.exit(any(m in sys.modules for m in ('onnxruntime', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


QDQ_CONV = """
qdq (float[1, 4, 8, 8] X) => (float[1, 16, 8, 8] Y)
<float xs = {0.05}, uint8 xz = {128}, float ws = {0.01}, int8 wz = {0},
 float ys = {0.04}, uint8 yz = {0}, float bs = {0.0005}, int32 bz = {0}>
{
  xq = QuantizeLinear(X, xs, xz)
  x = DequantizeLinear(xq, xs, xz)
  w = DequantizeLinear(W, ws, wz)
  b = DequantizeLinear(B, bs, bz)
  [the_conv] c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w, b)
  r = Relu(c)
  yq = QuantizeLinear(r, ys, yz)
  Y = DequantizeLinear(yq, ys, yz)
}
"""


def qdq_conv():
    m = model(QDQ_CONV)
    rng = np.random.default_rng(0)
    arrays = {
        "W": rng.integers(-127, 128, (16, 4, 3, 3)).astype(np.int8),
        "B": rng.integers(-900, 900, 16).astype(np.int32),
    }
    for name, array in arrays.items():
        value = next(v for node in m.graph for v in node.inputs if v and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.dtype, value.shape = ir.DataType(value.const_value.dtype), ir.Shape(array.shape)
        m.graph.register_initializer(value)
    return m


def test_kernels_of_a_qdq_conv():
    counted = kernels(qdq_conv())
    convs = {op: n for op, n in counted.items() if "Conv" in op}
    assert sum(convs.values()) == 1
    assert next(iter(convs)).endswith("::QLinearConv")
    assert "ai.onnx::Relu" not in counted
    assert counted["ai.onnx::QuantizeLinear"] == 1


def test_int8_kernels_keep_the_name_of_their_node():
    names = {k.name: k.op for k in kernel_nodes(qdq_conv())}
    assert names["the_conv"].endswith("::QLinearConv")


def test_without_optimizations_each_node_computes_what_the_file_says():
    # Between DequantizeLinear and QuantizeLinear, ONNX Runtime's optimizer quantizes float weights.
    m = model(
        "g (float[1, 2, 4, 4] X) => (float[1, 2, 4, 4] Y)"
        " <float s = {0.02}, uint8 z = {128}, float fine = {0.01}, uint8 mid = {128},"
        " float[2, 2, 1, 1] W = {0.3337, 0.11111, -1.0, 0.7773}> {"
        " xq = QuantizeLinear(X, s, z) x = DequantizeLinear(xq, s, z)"
        " c = Conv(x, W)"
        " q = QuantizeLinear(c, fine, mid) Y = DequantizeLinear(q, fine, mid) }"
    )
    codes = np.random.default_rng(0).integers(-30, 30, (1, 2, 4, 4))
    x = codes.astype(np.float32) * np.float32(0.02)
    weight = np.array([[0.3337, 0.11111], [-1.0, 0.7773]])
    exact = np.einsum("oc,nchw->nohw", weight, x.astype(np.float64))
    plain = Session(m, optimize=False).run({"X": x})["Y"]
    np.testing.assert_allclose(plain, exact, atol=0.0101 / 2)
    assert "ai.onnx::Conv" not in kernels(m)
    assert not np.array_equal(Session(m).run({"X": x})["Y"], plain)


def test_kernels_count_subgraphs():
    text = """
    g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] a) { a = Sin(x) },
                  else_branch = e () => (float[2] b) { b = Cos(x) }>
    }"""
    counted = kernels(model(text))
    assert (counted["ai.onnx::If"], counted["ai.onnx::Sin"], counted["ai.onnx::Cos"]) == (1, 1, 1)


def test_save_optimized_with_and_without_external_weights(tmp_path):
    m, weight = matmul()
    save_optimized(m, tmp_path / "a.onnx")
    save_optimized(m, tmp_path / "b.onnx", embedded_bytes=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "b.onnx.data"]
    for name in ("a.onnx", "b.onnx"):
        found = Session(tmp_path / name, optimize=False).run({"X": X})["Y"]
        np.testing.assert_allclose(found, X @ weight, rtol=1e-4, atol=1e-5)


@needs_assets
def test_a_real_model_gives_the_same_with_and_without_optimizations():
    path = asset("models", "dscnn_kws.onnx")
    x = np.load(asset("data", "kws_mfcc.npz"), allow_pickle=False)["eval_x"][:8]
    plain = Session(path, optimize=False).run({"input": x})["probs"]
    fast = Session(path).run({"input": x})["probs"]
    assert plain.shape == (8, 12)
    np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-5)
