"""Which nodes become int8, and the reason of each that does not."""

import numpy as np
import pytest

from qcompile.planning.select import Selection, select
from qcompile.planning.wishes import Wishes
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.tools import graph_of, normal, quantize_graph

PICTURE = "float[1, 16, 12, 12] x"
ROWS = "float[7, 32] x"
WEIGHTS = {
    "v": normal(1, 16, 16, 1, 1),
    "b": normal(2, 16),
    "s": normal(3, 32, 32),
    "c": normal(4, 32),
    "zero": np.zeros((), np.float32),
    "one": np.ones((), np.float32),
    "six": np.full((), 6, np.float32),
    "below": np.full((), -1, np.float32),
}
CHAIN = """
[c1] a = Conv(x, v)
[r1] p = Relu(a)
[c2] d = Conv(p, v)
[r2] q = Relu(d)
[c3] y = Conv(q, v)
"""


def chosen(
    inputs: str, body: str, outputs: str = "y", *, scheme: str = "int8", **wishes: object
) -> Selection:
    model = graph_of(inputs, body, outputs, **WEIGHTS)
    found = select(model, ORT_CPU, scheme, Wishes(**wishes))  # type: ignore[arg-type]
    assert list(found.nodes) == [node.name for node in model.graph.all_nodes()]
    assert all(entry.reason for entry in found.nodes.values())
    return found


def precisions(found: Selection) -> dict[str, str]:
    return {name: entry.precision for name, entry in found.nodes.items()}


@pytest.mark.parametrize(
    ("wishes", "floats", "reason"),
    [
        ({"patterns": ("c2",)}, {"c2", "r2"}, "excluded by name (c2)"),
        ({"patterns": ("?2",)}, {"c2", "r2"}, "excluded by name (?2)"),
        ({"patterns": ("*",)}, {"c1", "r1", "c2", "r2", "c3"}, "excluded by name (*)"),
        ({"operators": ("Conv",)}, {"c1", "r1", "c2", "r2", "c3"}, "excluded by operator (Conv)"),
        ({"nodes": {"c2": "too loud"}}, {"c2", "r2"}, "too loud"),
        ({"first": True}, {"c1", "r1"}, "first weighted layer (--float-first)"),
        ({"last": True}, {"c3"}, "last weighted layer (--float-last)"),
    ],
)
def test_wishes(wishes, floats, reason):
    found = chosen(PICTURE, CHAIN, **wishes)
    assert {name for name, p in precisions(found).items() if p == "float"} == floats
    convs = [name for name in floats if name.startswith("c")]
    assert {found.nodes[name].reason for name in convs} == {reason}


def test_wishes_keep_followers_in_float_too():
    body = "[c1] a = Conv(x, v)\n[add] p = Add(a, x)\n[c2] y = Conv(p, v)"
    assert set(precisions(chosen(PICTURE, body)).values()) == {"int8"}
    for wishes in ({"operators": ("Add",)}, {"patterns": ("ad*",)}):
        found = chosen(PICTURE, body, **wishes)
        assert precisions(found) == {"c1": "int8", "add": "float", "c2": "int8"}
        assert found.nodes["add"].reason.startswith("excluded by")


def test_first_and_last_reach_all_branches():
    body = """
    [a1] a = Conv(x, v)
    [a2] e = Conv(x, v)
    [add] p = Add(a, e)
    [mid] d = Conv(p, v)
    [z1] y = Conv(d, v)
    [z2] w = Conv(d, v)
    """
    found = chosen(PICTURE, body, "y, w", first=True, last=True)
    floats = {name for name, entry in found.nodes.items() if entry.precision == "float"}
    assert floats == {"a1", "a2", "add", "z1", "z2"}


REFUSED = {
    "both activations": (
        "float[7, 32] x, float[32, 7] z",
        "[n] y = MatMul(x, z)",
        "both inputs are activations: their int8 kernel is slower than float",
    ),
    "constant on the left": (
        "float[32, 7] x",
        "[n] y = MatMul(s, x)",
        "its first input is the constant one; kernels take weights on the right",
    ),
    "weight of rank 3": (
        "float[2, 7, 3] x",
        "[n] y = MatMul(x, cube)",
        "its weight is not a matrix",
    ),
    "dynamic bias": (
        "float[1, 16, 12, 12] x, float[16] z",
        "[n] y = Conv(x, v, z)",
        "its bias is computed at run time",
    ),
    "dynamic weight": (
        "float[1, 16, 12, 12] x, float[16, 16, 1, 1] z",
        "[n] y = Conv(x, z)",
        "both inputs are activations: their int8 kernel is slower than float",
    ),
    "alpha": (ROWS, "[n] y = Gemm <alpha=2.0> (x, s)", "Gemm with alpha, beta or transA"),
    "beta": (ROWS, "[n] y = Gemm <beta=0.5> (x, s, c)", "Gemm with alpha, beta or transA"),
    "transA": (
        "float[32, 7] x",
        "[n] y = Gemm <transA=1> (x, s)",
        "Gemm with alpha, beta or transA",
    ),
    "bias of rows": (
        ROWS,
        "[n] y = Gemm(x, s, rows)",
        "its bias is not one number for each column",
    ),
    "double": ("double[1, 2] x", "[n] y = MatMul(x, wide)", "not a float32 operation"),
    "softmax": (ROWS, "[n] y = Softmax(x)", "the int8 kernel is 7.5 times slower"),
    "unknown": (ROWS, "[n] y = Sin(x)", "ort-cpu has no int8 kernel for Sin"),
    "integers": ("int64[3] x", "[n] y = Abs(x)", "no float32 input"),
    "lonely relu": (ROWS, "[n] y = Relu(x)", "follows no int8 node that could absorb it"),
    "lonely add": (ROWS, "[n] y = Add(x, x)", "no int8 node reads it"),
}
EXTRA = {
    "cube": normal(5, 2, 3, 4),
    "rows": normal(6, 7, 1),
    "wide": np.ones((2, 2)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_reasons(case):
    inputs, body, reason = REFUSED[case]
    weights = {**WEIGHTS, **{k: v for k, v in EXTRA.items() if k in body}}
    kind = "double[] y" if "double" in inputs else "int64[] y" if "int64" in inputs else "y"
    model = graph_of(inputs, body, kind, **weights)
    found = select(model, ORT_CPU, "int8", Wishes())
    assert found.nodes["n"].precision == "float"
    assert found.nodes["n"].reason.startswith(reason)
    assert not found.activations
    assert not found.weights


def test_slow_convolutions_stay_in_float():
    """Groups, and depthwise channels that the kernel does not take whole."""
    kinds = {"grouped": (16, 4, 4), "ragged depthwise": (18, 1, 18), "": (16, 1, 16)}
    for kind, (channels, depth, group) in kinds.items():
        body = f"[n] y = Conv <group={group}> (x, w)"
        model = graph_of(f"float[1, {channels}, 8, 8] x", body, w=normal(1, channels, depth, 3, 3))
        entry = select(model, ORT_CPU, "int8", Wishes()).nodes["n"]
        assert entry.precision == ("float" if kind else "int8")
        assert not kind or entry.reason == ORT_CPU.slow_convolutions[kind]


@pytest.mark.parametrize(
    ("call", "absorbed"),
    [
        ("Relu(a)", True),
        ("Clip(a, zero, six)", True),
        ("Clip(a, zero)", True),
        ("Clip(a, , six)", True),
        ("Clip(a, below, one)", False),
        ("Clip(a, one, six)", False),
        ("Clip(a, zero, z)", False),
    ],
)
def test_only_what_rounding_does_is_absorbed(call, absorbed):
    limit = "[k] z = ReduceMax <keepdims=0> (x)"
    body = f"[c1] a = Conv(x, v)\n{limit}\n[act] p = {call}\n[c2] y = Conv(p, v)"
    found = chosen(PICTURE, body)
    assert found.nodes["act"].precision == ("int8" if absorbed else "float")
    assert ("a" in found.activations) != absorbed
    assert found.nodes["act"].reason == (
        "vanishes into the rounding of the node before it (c1)"
        if absorbed
        else "follows no int8 node that could absorb it"
    )


@pytest.mark.parametrize("call", ["Clip(a, below, one)", "Clip(a, one, six)", "Clip(a, zero, six)"])
def test_clip_never_costs_the_conv_its_kernel(call):
    body = f"[c1] a = Conv(x, v)\n[act] p = {call}\n[c2] y = Conv(p, v)"
    used = {k: v for k, v in WEIGHTS.items() if k in {"v", *call[5:-1].split(", ")}}
    assert not quantize_graph(graph_of(PICTURE, body, **used)).missing()


def test_an_activation_with_two_readers_is_not_absorbed():
    body = "[c1] a = Conv(x, v)\n[act] p = Relu(a)\n[c2] y = Conv(p, v)\n[e] z = Exp(a)"
    found = chosen(PICTURE, body, "y, z")
    assert found.nodes["act"].precision == "float"
    assert "a" in found.activations


def test_carriers_share_the_grid_of_what_they_carry():
    body = """
    [c1] a = Conv(x, v)
    [t] p = Transpose <perm=[0,1,3,2]> (a)
    [m] q = MaxPool <kernel_shape=[2,2]> (p)
    [c2] y = Conv(q, v)
    """
    found = chosen(PICTURE, body)
    assert found.tied == {"p": "a", "q": "a"}
    assert found.activations == ["x", "a", "p", "q", "y"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (
            'Resize <mode="linear"> (a, , scales)',
            "interpolates: only nearest moves codes as they are",
        ),
        ("Slice(a, start, end)", "its bounds are computed at run time"),
    ],
)
def test_interpolation_and_run_time_bounds_are_no_carriers(call, reason):
    scales = np.asarray([1, 1, 2, 2], np.float32)
    inputs = "float[1, 16, 12, 12] x, int64[1] start, int64[1] end"
    body = f"[c1] a = Conv(x, v)\n[n] p = {call}\n[c2] y = Conv(p, v)"
    model = graph_of(inputs, body, scales=scales, v=WEIGHTS["v"])
    found = select(model, ORT_CPU, "int8", Wishes())
    assert found.nodes["n"].precision == "float"
    assert found.nodes["n"].reason == reason
    assert precisions(found)["c1"] == precisions(found)["c2"] == "int8"


def test_followers_do_not_begin_a_region():
    body = "[add] p = Add(x, z)\n[c] y = Conv(p, v)"
    found = chosen("float[1, 16, 12, 12] x, float[1, 16, 12, 12] z", body)
    assert found.nodes["add"].precision == "float"
    assert found.nodes["add"].reason == "its input x is float"
    assert found.activations == ["p", "y"]


def test_followers_do_not_end_a_region():
    body = "[c] a = Conv(x, v)\n[s] p = Sigmoid(a)\n[add] y = Add(p, a)"
    found = chosen(PICTURE, body)
    for name in ("s", "add"):
        assert (
            found.nodes[name].reason == "no int8 node reads it: staying in float saves a rounding"
        )


def test_subgraphs_stay_in_float_and_their_nodes_are_listed():
    body = """
    [c] a = Conv(x, v)
    [if] y = If (flag) <
      then_branch = t () => (float[1, 16, 12, 12] p) { [inner] p = Conv(a, v) },
      else_branch = e () => (float[1, 16, 12, 12] q) { [other] q = Relu(a) }
    >
    """
    found = chosen("bool flag, float[1, 16, 12, 12] x", body)
    assert found.nodes["if"].reason == "holds subgraphs: control flow stays in float"
    for name in ("inner", "other"):
        assert found.nodes[name].reason == "inside If if: control flow stays in float"
        assert found.nodes[name].precision == "float"
    assert found.nodes["c"].precision == "int8"
    assert set(found.weights) == {"v"}


def test_a_relu_inside_a_branch_is_not_absorbed():
    body = """
    [c] a = Conv(x, v)
    [if] y = If (flag) <
      then_branch = t () => (float[1, 16, 12, 12] p) { [inner] p = Relu(a) },
      else_branch = e () => (float[1, 16, 12, 12] q) { [other] q = Relu(x) }
    >
    """
    model = graph_of("bool flag, float[1, 16, 12, 12] x", body, v=WEIGHTS["v"])
    feeds = {"flag": np.asarray(True), "x": normal(5, 1, 16, 12, 12)}
    built = quantize_graph(model, samples=[feeds])
    assert not built.selection.absorbed
    assert built.precision()["c"] == "int8"
    assert not built.missing()


def test_a_weight_that_is_also_an_input_is_no_constant():
    model = graph_of(ROWS, "[n] y = MatMul(x, s)", s=WEIGHTS["s"])
    model.graph.inputs.append(model.graph.initializers["s"])
    entry = select(model, ORT_CPU, "int8", Wishes()).nodes["n"]
    assert entry.precision == "float"


def test_dynamic_scheme_takes_matrices_only_and_no_activations():
    body = "[c] a = Conv(x, v)\n[f] p = Flatten(a)\n[m] y = MatMul(p, big)"
    model = graph_of(PICTURE, body, v=WEIGHTS["v"], big=normal(1, 2304, 4))
    found = select(model, ORT_CPU, "int8-dynamic", Wishes())
    assert precisions(found) == {"c": "float", "f": "float", "m": "int8-dynamic"}
    assert not found.activations
    assert found.weights == {"big": 1}
