"""Each operator in torch makes what ONNX Runtime makes; what is not there says so."""

import numpy as np
import pytest

from qcompile.numerics.metrics import relative_l2
from qcompile.runtime.ort import Session
from tests.planning.tools import feeds_of, graph_of, normal

torch = pytest.importorskip("torch", reason="blocks run in torch")

from qcompile.planning.torch_graph import TorchGraph  # noqa: E402
from qcompile.planning.torch_operators import OPERATORS, NotHere  # noqa: E402

PICTURE = "float[2, 4, 9, 8] x"
CASES = {
    "Conv": (
        PICTURE,
        "y = Conv <pads=[1,0,2,1], strides=[2,1], group=2, dilations=[1,2]> (x, W, B6)",
    ),
    "Conv same": (
        PICTURE,
        'y = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (x, V)',
    ),
    "Conv 1-D": ("float[1, 4, 9] x", "y = Conv <pads=[1,1]> (x, U)"),
    "Gemm": ("float[5, 4] x", "y = Gemm <transB=1, alpha=0.5, beta=2.0> (x, M, B6)"),
    "Pools": (
        PICTURE,
        """a = MaxPool <kernel_shape=[3,2], pads=[1,0,1,1], strides=[2,1]> (x)
        d = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (a)
        e = AveragePool <kernel_shape=[2,2], pads=[0,1,0,1], count_include_pad=1> (d)
        g = GlobalAveragePool(e)
        y = Flatten(g)""",
    ),
    "Norm": (
        "float[3, 5, 4] x",
        """a = LayerNormalization <axis=-1, epsilon=0.001> (x, S, B)
        m = ReduceMean <keepdims=1> (a, last)
        k = ReduceMax(a, last)
        t = ReduceSum <keepdims=0> (a, last)
        c = Sub(a, m)
        e = Div(c, k)
        r = Unsqueeze(t, last)
        y = Add(e, r)""",
    ),
    "BatchNormalization": (PICTURE, "y = BatchNormalization(x, S, B, B, S)"),
    "Shapes": (
        "float[2, 6, 4] x",
        """r = Reshape(x, shape)
        t = Transpose <perm=[0,2,1,3]> (r)
        a, d = Split <axis=-1, num_outputs=2> (t)
        c = Concat <axis=1> (d, a)
        s = Slice(c, from, to, axes, steps)
        q = Unsqueeze(s, last)
        z = Squeeze(q, last)
        n = Shape <start=0, end=1> (z)
        f = ConstantOfShape(n)
        g = Gather <axis=-1> (z, from)
        e = Expand(g, five)
        k = Tile(e, twice)
        p = Pad(k, pads)
        h = ReduceSum <keepdims=0> (f, zero)
        y = Add(p, h)""",
    ),
    "Curves": (
        "float[3, 7] x",
        """a = Relu(x)
        d = Sigmoid(x)
        e = Tanh(a)
        f = Gelu <approximate="tanh"> (x)
        g = Gelu(f)
        h = Erf(g)
        i = LeakyRelu <alpha=0.2> (x)
        j = HardSigmoid(x)
        k = HardSwish(x)
        l = Clip(x, low, half)
        m = PRelu(x, half)
        n = Softmax <axis=0> (x)
        o = Exp(x)
        p = Sqrt(o)
        q = Pow(p, half)
        r = Neg(q)
        s = Reciprocal(o)
        t = Max(r, d, e)
        u = Min(t, h)
        v = Identity(u)
        ge = Equal(x, a)
        w = Where(ge, k, j)
        c = Cast <to=1> (ge)
        y = Sum(v, w, c, i, l, m, n, s)""",
    ),
    "MatMul": ("float[2, 3, 4] x", "a = MatMul(x, MT)\ny = Mul(a, B6)"),
    "Resize": (
        PICTURE,
        """y = Resize <mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric"> (x, , twos)""",
    ),
}
WEIGHTS = {
    "W": normal(1, 6, 2, 3, 3),
    "V": normal(2, 4, 4, 3, 2),
    "U": normal(3, 6, 4, 3),
    "M": normal(4, 6, 4),
    "MT": normal(5, 4, 6),
    "B6": normal(6, 6),
    "B": normal(7, 4),
    "S": np.abs(normal(8, 4)) + 0.5,
    "half": np.full((), 0.5, np.float32),
    "low": np.full((), -0.25, np.float32),
    "last": np.asarray([-1], np.int64),
    "zero": np.asarray([0], np.int64),
    "shape": np.asarray([0, 3, 2, -1], np.int64),
    "from": np.asarray([1], np.int64),
    "to": np.asarray([9], np.int64),
    "axes": np.asarray([1], np.int64),
    "steps": np.asarray([2], np.int64),
    "five": np.asarray([1, 1, 1, 5], np.int64),
    "twice": np.asarray([1, 1, 2, 1], np.int64),
    "pads": np.asarray([0, 0, 1, 0, 0, 2, 0, 1], np.int64),
    "twos": np.asarray([1, 1, 2, 3], np.float32),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_agree_with_onnx_runtime(name: str) -> None:
    inputs, body = CASES[name]
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = graph_of(inputs, body, **{n: a for n, a in WEIGHTS.items() if n in words})
    feeds = feeds_of(model)[0]
    if name == "BatchNormalization":
        feeds = {"x": feeds["x"]}
    exact = Session(model, optimize=False).run(feeds)["y"]
    found = TorchGraph(model, "cpu").run({"x": torch.from_numpy(feeds["x"])}, {})["y"].numpy()
    assert found.shape == exact.shape
    assert found.dtype == exact.dtype
    assert relative_l2(exact, found) < 1e-5


def test_every_operator_is_in_a_case() -> None:
    text = " ".join(body for _, body in CASES.values())
    used = {word.strip() for word in text.replace("(", " ").replace("<", " ").split()}
    assert {name for name in OPERATORS if "::" not in name} <= used


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("y = Sin(x)", "Sin"),
        ('y = Pad <mode="reflect"> (x, pads)', "Pad"),
        ('y = Resize <mode="linear"> (x, , twos)', "Resize"),
        ("y = MaxPool <kernel_shape=[2,2], ceil_mode=1> (x)", "MaxPool with ceil_mode"),
    ],
)
def test_what_is_not_here_is_said(body: str, what: str) -> None:
    used = {n: a for n, a in WEIGHTS.items() if n in body.replace(")", "").split(", ")}
    model = graph_of("float[2, 4, 9, 8] x", body, **used)
    with pytest.raises(NotHere, match=what):
        TorchGraph(model, "cpu").run({"x": torch.zeros(2, 4, 9, 8)}, {})


def test_weights_take_the_place_of_stored_ones_and_get_gradients() -> None:
    body = "[n] y = MatMul(x, w)"
    model = graph_of("float[2, 3] x", body, w=normal(1, 3, 3))
    other, x = torch.from_numpy(normal(2, 3, 3)).requires_grad_(), torch.ones(2, 3)
    made = TorchGraph(model, "cpu").run({"x": x}, {"w": other})["y"]
    made.sum().backward()
    assert torch.equal(other.grad, torch.full((3, 3), 2.0))
    assert torch.allclose(made, x @ other)
