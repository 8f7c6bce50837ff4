"""The target's table, by running it: each rule's pattern gets the int8 kernel that the rule names.

For every operator the engine's codes equal those of the plain QDQ graph but for rare single steps.
"""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import PassError, PlanError
from qcompile.graph.protocol import Fact
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.graph.walk import is_constant
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.plan import NodePlan, TensorPlan
from qcompile.runtime.ort import kernels, optimized_model
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import Role
from tests.planning.tools import HOLDS, Quantized, feeds_of, graph_of, normal, quantize_graph

W3 = normal(1, 16, 16, 3, 3, scale=0.1)
DEPTHWISE = normal(2, 16, 1, 3, 3)
BIAS = normal(3, 16)
SQUARE = normal(4, 32, 32, scale=0.2)
POINT = normal(5, 16, 16, 1, 1, scale=0.3)
PICTURE = "float[1, 16, 12, 12] x"
TWO = "float[1, 16, 12, 12] x, float[1, 16, 12, 12] z"

READ = "[cx] u = Conv(x, point)\n"
READ_BOTH = READ + "[cz] v = Conv(z, point)\n"
NEXT = "\n[cy] t = Conv(y, point)"

WEIGHTED = {
    "conv": (PICTURE, "[n] y = Conv <pads=[1,1,1,1]> (x, w, b)", "ms::QLinearConv"),
    "conv without bias": (PICTURE, "[n] y = Conv(x, w)", "ms::QLinearConv"),
    "conv relu": (PICTURE, "[n] a = Conv(x, w, b)\n[r] y = Relu(a)", "ms::QLinearConv"),
    "conv clip": (PICTURE, "[n] a = Conv(x, w, b)\n[r] y = Clip(a, zero, six)", "ms::QLinearConv"),
    "conv strided dilated": (
        PICTURE,
        "[n] y = Conv <strides=[2,2], dilations=[2,2], pads=[2,2,2,2]> (x, w, b)",
        "ms::QLinearConv",
    ),
    "depthwise": (PICTURE, "[n] y = Conv <group=16> (x, d, b)", "ms::QLinearConv"),
    "conv 1-D": ("float[1, 16, 50] x", "[n] y = Conv(x, w1, b)", "ms::QLinearConv"),
    "gemm": ("float[7, 32] x", "[n] y = Gemm(x, s, c)", "ms::QGemm"),
    "gemm transB": ("float[7, 32] x", "[n] y = Gemm <transB=1> (x, s, c)", "ms::QGemm"),
    "gemm without bias": ("float[7, 32] x", "[n] y = Gemm(x, s)", "ms::QGemm"),
    "matmul": ("float[2, 7, 32] x", "[n] y = MatMul(x, s)", "ms::MatMulIntegerToFloat"),
}
WEIGHTS = {
    "w": W3,
    "b": BIAS,
    "d": DEPTHWISE,
    "w1": normal(7, 16, 16, 5),
    "s": SQUARE,
    "c": normal(8, 32),
    "point": POINT,
    "zero": np.zeros((), np.float32),
    "six": np.full((), 6, np.float32),
    "half": np.full((), 0.5, np.float32),
    "row": normal(9, 1, 16, 1, 1),
    "nchw": np.asarray([1, 16, 24, 6], np.int64),
    "from": np.asarray([1], np.int64),
    "to": np.asarray([9], np.int64),
    "three": np.asarray([3], np.int64),
    "scales": np.asarray([1, 1, 2, 2], np.float32),
}

FOLLOWERS = {
    "add": (TWO, READ_BOTH + "[n] y = Add(x, z)", "ms::QLinearAdd"),
    "add of one value": (TWO, READ_BOTH + "[n] y = Add(x, x)", "ms::QLinearAdd"),
    "add constant": (PICTURE, READ + "[n] y = Add(x, row)", "ms::QLinearAdd"),
    "add relu": (TWO, READ_BOTH + "[n] a = Add(x, z)\n[r] y = Relu(a)", "ms::QLinearAdd"),
    "mul": (TWO, READ_BOTH + "[n] y = Mul(x, z)", "ms::QLinearMul"),
    "mul constant": (PICTURE, READ + "[n] y = Mul(half, x)", "ms::QLinearMul"),
    "concat": (TWO, READ_BOTH + "[n] y = Concat <axis=2> (x, z)", "ms::QLinearConcat"),
    "average pool": (
        PICTURE,
        READ + "[n] y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (x)",
        "ms::QLinearAveragePool",
    ),
    "average pool padded": (
        PICTURE,
        READ + "[n] y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (x)",
        "ms::QLinearAveragePool",
    ),
    "global average pool": (
        PICTURE,
        READ + "[n] y = GlobalAveragePool(x)",
        "ms::QLinearGlobalAveragePool",
    ),
    "leaky relu": (PICTURE, READ + "[n] y = LeakyRelu <alpha=0.1> (x)", "ms::QLinearLeakyRelu"),
    "sigmoid": (PICTURE, READ + "[n] y = Sigmoid(x)", "ms::QLinearSigmoid"),
}

CARRIERS = {
    "max pool": "y = MaxPool <kernel_shape=[3,3], strides=[2,2]> (x)",
    "reshape": "y = Reshape(x, nchw)",
    "transpose": "y = Transpose <perm=[0,1,3,2]> (x)",
    "slice": "y = Slice(x, from, to, three)",
    "resize": 'y = Resize <mode="nearest", nearest_mode="floor", '
    'coordinate_transformation_mode="asymmetric"> (x, , scales)',
}


def quantized(inputs: str, body: str, outputs: str) -> Quantized:
    used = {name: array for name, array in WEIGHTS.items() if name in _words(body)}
    return quantize_graph(graph_of(inputs, body, outputs, **used))


def _words(body: str) -> set[str]:
    return {word for call in body.split("(")[1:] for word in call.split(")")[0].split(", ")}


def assert_close_codes(
    found: np.ndarray, expected: np.ndarray, scale: float, share: float = 1e-3
) -> None:
    """Demand equal codes, but for a share that may be one step apart."""
    steps = np.abs(found.astype(np.float64) - expected) / scale
    assert steps.max() < 1.01
    assert (steps > 0.5).mean() < share


def full(kernel: str) -> str:
    return kernel.replace("ms::", "com.microsoft::")


@pytest.mark.parametrize("case", WEIGHTED)
def test_weighted_operators_fuse(case):
    inputs, body, kernel = WEIGHTED[case]
    done = quantized(inputs, body, "y")
    assert done.kernels()["n"] == full(kernel)
    for feeds in feeds_of(done.source):
        fused, simulated = (done.run(feeds, optimize=o)["y"] for o in (True, False))
        assert np.abs(simulated).max() > 0
        if "y" in done.plan.tensors:
            assert_close_codes(fused, simulated, done.plan.tensors["y"].scale[0])
        else:
            np.testing.assert_allclose(fused, simulated, atol=2e-6 * np.abs(simulated).max())


@pytest.mark.parametrize("case", FOLLOWERS)
def test_followers_fuse_and_compute_the_same_codes(case):
    inputs, body, kernel = FOLLOWERS[case]
    outputs = "y, t, u, v" if "cz" in body else "y, t, u"
    done = quantized(inputs, body + NEXT, outputs)
    assert done.precision()["n"] == "int8"
    assert done.kernels()["n"] == full(kernel)
    assert not done.missing()
    for feeds in feeds_of(done.source):
        fused, simulated = (done.run(feeds, optimize=o)["y"] for o in (True, False))
        share = 1e-2 if "average" in case else 1e-3
        assert_close_codes(fused, simulated, done.plan.tensors["y"].scale[0], share)


@pytest.mark.parametrize("case", CARRIERS)
def test_carriers_move_codes(case):
    done = quantized(PICTURE, READ + "[n] " + CARRIERS[case] + NEXT, "t, u")
    assert done.precision()["n"] == "int8"
    assert done.plan.tensors["y"].scale == done.plan.tensors["x"].scale
    with_codes = Counter(done.kernels().values())
    assert with_codes["ai.onnx::QuantizeLinear"] == 1, "the input alone is rounded"
    assert with_codes["ai.onnx::DequantizeLinear"] == 2, "the outputs alone become float"
    feeds = feeds_of(done.source)[0]
    fused, simulated = (done.run(feeds, optimize=o)["t"] for o in (True, False))
    assert_close_codes(fused, simulated, done.plan.tensors["t"].scale[0])


def test_every_kernel_of_the_table_was_seen():
    rows = [*WEIGHTED.values(), *FOLLOWERS.values()]
    seen = {full(kernel) for _, _, kernel in rows}
    for rule in ORT_CPU.static.values():
        if rule.role in (Role.WEIGHTED, Role.FOLLOWER):
            assert seen & set(rule.kernels), rule.op


def test_max_pool_between_convs_runs_on_codes_in_the_fast_layout():
    body = "[a] p = Conv(x, w, b)\n[r] q = Relu(p)\n[m] m = MaxPool <kernel_shape=[2,2]> (q)"
    done = quantized(PICTURE, body + "\n[d] y = Conv(m, point)", "y")
    found = Counter(done.kernels().values())
    assert found["com.microsoft::NhwcMaxPool"] == 1
    assert found["com.microsoft::QLinearConv"] == 2
    assert found["ai.onnx::MaxPool"] == 0


def test_a_residual_network_has_no_float_hole():
    body = """
    [c1] a = Conv <pads=[1,1,1,1]> (x, w, b)
    [r1] p = Relu(a)
    [c2] c = Conv <pads=[1,1,1,1]> (p, w2)
    [add] s = Add(c, p)
    [r2] q = Relu(s)
    [c3] e = Conv <strides=[2,2], pads=[1,1,1,1]> (q, w3)
    [c4] f = Conv <strides=[2,2]> (q, point)
    [add2] g = Add(f, e)
    [r3] h = Relu(g)
    [pool] k = GlobalAveragePool(h)
    [flat] m = Flatten(k)
    [fc] y = Gemm <transB=1> (m, s10)
    """
    shapes = {"w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "s10": (10, 16)}
    extra = {name: normal(i, *shape, scale=0.2) for i, (name, shape) in enumerate(shapes.items())}
    model = graph_of(PICTURE, body, w=W3, b=BIAS, point=POINT, **extra)
    done = quantize_graph(model)
    assert set(done.precision().values()) == {"int8"}
    found = Counter(done.kernels().values())
    assert found["com.microsoft::QLinearConv"] == 4
    assert found["com.microsoft::QLinearAdd"] == 2
    assert found["com.microsoft::QLinearGlobalAveragePool"] == 1
    assert found["com.microsoft::QGemm"] == 1
    assert found["ai.onnx::QuantizeLinear"] == 1
    assert found["ai.onnx::DequantizeLinear"] == 0
    assert done.engine_error() < 0.05


def test_an_output_in_the_middle_keeps_its_name_and_breaks_no_kernel():
    body = "[a] p = Conv(x, w, b)\n[r] m = Relu(p)\n[c] y = Conv(m, point)"
    done = quantized(PICTURE, body, "m, y")
    assert not done.missing()
    assert [v.name for v in done.model.graph.outputs] == ["m", "y"]
    assert done.plan.tensors["m"].zero_point == [0]
    feeds = feeds_of(done.source)[0]
    codes = done.run(feeds, optimize=True)["m"] / done.plan.tensors["m"].scale[0]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)


def test_weights_are_never_dequantized_at_run_time(tmp_path):
    for inputs, body, _ in WEIGHTED.values():
        graph = optimized_model(quantized(inputs, body, "y").model, tmp_path).graph
        made = [node for node in graph if node.op_type == "DequantizeLinear"]
        assert not any(is_constant(node.inputs[0]) for node in made)


def test_float_readers_of_a_graph_input_see_the_exact_values():
    body = "[c] a = Conv(x, point)\n[e] e = Exp(x)\n[s] y = Sub(a, e)"
    done = quantized(PICTURE, body, "y")
    exp = next(n for n in done.model.graph if n.name == "e")
    assert exp.inputs[0] is done.model.graph.inputs[0]
    sub = next(n for n in done.model.graph if n.name == "s")
    assert sub.inputs[0].producer().op_type == "DequantizeLinear", "the kernel must see codes only"


def test_relu_in_front_of_a_grid_with_a_negative_side_unfuses_the_conv():
    """Why the table wants zero point 0 behind Relu: the same plan with zero point 10 loses it."""
    done = quantized(PICTURE, "[n] a = Conv(x, w, b)\n[r] y = Relu(a)", "y")
    moved = done.plan.tensors["y"].model_copy(update={"zero_point": [10]})
    plan = done.plan.model_copy(update={"tensors": {**done.plan.tensors, "y": moved}})
    model = done.source.clone()
    run_passes(model, [InsertQdq(plan=plan)], holds=HOLDS)
    assert kernels(model)["com.microsoft::QLinearConv"] == 0


def test_solved_codes_are_stored_as_they_are():
    model = graph_of(PICTURE, "[n] y = Conv(x, w)", w=W3)
    codes = np.random.default_rng(0).integers(-127, 128, W3.shape).astype(np.int8)
    done = quantize_graph(model, codes={"w": codes})
    stored = done.model.graph.initializers["w.codes"].const_value.numpy()
    np.testing.assert_array_equal(stored, codes)


def test_scales_and_zero_points_are_written_with_rank_0_for_tensors():
    done = quantized(PICTURE, "[n] y = Conv(x, w, b)", "y")
    for node in done.model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (v.const_value for v in node.inputs[1:])
            assert scale.shape.numpy() == zero.shape.numpy()
            per_channel = "axis" in node.attributes
            assert len(scale.shape) == int(per_channel)


def test_a_second_run_refuses():
    done = quantized(PICTURE, "[n] y = Conv(x, w, b)", "y")
    step = InsertQdq(plan=done.plan)
    assert not step(done.model).modified
    assert step.refusals == {"the graph has QDQ pairs already": 1}


def test_a_shared_weight_is_stored_once_and_kept_for_float_readers():
    body = "[a] p = Conv(x, point)\n[c] q = Conv(z, point)\n[f] y = Add(point, point)"
    done = quantized(TWO, body, "p, q, y")
    names = [name for name in done.model.graph.initializers if name.startswith("point")]
    assert sorted(names) == ["point", "point.codes", "point.scale", "point.zero_point"]
    assert not done.missing()


@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_a_plan_with_unknown_tensors_is_refused(kind):
    done = quantized(PICTURE, "[n] y = Conv(x, w)", "y")
    extra = TensorPlan(kind=kind, type="uint8", scale=[1.0], zero_point=[0])
    plan = done.plan.model_copy(update={"tensors": {"nowhere": extra}})
    with pytest.raises(PlanError, match="nowhere is not in the model"):
        run_passes(done.source.clone(), [InsertQdq(plan=plan)], holds=HOLDS)


def test_it_needs_names_and_types():
    with pytest.raises(PassError, match="insert-qdq needs"):
        run_passes(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), [InsertQdq()])
    assert InsertQdq().gives == {Fact.QDQ}


def test_an_empty_plan_changes_nothing():
    done = quantized(PICTURE, "[n] y = Conv(x, w)", "y")
    plan = done.plan.model_copy(
        update={"tensors": {}, "nodes": {"n": NodePlan(op="Conv", precision="float", reason="-")}}
    )
    model = done.source.clone()
    assert not InsertQdq(plan=plan)(model).modified
    verify(model)
