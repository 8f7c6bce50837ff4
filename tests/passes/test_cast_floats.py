"""Half precision in numbers: what is rounded, what stays exact, and that types always agree."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from qcompile.graph.dump import dump
from qcompile.graph.halves import _CONTRIB, BFLOAT16, FLOAT16, HALVES, half_slots
from qcompile.graph.walk import all_nodes
from qcompile.passes.cast_floats import CastFloats
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from qcompile.passes.round_floats import RoundFloats
from qcompile.runtime.ort import Session
from tests.graph.graphs import built, control_flow, graphs
from tests.passes.tools import prepared, random_feeds, relative_l2, session
from tests.planning.tools import graph_of, normal

BODIES = {
    "product": "h = MatMul(x, w)\ny = Add(h, b)",
    "gelu": "h = MatMul(x, w)\ny = Gelu(h)",
    "softmax": "h = MatMul(x, w)\ny = Softmax(h)",
    "norm": "h = MatMul(x, w)\ny = LayerNormalization(h, b)",
    "clip": "h = MatMul(x, w)\ny = Clip(h, low, high)",
    "moved": "h = MatMul(x, w)\nt = Transpose(h)\ny = Concat<axis=0>(t, t)",
}


def small(body: str) -> ir.Model:
    given_ = {"low": np.float32(-0.5), "high": np.float32(0.75)} if "low" in body else {}
    b = {"b": normal(2, 16)} if ", b)" in body else {}
    return graph_of("float[4, 16] x", body, w=normal(1, 16, 16, scale=0.25), **b, **given_)


def cast(model: ir.Model, **options) -> ir.Model:
    model = model.clone()
    CastFloats(**options)(model)
    check_types(model)
    return model


def check_types(model: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    written = {v.name: v.dtype for node, _ in all_nodes(model) for v in node.outputs}
    fresh = model.clone()
    for node, _ in all_nodes(fresh):
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = None
    InferShapes()(fresh)
    assert {v.name: v.dtype for node, _ in all_nodes(fresh) for v in node.outputs} == written


@pytest.mark.parametrize("name", BODIES)
def test_float16_is_within_its_rounding(name):
    model = small(BODIES[name])
    feeds = random_feeds(model)
    exact = session(model).run(None, feeds)
    found = session(cast(model)).run(None, feeds)
    assert 0 < relative_l2(exact, found) < 8 * FLOAT16.spacing / 2


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_simulation_is_within_the_types_rounding(name, half):
    model = small(BODIES[name])
    feeds = random_feeds(model)
    rounded = cast(model, dtype=half.name)
    RoundFloats(dtype=half.name)(rounded)
    check_types(rounded)
    error = relative_l2(session(model).run(None, feeds), session(rounded).run(None, feeds))
    assert half.spacing / 64 < error < 8 * half.spacing / 2


@pytest.mark.parametrize("name", BODIES)
def test_simulation_agrees_with_the_runtimes_own_float16(name):
    model = cast(small(BODIES[name]))
    feeds = random_feeds(model)
    own = session(model).run(None, feeds)
    RoundFloats(dtype="float16")(model)
    assert relative_l2(own, session(model).run(None, feeds)) < 2 * FLOAT16.spacing


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_simulated_numbers_are_numpys(half, optimize):
    model = graph_of("float[64] x", "a = Mul(x, k)\ny = Exp(a)", k=normal(1, 64))
    rounded = cast(model, dtype=half.name)
    RoundFloats(dtype=half.name)(rounded)
    x = random_feeds(model)["x"]

    def to_half(array):
        return half.cast(array).astype(np.float32)

    product = to_half(to_half(x) * to_half(normal(1, 64)))
    exact = session(graph_of("float[64] x", "y = Exp(x)")).run(None, {"x": product})[0]
    found = Session(rounded, optimize=optimize).run({"x": x})["y"]
    assert np.array_equal(found, to_half(exact))


def test_the_runtime_itself_does_not_round_between_nodes_without_float16_kernels():
    """ONNX Runtime 1.31 drops a Cast to float16 before one that it puts in: no simulation."""
    model = graph_of("float[64] x", "y = Exp(x)")
    feeds = random_feeds(model)
    exact = session(model).run(None, feeds)[0]
    assert np.array_equal(session(cast(model)).run(None, feeds)[0], exact)


def test_kept_nodes_are_exact():
    body = "[a] h = MatMul(x, w)\n[b] t = Transpose(h)\n[c] y = Softmax(t)\n[d] z = Exp(h)"
    model = graph_of("float[4, 16] x", body, "y, z", w=normal(1, 16, 16))
    feeds = random_feeds(model)
    exact = session(model).run(None, feeds)
    halved = cast(model, kept={"a": "test", "c": "test"})
    RoundFloats(dtype="float16")(halved)
    found = session(halved).run(None, feeds)
    assert np.array_equal(exact[0], found[0])
    assert not np.array_equal(exact[1], found[1])


def test_ports_turn_half_when_asked():
    model = cast(small(BODIES["product"]), keep_ports=False)
    assert {v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT16}
    assert not any(node.op_type == "Cast" for node in model.graph)


@pytest.mark.parametrize("dtype", ["float8e4m3fn", "int4"])
def test_codes_of_few_bits_stay_as_they_are(dtype):
    model = graph_of("float[2, 32] x", "y = MatMul(x, w)", w=normal(1, 32, 8))
    weight = model.graph.initializers["w"]
    kind = ir.DataType[dtype.upper()]
    codes = ir.Value(
        name="codes",
        type=ir.TensorType(kind),
        shape=ir.Shape([32, 8]),
        const_value=ir.Tensor(normal(1, 32, 8).astype(kind.numpy()), dtype=kind, name="codes"),
    )
    scales = np.exp2(np.arange(16).reshape(2, 8) % 4 - 4).astype(np.float32)
    scale = ir.Value(
        name="s",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(scales.shape),
        const_value=ir.tensor(scales, name="s"),
    )
    for value in (codes, scale):
        model.graph.register_initializer(value)
    node = ir.node("DequantizeLinear", [codes, scale], {"axis": 0, "block_size": 16}, name="dq")
    node.outputs[0].name = "real"
    node.outputs[0].type, node.outputs[0].shape = weight.type, weight.shape
    model.graph.insert_before(model.graph[0], node)
    weight.replace_all_uses_with(node.outputs[0])
    del model.graph.initializers["w"]
    halved = cast(model)
    assert halved.graph.initializers["codes"].dtype == kind
    assert halved.graph.initializers["s"].dtype == ir.DataType.FLOAT16
    feeds = random_feeds(model)
    both = [session(m).run(None, feeds) for m in (model, halved)]
    assert relative_l2(*both) < 8 * FLOAT16.spacing / 2


def test_weights_are_rounded_only_when_they_are_read():
    model = small(BODIES["product"])
    read = []
    source = model.graph.initializers["w"].const_value

    def load():
        read.append(1)
        return source

    weight = model.graph.initializers["w"]
    weight.const_value = ir.LazyTensor(
        load, dtype=source.dtype, shape=source.shape, name="w", cache=False
    )
    CastFloats(dtype="float16")(model)
    before = len(read)
    assert before <= 1, "once, to see whether it fits"
    array = model.graph.initializers["w"].const_value.numpy()
    assert len(read) == before + 1
    assert array.dtype == np.float16


def test_refusals_say_why():
    model = graph_of("float[2, 2] x", "a = Mul(x, k)\ny = Relu(a)", k=np.float32(1e6))
    step = CastFloats()
    assert step(model).modified
    assert dict(step.refusals) == {"k holds numbers beyond 65504": 1}
    step = CastFloats(kept={"gone": "a test"})
    step(small(BODIES["product"]))
    assert dict(step.refusals) == {"gone should stay in float32, but there is no such node": 1}
    old = graph_of("float[1, 1, 4, 4] x", "y = Conv(x, w)", w=normal(1, 1, 1, 1, 1))
    step = CastFloats(dtype="bfloat16")
    assert not step(old).modified
    assert dict(step.refusals) == {"Conv of opset 21 takes no bfloat16; opset 22 does": 1}


def test_conv_takes_bfloat16_after_conversion():
    model = graph_of("float[1, 1, 4, 4] x", "y = Conv(x, w)", w=normal(1, 1, 1, 1, 1))
    for step in (ConvertOpset(opset=22), NameValues(), InferShapes()):
        step(model)
    assert cast(model, dtype="bfloat16").graph.initializers["w"].dtype == ir.DataType.BFLOAT16


def test_control_flow_reads_float32():
    model = prepared(control_flow(), CastFloats())
    halved = cast(model)
    feeds = {**random_feeds(model), "n": np.asarray(2), "c": np.asarray(True)}
    both = [session(m).run(None, feeds) for m in (model, halved)]
    assert relative_l2(*both) < 16 * FLOAT16.spacing


def test_the_table_of_com_microsoft_is_the_runtimes():
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    schemas = {s.name: s for s in state.get_all_operator_schema() if s.domain == "com.microsoft"}
    for name, (inputs, outputs) in _CONTRIB.items():
        schema = schemas[name]
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        for ports, stay in ((schema.inputs, inputs), (schema.outputs, outputs)):
            for index, port in enumerate(ports):
                types = allowed.get(port.typeStr, {port.typeStr})
                if "tensor(float)" not in types:
                    continue
                takes = {"tensor(float16)", "tensor(bfloat16)"} <= types
                assert takes == (index not in stay), (name, port.name)


def test_layer_norm_keeps_the_type_of_its_statistics():
    body = "y, m, i = LayerNormalization(x, g)\nz = Mul(m, i)"
    model = graph_of("float[4, 16] x", body, "y, z", g=normal(1, 16))
    norm = model.graph[0]
    assert half_slots(norm, 21, FLOAT16).outputs == {0}
    assert half_slots(norm, 21, BFLOAT16).outputs == {0}
    cast(model)
    cast(model, dtype="bfloat16")


@given(graphs(), st.sampled_from(list(HALVES)), st.booleans(), st.randoms(use_true_random=False))
def test_any_graph(drawn, dtype, keep_ports, random):
    model = prepared(built(*drawn), CastFloats())
    names = [node.name for node in model.graph]
    kept = dict.fromkeys(random.sample(names, random.randint(0, len(names))), "drawn")
    step = CastFloats(dtype=dtype, kept=kept, keep_ports=keep_ports)
    feeds = random_feeds(model)
    exact = session(model).run(None, feeds)
    text = dump(model)
    modified = step(model).modified
    note(text + dump(model))
    assert modified == (dump(model) != text)
    check_types(model)
    assert not step(model).modified, "the second run must find nothing"
    casts = [node for node in model.graph if node.op_type == "Cast"]
    directions = Counter((id(n.inputs[0]), n.attributes.get_int("to")) for n in casts)
    assert all(count == 1 for count in directions.values())
    assert not any(n.inputs[0].producer() in casts for n in casts)
    port = ir.DataType.FLOAT if keep_ports else HALVES[dtype].dtype
    values = [v for v in (*model.graph.inputs, *model.graph.outputs) if v.name != "c"]
    assert {v.dtype for v in values} == {port}
    for node in model.graph:
        if node.name in kept:
            assert {v.dtype for v in node.inputs if v is not None} <= {
                ir.DataType.FLOAT,
                ir.DataType.BOOL,
            }
    if keep_ports and modified and max(float(np.abs(a).max()) for a in exact) < 1e3:
        RoundFloats(dtype=dtype)(model)
        found = session(model).run(None, feeds)
        sizes = max(float(np.abs(a).max()) for a in exact) or 1.0
        assert all(
            a.shape == b.shape and a.dtype == b.dtype for a, b in zip(exact, found, strict=True)
        )
        assert all(np.isfinite(b).all() for b in found) or sizes > 1e2


def quantized(scale: float) -> ir.Model:
    """Two products between codes; the scale of the middle is given, the others are exact."""
    body = """
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        k = DequantizeLinear<axis=1>(w, v)
        [first] a = MatMul(d, k)
        b = Relu(a)
        e = QuantizeLinear(b, r, z)
        f = DequantizeLinear(e, r, z)
        [second] y = MatMul(f, k)
    """
    codes = np.random.default_rng(0).integers(-127, 128, (16, 16)).astype(np.int8)
    given_ = {"s": np.float32(2**-5), "r": np.float32(scale), "z": np.int8(0), "w": codes}
    return graph_of("float[4, 16] x", body, **given_, v=np.full(16, 2**-9, np.float32))


def test_codes_are_the_same_behind_a_float32_input():
    model = quantized(2**-4)
    model.graph.outputs.append(next(v for n in model.graph for v in n.outputs if v.name == "q"))
    feeds = random_feeds(model)
    halved = cast(model)
    before, after = (session(m).run(None, feeds) for m in (model, halved))
    assert np.array_equal(before[1], after[1])
    assert relative_l2(before[:1], after[:1]) < 0.02
    types = [n.outputs[0].dtype for n in halved.graph if n.op_type == "DequantizeLinear"]
    assert set(types) == {ir.DataType.FLOAT16}


@pytest.mark.parametrize("scale", [0.1, 0.0, 1e5])
def test_inexact_scales_keep_their_readers(scale):
    model = quantized(scale)
    step = CastFloats()
    halved = model.clone()
    assert step(halved).modified
    check_types(halved)
    made = {n.name: n.outputs[0].dtype for n in halved.graph}
    assert made["first"] == ir.DataType.FLOAT16
    assert made["second"] == ir.DataType.FLOAT
    assert sum(count for why, count in step.refusals.items() if "scale r" in why) == 3
