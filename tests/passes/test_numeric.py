"""Each pass on random graphs around its pattern: outputs must stay within the pass's effect."""

import math

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qcompile.passes.clean_up import CleanUp
from qcompile.passes.fold_batch_norm import FoldBatchNorm
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fold_weights import FoldWeights
from qcompile.passes.fuse_gelu import FuseGelu
from qcompile.passes.fuse_layer_norm import FuseLayerNorm
from qcompile.passes.fuse_pad import FusePad
from qcompile.passes.remove_identities import RemoveIdentities
from qcompile.passes.settle_reshapes import SettleReshapes
from qcompile.passes.simplify_nodes import SimplifyNodes
from tests.passes.tools import check_equivalent

Weights = dict[str, np.ndarray]
SEEDS = st.integers(0, 2**32 - 1)


def build(
    nodes: list[onnx.NodeProto],
    weights: Weights,
    shape: list[int | str],
    output: str = "y",
    kind: int = onnx.TensorProto.FLOAT,
) -> ir.Model:
    """A model with the float input x and one output whose shape is left to inference."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def norm_weights(rng: np.random.Generator, channels: int) -> Weights:
    variance = rng.uniform(0, 4, channels).astype(np.float32)
    scale = floats(rng, channels)
    scale[rng.random(channels) < 0.2] = 0
    shift, mean = floats(rng, channels), floats(rng, channels)
    return {"scale": scale, "shift": shift, "mean": mean, "variance": variance}


NORM_INPUTS = ["scale", "shift", "mean", "variance"]


@given(
    SEEDS,
    st.sampled_from(["Conv", "ConvTranspose"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([1e-5, 1e-3, 0.5]),
    st.integers(1, 2),
)
def test_fold_batch_norm_into_conv(seed, op, group, c_in, c_out, with_bias, epsilon, rank):  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    kernel = [int(k) for k in rng.integers(1, 4, rank)]
    first, second = (c_out * group, c_in) if op == "Conv" else (c_in * group, c_out)
    weights = {"w": floats(rng, first, second, *kernel), **norm_weights(rng, c_out * group)}
    inputs = ["x", "w"]
    if with_bias:
        weights["b"] = floats(rng, c_out * group)
        inputs.append("b")
    nodes = [
        helper.make_node(op, inputs, ["c"], group=group),
        helper.make_node("BatchNormalization", ["c", *NORM_INPUTS], ["y"], epsilon=epsilon),
    ]
    model = build(nodes, weights, [2, c_in * group, *[5] * rank])
    check_equivalent(model, FoldBatchNorm(), changes=True)


@given(
    SEEDS,
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.5, 1.0, -2.0]),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([None, (4,), (1,), (1, 4), (), (3, 4), (3, 1)]),
)
def test_fold_batch_norm_into_gemm(seed, trans_a, trans_b, alpha, beta, bias_shape):
    rng = np.random.default_rng(seed)
    weights = {"w": floats(rng, 4, 5) if trans_b else floats(rng, 5, 4), **norm_weights(rng, 4)}
    inputs = ["x", "w"]
    if bias_shape is not None:
        weights["b"] = floats(rng, *bias_shape)
        inputs.append("b")
    gemm = helper.make_node(
        "Gemm", inputs, ["c"], alpha=alpha, beta=beta, transA=int(trans_a), transB=int(trans_b)
    )
    norm = helper.make_node("BatchNormalization", ["c", *NORM_INPUTS], ["y"])
    model = build([gemm, norm], weights, [5, 3] if trans_a else [3, 5])
    check_equivalent(model, FoldBatchNorm(), changes=bias_shape not in {(3, 4), (3, 1)})


@given(
    SEEDS,
    st.sampled_from(["Conv", "AveragePool", "MaxPool"]),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.sampled_from([None, [2, 3], [-1, -2], [3, 2]]),
    st.sampled_from([None, 0.0, 1.0]),
    st.sampled_from(["NOTSET", "VALID", "SAME_UPPER"]),
    st.booleans(),
    st.integers(1, 2),
)
def test_fuse_pad(seed, op, pads, axes, value, auto_pad, ceil, stride):  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    amounts = pads if axes else [0, 0, *pads[:2], 0, 0, *pads[2:]]
    weights: Weights = {"p": np.array(amounts, np.int64)}
    inputs = ["x", "p", "", ""]
    if value is not None:
        weights["v"] = np.array(value, np.float32)
        inputs[2] = "v"
    if axes:
        weights["a"] = np.array(axes, np.int64)
        inputs[3] = "a"
    attributes = {"auto_pad": auto_pad, "kernel_shape": [3, 2], "strides": [stride, 1]}
    reader = ["q"]
    if op == "Conv":
        weights["w"] = floats(rng, 2, 3, 3, 2)
        reader.append("w")
    else:
        attributes["ceil_mode"] = int(ceil)
    nodes = [
        helper.make_node("Pad", inputs, ["q"]),
        helper.make_node(op, reader, ["y"], **attributes),
    ]
    check_equivalent(build(nodes, weights, [2, 3, 6, 5]), FusePad())


@given(st.lists(st.integers(0, 2), min_size=4, max_size=4), st.booleans())
def test_fuse_pad_keeps_the_pads_of_the_conv(pads, shared):
    rng = np.random.default_rng(0)
    weights = {"p": np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)}
    weights["w"] = floats(rng, 2, 3, 3, 2)
    nodes = [
        helper.make_node("Pad", ["x", "p"], ["q"]),
        helper.make_node("Conv", ["q", "w"], ["c"], pads=[1, 0, 2, 1]),
        helper.make_node("GlobalMaxPool", ["q" if shared else "c"], ["m"]),
        helper.make_node("ReduceMax", ["m"], ["k"], keepdims=0),
        helper.make_node("Add", ["c", "k"], ["y"]),
    ]
    check_equivalent(build(nodes, weights, [2, 3, 6, 5]), FusePad(), changes=True)


class Writer:
    """Writes an expression as nodes, with the freedom that exporters take."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.nodes, self.weights = draw, [], {}

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        if op in {"Mul", "Add"} and self.draw(st.booleans()):
            inputs = inputs[::-1]
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def number(self, value: float) -> str:
        name = f"k{len(self.weights)}"
        shape = self.draw(st.sampled_from([(), (1,), (1, 1)]))
        self.weights[name] = np.full(shape, value, np.float32)
        return name

    def scaled(self, x: str, factor: float) -> str:
        if self.draw(st.booleans()):
            return self.node("Mul", x, self.number(factor))
        return self.node("Div", x, self.number(1 / factor))


@st.composite
def gelus(draw: st.DrawFn) -> tuple[ir.Model, bool]:
    """A GELU in some way of writing, and whether its constants are right."""
    w = Writer(draw)
    off = draw(st.sampled_from([1.0, 1.0, 1.01]))
    # Sometimes x is a biased product itself: the expression must not reach through it.
    x = draw(st.sampled_from(["x", "biased"]))
    if x == "biased":
        w.weights["bias"] = np.array([1, 2, 3, 4], np.float32)
        w.nodes.append(helper.make_node("Add", ["x", "bias"], ["biased"]))
    if draw(st.booleans()):
        t = w.node("Erf", w.scaled(x, math.sqrt(0.5) * off))
    else:
        cube = draw(st.sampled_from(["pow", "mul", "factored"]))
        root = math.sqrt(2 / math.pi) * off
        if cube == "factored":
            square = w.scaled(w.node("Mul", x, x), 0.044715)
            t = w.scaled(w.node("Mul", x, w.node("Add", square, w.number(1.0))), root)
        else:
            third = w.node("Pow", x, w.number(3.0)) if cube == "pow" else None
            third = third or w.node("Mul", x, w.node("Mul", x, x))
            t = w.scaled(w.node("Add", x, w.scaled(third, 0.044715)), root)
        t = w.node("Tanh", t)
    form = draw(st.sampled_from(["half x", "half last", "half inside", "spread"]))
    if form == "spread":
        half = w.scaled(x, 0.5)
        y = w.node("Add", half, w.node("Mul", half, t))
    elif form == "half inside":
        half_t = w.node("Add", w.scaled(t, 0.5), w.number(0.5))
        y = w.node("Mul", x, half_t)
    else:
        one_plus = w.node("Add", t, w.number(1.0))
        half_first = form == "half x"
        y = w.node("Mul", w.scaled(x, 0.5) if half_first else x, one_plus)
        y = y if half_first else w.scaled(y, 0.5)
    return build(w.nodes, w.weights, [3, 4], y), off == 1.0


@given(gelus())
def test_fuse_gelu(case):
    model, is_gelu = case
    check_equivalent(model, FuseGelu(), changes=is_gelu)
    operators = [node.op_type for node in model.graph]
    assert ("Gelu" in operators) == is_gelu
    assert not is_gelu or set(operators) <= {"Gelu", "Add"}


@st.composite
def layer_norms(draw: st.DrawFn) -> tuple[ir.Model, bool]:
    w = Writer(draw)
    axes = draw(st.sampled_from([[-1], [2], [1, 2], [-1, -2], [1], [0, 2]]))
    w.weights["axes"] = np.array(axes, np.int64)
    w.weights["mean_axes"] = np.array([a % 3 for a in axes], np.int64)
    centred = w.node("Sub", "x", w.node("ReduceMean", "x", "mean_axes"))
    form = draw(st.sampled_from(["Pow", "Mul"]))
    square = w.node("Mul", centred, centred) if form == "Mul" else None
    square = square or w.node("Pow", centred, w.number(2.0))
    variance = w.node("ReduceMean", square, "axes")
    root = w.node("Sqrt", w.node("Add", variance, w.number(draw(st.sampled_from([1e-5, 0.1])))))
    how = draw(st.sampled_from(["div", "reciprocal", "one over"]))
    if how == "div":
        y = w.node("Div", centred, root)
    else:
        one_over = how == "one over"
        inverse = w.node("Div", w.number(1.0), root) if one_over else w.node("Reciprocal", root)
        y = w.node("Mul", centred, inverse)
    rng = np.random.default_rng(draw(SEEDS))
    for op in ["Mul", "Add"]:
        shape = draw(st.sampled_from([None, (), (4,), (3, 4), (1, 1, 4), (3, 1), (2, 1, 1)]))
        if shape is not None:
            w.weights[op] = floats(rng, *shape)
            y = w.node(op, y, op)
    last = sorted(a % 3 for a in axes) in [[2], [1, 2]]
    return build(w.nodes, w.weights, [2, 3, 4], y), last


@given(layer_norms())
def test_fuse_layer_norm(case):
    model, over_the_last = case
    check_equivalent(model, FuseLayerNorm(), changes=over_the_last)


@given(SEEDS, st.lists(st.sampled_from(["T", "R", "U", "S", "F"]), min_size=1, max_size=4))
def test_fold_weights(seed, moves):
    rng = np.random.default_rng(seed)
    weights: Weights = {"w": floats(rng, 3, 2, 4), "flat": np.array([6, -1], np.int64)}
    weights["one"], weights["zero"] = np.array([1], np.int64), np.array([0], np.int64)
    nodes, current = [], "w"
    for i, move in enumerate(moves):
        inputs, op, attributes = [current], "Transpose", {}
        if move == "R":
            op, inputs = "Reshape", [current, "flat"]
        elif move == "U":
            op, inputs = "Unsqueeze", [current, "one"]
        elif move == "F":
            op, attributes = "Flatten", {"axis": 1}
        elif move == "S":
            nodes.append(helper.make_node("Unsqueeze", [current, "zero"], [f"s{i}"]))
            op, inputs = "Squeeze", [f"s{i}", "zero"]
        nodes.append(helper.make_node(op, inputs, [f"v{i}"], **attributes))
        current = f"v{i}"
    nodes.append(helper.make_node("Mul", [current, "x"], ["y"]))
    model = check_equivalent(build(nodes, weights, [1]), FoldWeights(), changes=True)
    assert [node.op_type for node in model.graph] == ["Mul"]


OPERATORS = [
    *("Relu", "Clip", "Min", "Max", "Mul", "Add", "Sub", "Div", "Cast", "Transpose", "Slice"),
    *("Reshape", "Identity", "Dropout", "Unsqueeze", "Expand"),
]


@st.composite
def chains(draw: st.DrawFn) -> ir.Model:
    """A chain of the operators that the general rules merge or drop, with odd parameters."""
    w = Writer(draw)
    number = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    current = "x"
    for _ in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(OPERATORS))
        if op in {"Min", "Max", "Mul", "Add", "Sub", "Div"}:
            value = draw(number) or 1.0
            current = w.node(op, current, w.number(value))
        elif op == "Clip":
            bounds = [w.number(draw(number)) for _ in range(2)]
            for bound in bounds:
                w.weights[bound] = w.weights[bound].reshape(())
            current = w.node("Clip", current, *bounds)
        elif op == "Cast":
            kinds = [onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT16]
            current = w.node("Cast", current, to=draw(st.sampled_from(kinds)))
            current = w.node("Cast", current, to=onnx.TensorProto.FLOAT)
        elif op == "Transpose":
            flat = constant_of(w, [4, 3, 2])
            perm = draw(st.permutations(range(3)))
            current = w.node("Transpose", w.node("Reshape", current, flat), perm=perm)
        elif op == "Slice":
            end = draw(st.sampled_from([1, 2, 2**31 - 1, 2**63 - 1]))
            flat = w.node("Reshape", current, constant_of(w, [-1]))
            whole = draw(st.booleans())
            bounds = [[0], [24 if whole else end], [0], [1]]
            sliced = w.node("Slice", flat, *(constant_of(w, b) for b in bounds))
            current = w.node("Expand", sliced, constant_of(w, [24])) if end == 1 else flat
        elif op == "Reshape":
            current = w.node("Reshape", current, constant_of(w, draw(st.sampled_from(SHAPES))))
        elif op == "Unsqueeze":
            current = w.node("Unsqueeze", current, constant_of(w, [0]))
            current = w.node("Squeeze", current, constant_of(w, [0]))
        elif op == "Expand":
            current = w.node("Expand", current, constant_of(w, [1]))
        else:
            current = w.node(op, current)
    return build(w.nodes, w.weights, draw(st.sampled_from([[2, 3, 4], ["N", 3, 4]])), current)


SHAPES = [[6, 4], [-1], [2, 3, 4], [4, -1, 2], [24]]


def constant_of(w: Writer, values: list[int]) -> str:
    name = f"i{len(w.weights)}"
    w.weights[name] = np.array(values, np.int64)
    return name


@given(chains())
def test_simplify_nodes(model):
    check_equivalent(model, SimplifyNodes())


@given(chains())
def test_fold_constants(model):
    check_equivalent(model, FoldConstants())


@given(chains())
def test_clean_up_and_identities(model):
    check_equivalent(model, CleanUp())
    check_equivalent(model, RemoveIdentities())


@given(
    st.lists(
        st.sampled_from(["gather", "slice", "const", "cast", "other"]), min_size=3, max_size=3
    ),
    st.sampled_from([["N", 6, 4], ["N", "M", 4], [2, 6, 4]]),
    st.integers(0, 1),
)
def test_settle_reshapes(kinds, shape, allowzero):
    """A target shape of as many parts as the input has axes, each the size of its axis."""
    sizes = [d if isinstance(d, int) else 2 for d in shape]
    weights: Weights = {f"i{k}": np.array(k, np.int64) for k in range(4)}
    weights |= {f"v{k}": np.array([k], np.int64) for k in range(4)}
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Abs", ["x"], ["z"])]
    nodes.append(helper.make_node("Shape", ["z"], ["other"]))
    for k, kind in enumerate(kinds):
        if kind == "slice":
            nodes.append(helper.make_node("Slice", ["s", f"v{k}", f"v{k + 1}"], [f"p{k}"]))
        elif kind == "const":
            weights[f"p{k}"] = np.array([sizes[k]], np.int64)
        else:
            source = "other" if kind == "other" else "s"
            nodes.append(helper.make_node("Gather", [source, f"i{k}"], [f"g{k}"]))
            to = onnx.TensorProto.INT32 if kind == "cast" else onnx.TensorProto.INT64
            nodes.append(helper.make_node("Cast", [f"g{k}"], [f"c{k}"], to=to))
            nodes.append(helper.make_node("Cast", [f"c{k}"], [f"d{k}"], to=onnx.TensorProto.INT64))
            nodes.append(helper.make_node("Unsqueeze", [f"d{k}", "v0"], [f"p{k}"]))
    nodes.append(helper.make_node("Concat", ["p0", "p1", "p2"], ["target"], axis=0))
    nodes.append(helper.make_node("Reshape", ["x", "target"], ["y"], allowzero=allowzero))
    model = check_equivalent(build(nodes, weights, shape), SettleReshapes())
    target = next(n for n in model.graph if n.op_type == "Reshape").inputs[1]
    assert target.is_initializer()
