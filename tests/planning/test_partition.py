"""How graphs split between providers: golden cases, and what ONNX Runtime itself answers."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompile.errors import RuntimeMissingError
from qcompile.planning.demands import shipped_operators
from qcompile.planning.node_units import node_units
from qcompile.planning.partition import predict
from qcompile.runtime.ort import kernels
from qcompile.targets.providers import PROVIDERS
from tests.assets import asset, needs_assets


class Net:
    """Writes a QDQ net as text, one line a node; every value has the scale 0.05."""

    def __init__(self, activation="int8", weight="int8", channels=0):
        self.activation, self.weight, self.channels = activation, weight, channels
        self.lines, self.weights = [], {}

    def constant(self, name, array):
        self.weights[name] = np.asarray(array)
        return name

    def zero(self, low=False):
        middle, bottom = {"int8": (0, -128), "uint8": (128, 0)}[self.activation]
        number = bottom if low else middle
        name = "low" if low else "middle"
        return self.constant(name, np.array(number, self.activation))

    def scale(self):
        return self.constant("scale", np.float32(0.05))

    def pair(self, value, out, low=False):
        end = f"({{}}, {self.scale()}, {self.zero(low)})"
        self.lines.append(f"[q_{out}] {out}_q = QuantizeLinear{end.format(value)}")
        self.lines.append(f"[dq_{out}] {out} = DequantizeLinear{end.format(out + '_q')}")
        return out

    def node(self, name, op, *inputs, **attributes):
        text = ", ".join(f"{k} = {v}" for k, v in attributes.items())
        attributes_text = f"<{text}>" if text else ""
        self.lines.append(f"[{name}] {name}_y = {op}{attributes_text}({', '.join(inputs)})")
        return f"{name}_y"

    def codes(self, name, array, axis):
        size = array.shape[axis] if self.channels else None
        scale = self.constant(
            f"{name}_s", np.full(size, 0.01, np.float32) if size else np.float32(0.01)
        )
        zero = self.constant(f"{name}_z", np.zeros(size or (), self.weight))
        self.constant(f"{name}_c", array)
        self.lines.append(
            f"[dq_{name}] {name} = DequantizeLinear<axis = {axis}>({name}_c, {scale}, {zero})"
        )
        return name

    def conv(self, name, x, channels=8):
        rng = np.random.default_rng(len(self.lines))
        low = 0 if self.weight == "uint8" else -9
        w = self.codes(
            f"{name}_w", rng.integers(low, 9, (channels, channels, 3, 3)).astype(self.weight), 0
        )
        size = channels if self.channels else ()
        scale = self.constant(f"{name}_bs", np.full(size, 0.0005, np.float32))
        zero = self.constant(f"{name}_bz", np.zeros(size, np.int32))
        bias = self.constant(f"{name}_bc", rng.integers(-99, 99, channels).astype(np.int32))
        self.lines.append(
            f"[dq_{name}_b] {name}_b = DequantizeLinear<axis = 0>({bias}, {scale}, {zero})"
        )
        return self.node(
            name, "Conv", x, w, f"{name}_b", pads="[1, 1, 1, 1]", kernel_shape="[3, 3]"
        )

    def model(self, end, opset=17, batch="1", shape="8, 8, 8"):
        body = "\n".join([*self.lines, f"[last] y = Identity({end})"])
        head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
        text = f"{head}\ng (float[{batch}, {shape}] x) => (float[] y) {{\n{body}\n}}"
        proto = onnx.parser.parse_model(text)
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        proto.graph.initializer.extend(
            numpy_helper.from_array(a, n) for n, a in self.weights.items()
        )
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)


def residual(**options):
    """Q, two convolutions, Add, MaxPool, GlobalAveragePool, DQ."""
    net = Net(**options)
    x = net.pair("x", "a")
    first = net.pair(net.node("relu", "Relu", net.conv("first", x)), "b", low=True)
    second = net.pair(net.conv("second", first), "c")
    total = net.pair(net.node("add", "Add", second, first), "d")
    pooled = net.pair(
        net.node("pool", "MaxPool", total, kernel_shape="[2, 2]", strides="[2, 2]"), "e"
    )
    return net, net.pair(net.node("mean", "GlobalAveragePool", pooled), "f")


def split(name, *, opset=17, batch="1", fix=None, **options):
    net, end = residual(**options)
    return predict(net.model(end, opset, batch), PROVIDERS[name], batch=fix)


def test_the_cpu_takes_everything_in_one_piece():
    found = split("cpu")
    assert (found.units, found.taken, found.pieces) == (8, 8, (8,))
    assert (found.crossings, found.fallbacks, found.notes) == (0, {}, ())


@pytest.mark.parametrize("channels", [0, 1])
def test_xnnpack_takes_int8_convolutions_and_pools(channels):
    found = split("xnnpack", channels=channels)
    assert found.pieces == (2, 1)
    assert found.fallbacks == {
        "q_a": "xnnpack has no QuantizeLinear",
        "add": "xnnpack has no Add on codes",
        "mean": "xnnpack has no GlobalAveragePool on codes",
        "dq_f": "xnnpack has no DequantizeLinear",
        "last": "xnnpack has no Identity",
    }
    assert found.crossings == 5  # into the first, both to the Add, into the pool, out of it


def test_xnnpack_takes_no_uint8_with_int8():
    found = split("xnnpack", activation="uint8")
    assert found.pieces == (1,)
    assert found.fallbacks["first"].startswith("codes are uint8 with int8 weights; xnnpack takes")
    assert split("xnnpack", activation="uint8", weight="uint8").pieces == (2, 1)


@pytest.mark.parametrize("channels", [0, 1])
def test_nnapi_takes_uint8(channels):
    found = split("nnapi", activation="uint8", channels=channels)
    assert found.pieces == (4, 2)
    assert found.fallbacks == {
        "pool": "nnapi has no MaxPool on codes",
        "mean": "nnapi has no GlobalAveragePool on codes",
    }
    assert found.crossings == 2


def test_nnapi_takes_no_int8_activations():
    found = split("nnapi")
    assert found.taken == 0
    assert found.fallbacks["q_a"] == "its codes are int8, not uint8"
    assert found.fallbacks["first"].startswith(
        "codes are int8 with int8 weights; nnapi takes uint8"
    )
    assert found.fallbacks["last"] == "alone it is not worth the way there"


def test_qnn_takes_all_but_the_ends():
    found = split("qnn", activation="uint8", channels=1)
    assert found.pieces == (7,)
    assert found.fallbacks == {"q_a": "codes of inputs and outputs are made on the CPU"}


def test_core_ml_sees_single_nodes_and_no_codes():
    found = split("coreml")
    assert found.units > 8, "Q and DQ count for themselves"
    assert found.reasons()[0][0] == "coreml has no DequantizeLinear"
    assert found.fallbacks["first"] == "input 2 is not constant"
    assert "add" not in found.fallbacks, "float between Q and DQ: it would be taken, alone"


def test_sizes_must_be_fixed_and_the_note_says_so():
    open_ = split("nnapi", activation="uint8", batch="N")
    assert open_.taken == 0
    assert any("sizes that are not fixed" in note for note in open_.notes)
    assert split("nnapi", activation="uint8", batch="N", fix=1).pieces == (4, 2)
    assert split("xnnpack", batch="N").pieces == (2, 1), "XNNPACK leaves the batch open"


def test_operators_that_are_too_new_fall_back():
    def net(opset):
        net = Net("uint8")
        flat = net.node(
            "flat", "Reshape", net.pair("x", "a"), net.constant("to", np.array([1, 512]))
        )
        return predict(net.model(net.pair(flat, "b"), opset), PROVIDERS["nnapi"])

    assert net(19).fallbacks == {}
    assert net(21).fallbacks["flat"] == "Reshape of opset 21: known up to 19"
    assert "q_a" in net(21).fallbacks


def test_the_graph_is_left_alone():
    net, end = residual()
    model = net.model(end)
    before = ir.to_proto(model).SerializeToString()
    for provider in PROVIDERS.values():
        predict(model, provider, batch=1)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_float_activation_goes_with_its_convolution():
    text = """
    g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
      [conv] c = Conv<kernel_shape = [1, 1]>(x, w) [relu] r = Relu(c) [other] y = Relu(r) }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>{text}')
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w"))
    found = predict(ir.from_proto(model), PROVIDERS["xnnpack"])
    assert found.fallbacks == {"other": "xnnpack has no Relu"}


@pytest.mark.parametrize(("shape", "why"), [("2, 4, 8, 8", ""), ("2, 4, 8", "rank 3: takes 4")])
def test_core_ml_takes_the_norm_of_a_picture(shape, why):
    text = f"""
    g (float[{shape}] x) => (float[] y) {{
      [norm] y = BatchNormalization(x, k, k, k, k) }}"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>{text}')
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "k"))
    found = predict(ir.from_proto(model), PROVIDERS["coreml"])
    assert found.fallbacks == ({"norm": why} if why else {})


@pytest.mark.parametrize("bias", ["int32", "uint8"])
def test_a_norm_is_a_unit_where_its_bias_is_int32(bias):
    net = Net("uint8", weight="uint8")
    x = net.pair("x", "a")
    scale = net.codes("k", np.ones(8, np.uint8), 0)
    zero = net.constant("none", np.zeros((), bias))
    net.constant("b_c", np.ones(8, bias))
    net.lines.append(f"[dq_b] b = DequantizeLinear(b_c, {net.scale()}, {zero})")
    made = net.pair(net.node("norm", "LayerNormalization", x, scale, "b"), "z")
    (unit,) = [u for u in node_units(net.model(made)) if u.node.name == "norm"]
    assert unit.quantized == (bias == "int32")
    assert unit.broken == ("" if unit.quantized else "its bias is not int32 codes")


@pytest.mark.parametrize(
    ("attributes", "axes", "why"),
    [
        ({}, [], ""),
        ({"mode": '"edge"'}, [], ""),
        ({"mode": '"wrap"'}, [], "mode=wrap: takes constant or reflect or edge"),
        ({}, ["", "axes"], "it has 4 inputs: takes 3"),
    ],
)
def test_qnn_takes_pads_of_all_axes_and_their_ends(attributes, axes, why):
    net = Net("uint8")
    net.constant("by", np.array([1, 1] if axes else [0, 0, 1, 1] * 2))
    net.constant("axes", np.array([2]))
    pad = net.node("pad", "Pad", net.pair("x", "a"), "by", *axes, **attributes)
    found = predict(net.model(net.pair(pad, "z"), 19), PROVIDERS["qnn"])
    assert found.fallbacks.get("pad", "") == why


def test_notes_of_the_shipped_lists_are_plain_text():
    listed = shipped_operators("coreml_supported_mlprogram_ops.md")
    assert "resize_op_builder.cc" in listed["ai.onnx:resize"]
    assert not any("](" in note for note in listed.values())


def test_nodes_inside_control_flow_are_mentioned():
    text = """g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] a) { a = Sin(x) },
                  else_branch = e () => (float[2] b) { b = Cos(x) }> }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>{text}')
    found = predict(ir.from_proto(model), PROVIDERS["nnapi"])
    assert found.fallbacks == {"If #0": "nnapi has no If"}
    assert "2 nodes inside If, Loop or Scan are not looked at" in found.notes


def test_without_onnx_runtime_the_lists_are_missing(monkeypatch):
    shipped_operators.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError, match=r"nnapi_supported_ops.md is not there"):
        shipped_operators("nnapi_supported_ops.md")


# -- node units, against the kernels that ONNX Runtime makes of them ------------------------------


def whole(net, x):
    return net.pair(net.node("relu", "Relu", net.conv("c", x)), "z", low=True)


def clipped(net, x):
    bounds = net.constant("zero", np.float32(0)), net.constant("six", np.float32(6))
    return net.pair(net.node("clip", "Clip", net.conv("c", x), *bounds), "z", low=True)


def clipped_too_far(net, x):
    bounds = net.constant("zero", np.float32(0)), net.constant("ninety", np.float32(90))
    return net.pair(net.node("clip", "Clip", net.conv("c", x), *bounds), "z", low=True)


def cut_in_the_middle(net, x):
    return net.pair(net.node("relu", "Relu", net.conv("c", x)), "z")


def read_as_float(net, x):
    made = net.conv("c", x)
    return net.node("sum", "Add", net.pair(made, "z"), net.node("sine", "Sin", made))


def float_behind(net, x):
    return net.conv("c", x)


@pytest.mark.parametrize(
    ("build", "fused", "why"),
    [
        (whole, 1, ""),
        (clipped, 0, "what it makes is not read by one QuantizeLinear alone"),
        (clipped_too_far, 1, ""),
        (cut_in_the_middle, 0, "what it makes is not read by one QuantizeLinear alone"),
        (read_as_float, 0, "what it makes is not read by one QuantizeLinear alone"),
        (float_behind, 0, "what it makes is not read by one QuantizeLinear alone"),
    ],
)
def test_units_are_those_that_onnx_runtime_fuses(build, fused, why):
    net = Net("uint8")
    model = net.model(build(net, net.pair("x", "a")))
    conv = next(unit for unit in node_units(model) if unit.node.op_type == "Conv")
    assert conv.broken == why
    assert conv.quantized == bool(fused)
    assert kernels(model)["com.microsoft::QLinearConv"] == fused


def test_a_shared_dequantizer_is_in_each_unit_and_alone_where_it_must():
    net = Net("uint8")
    x = net.pair("x", "a")
    made = [net.pair(net.conv(name, x), name + "_z") for name in "cd"]
    total = net.node("float_sum", "Sum", *made, x)
    units = node_units(net.model(total))
    assert [unit.node.name for unit in units if unit.quantized] == ["c", "d"]
    alone = {unit.node.name for unit in units if not unit.quantized}
    assert alone == {"q_a", "dq_a", "dq_c_z", "dq_d_z", "float_sum", "last"}


# -- pieces, against ONNX Runtime's own estimate ---------------------------------------------------

ESTIMATE = """
import json, sys
import onnx
from onnxruntime.tools.mobile_helpers import usability_checker as checker
found = []
for path in sys.argv[1:]:
    info = checker.check_nnapi_partitions(onnx.shape_inference.infer_shapes(onnx.load(path)), True)
    found.append([info.num_nodes, sorted(len(group) for group in info.supported_groups)])
print(json.dumps(found))
"""


def estimates(paths):
    command = [sys.executable, "-c", ESTIMATE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def drawn(seed):
    """A random graph of Add (NNAPI has it) and Mod (it has not)."""
    rng = np.random.default_rng(seed)
    values, nodes = ["x"], []
    for number in range(rng.integers(2, 25)):
        inputs = [values[-1 - min(len(values) - 1, int(d))] for d in rng.geometric(0.4, 2) - 1]
        op = "Mod" if rng.random() < 0.35 else "Add"
        options = {"fmod": 1} if op == "Mod" else {}
        nodes.append(helper.make_node(op, inputs, [f"v{number}"], f"n{number}", **options))
        values.append(f"v{number}")
    ends = [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, [4])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    graph = helper.make_graph(nodes, "g", [x], ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_pieces_are_those_that_onnx_runtime_estimates(tmp_path):
    models = [drawn(seed) for seed in range(60)]
    paths = [tmp_path / f"{number}.onnx" for number in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        onnx.save(model, path)
    expected = estimates(paths)
    assert len({len(groups) for _, groups in expected}) > 3, "the graphs must split differently"
    for path, (nodes, groups) in zip(paths, expected, strict=True):
        found = predict(ir.load(path), PROVIDERS["nnapi"])
        assert (found.units, sorted(found.pieces)) == (nodes, groups)


@needs_assets
def test_a_real_float_model_splits_as_onnx_runtime_estimates():
    path = asset("models", "yolox_nano_coco.onnx")
    found = predict(ir.load(path), PROVIDERS["nnapi"])
    assert [found.units, sorted(found.pieces)] == estimates([path])[0]
