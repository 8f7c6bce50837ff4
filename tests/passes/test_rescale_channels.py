"""Values divided by channel: golden cases, the float equivalence, refusals, bad plans."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PlanError
from qcompile.passes.rescale_channels import RescaleChannels
from qcompile.remedies import Remedies, Rescaled
from tests.passes.tools import random_feeds, relative_l2, session
from tests.planning.tools import graph_of, normal

MUL = "divided by a Mul of its own: "


def rescaling(value: str, scale: np.ndarray, axis: int, how: str = "equalize") -> RescaleChannels:
    numbers = [float(s) for s in scale.astype(np.float32)]
    rescaled = Rescaled(remedy=how, axis=axis, scale=numbers)
    return RescaleChannels(remedies=Remedies(rescaled={value: rescaled}))


def check_same(model: ir.Model, step: RescaleChannels, *, changes: bool = True) -> ir.Model:
    """Run the pass and demand that outputs stay; return the model."""
    feeds = random_feeds(model)
    before = session(model).run(None, feeds)
    assert step(model).modified == changes, dict(step.refusals)
    assert relative_l2(before, session(model).run(None, feeds)) <= step.effect.value
    return model


C, G = 8, 4
MAPS = f"float[2, {C}, 6, 6] x"
POOL = "kernel_shape=[2, 2], strides=[2, 2]"
CHAINS = {
    "conv": "v = Conv(x, w, b)",
    "conv without bias": "v = Conv(x, w)",
    "grouped": f"v = Conv <group={G}> (x, wg, b)",
    "depthwise, padded": f"v = Conv <group={C}, pads=[1, 1, 1, 1]> (x, wd, b)",
    "transposed": f"v = ConvTranspose <group={G}> (x, wt, b)",
    "batch norm": "v = BatchNormalization(x, b, s, s, a)",
    "instance norm": "v = InstanceNormalization(x, b, s)",
    "relu": "p = Conv(x, w, b)\n v = Relu(p)",
    "leaky": "p = Conv(x, w, b)\n v = LeakyRelu(p)",
    "prelu": "p = Conv(x, w, b)\n v = PRelu(p, sc)",
    "max": "p = Conv(x, w, b)\n m = Mul(p, sc)\n v = Max(p, m)",
    "min": "p = Conv(x, w, b)\n l = Min(p, zero)\n m = Mul(sc, l)\n v = Add(m, p)",
    "pools": f"p = Conv(x, w, b)\n q = MaxPool <{POOL}> (p)\n v = AveragePool <{POOL}> (q)",
    "global pool": "p = Conv(x, w, b)\n v = GlobalAveragePool(p)",
    "padded": "p = Conv(x, w, b)\n v = Pad(p, pads)",
    "there and back": "p = Conv(x, w, b)\n t = Transpose <perm=[2, 0, 3, 1]> (p)\n"
    " v = Transpose <perm=[1, 3, 0, 2]> (t)",
    "shuffled": "p = Conv(x, w, b)\n r = Reshape(p, split)\n"
    " t = Transpose <perm=[0, 2, 1, 3, 4]> (r)\n v = Reshape(t, merge)",
    "mul and add": "p = Tanh(x)\n m = Mul(p, sc)\n v = Add(m, sc)",
}
CONSTANTS = {
    "w": normal(0, C, C, 1, 1),
    "wg": normal(1, C, C // G, 1, 1),
    "wd": normal(2, C, 1, 3, 3),
    "wt": normal(3, C, C // G, 1, 1),
    "b": normal(4, C),
    "s": normal(5, C),
    "a": np.abs(normal(6, C)) + 0.5,
    "sc": np.abs(normal(7, C, 1, 1)),
    "zero": np.zeros((), np.float32),
    "one": np.ones((), np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "split": np.array([2, G, C // G, -1, 6], np.int64),
    "merge": np.array([2, C, 6, 6], np.int64),
    "u": normal(8, 5, C, 1, 1),
    "ug": normal(9, C, C // G, 1, 1),
    "f": normal(10, C, 5),
}
READERS = {
    "dense": "y = Conv(v, u)",
    "grouped": f"y = Conv <group={G}> (v, ug)",
    "two": "c1 = Conv(v, u)\n c2 = Conv(v, u)\n y = Add(c1, c2)",
    "and a factor": "c1 = Conv(v, u)\n f1 = Mul(v, sc)\n c2 = Conv(f1, u)\n y = Add(c1, c2)",
}


def chain(*lines: str, inputs: str = MAPS) -> ir.Model:
    body = "\n".join(lines).split("\n")
    text = " ".join(body)
    used = {n: w for n, w in CONSTANTS.items() if any(f"{n}{end}" in text for end in (",", ")"))}
    return graph_of(
        inputs, "\n".join(f"[n{i}] {line.strip()}" for i, line in enumerate(body)), **used
    )


def scales(seed: int, count: int) -> np.ndarray:
    return np.exp2(np.random.default_rng(seed).uniform(-6, 6, count)).astype(np.float32)


@pytest.mark.parametrize("readers", READERS)
@pytest.mark.parametrize("case", CHAINS)
def test_channels_of_maps_are_divided_exactly(case, readers):
    model = chain(CHAINS[case], READERS[readers])
    step = rescaling("v", scales(1, C), axis=1)
    before = session(with_output(model, "v")).run(["v"], random_feeds(model))[0]
    check_same(model, step)
    assert not step.refusals
    after = session(with_output(model, "v")).run(["v"], random_feeds(model))[0]
    wanted = before / scales(1, C)[:, None, None]
    assert relative_l2([wanted], [after]) < 1e-5


def with_output(model: ir.Model, name: str) -> ir.Model:
    copy = model.clone()
    copy.graph.outputs.extend(o for n in copy.graph for o in n.outputs if o.name == name)
    return copy


@given(st.integers(0, 999), st.sampled_from(sorted(CHAINS)), st.sampled_from(sorted(READERS)))
def test_any_scale_in_float(seed, case, readers):
    step = rescaling("v", scales(seed, C), axis=1)
    check_same(chain(CHAINS[case], READERS[readers]), step)


def test_a_layer_behind_a_flattened_pool():
    body = "p = Conv(x, w, b)\n q = GlobalMaxPool(p)\n v = Flatten(q)\n y = Gemm(v, f)"
    step = rescaling("v", scales(2, C), axis=-1)
    model = check_same(chain(body), step)
    assert not step.refusals
    assert {"w.rescaled", "b.rescaled", "f.rescaled"} <= set(model.graph.initializers)


def test_equal_numbers_are_still_one_a_channel():
    body = "p = Conv(x, w, b)\n q = GlobalMaxPool(p)\n v = Flatten(q)\n y = Gemm(v, f)"
    step = rescaling("v", np.full(C, 2.0), axis=-1)
    check_same(chain(body), step)
    assert not step.refusals


KEPT = {
    "a graph input": ("v", "", "no node of the graph makes the value"),
    "an output": ("y", "y = Conv(x, w)\n z = Conv(y, u)", "an output of the model"),
    "another reader": (
        "v",
        "v = Conv(x, w)\n z = Conv(v, u)\n y = Tanh(v)",
        "others read the same",
    ),
    "read before": (
        "v",
        "p = Conv(x, w)\n v = Relu(p)\n z = Conv(v, u)\n y = Tanh(p)",
        "others read a value before it",
    ),
    "hard swish": ("v", "p = Conv(x, w)\n v = HardSwish(p)\n y = Conv(v, u)", "HardSwish makes it"),
    "clip": ("v", "p = Conv(x, w)\n v = Clip(p, zero)\n y = Conv(v, u)", "its bound would have"),
    "a sum": ("v", "p = Conv(x, w)\n v = Add(p, x)\n y = Conv(v, u)", "a sum of values makes it"),
    "another min": (
        "v",
        "p = Conv(x, w)\n l = Min(x, zero)\n m = Mul(sc, l)\n v = Add(m, p)\n y = Conv(v, u)",
        "a sum of values makes it",
    ),
    "ones": ("v", "p = Conv(x, w)\n v = Pad(p, pads, one)\n y = Conv(v, u)", "Pad makes it"),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_cannot_be_divided_is_left_and_counted(case):
    value, body, reason = KEPT[case]
    inputs = MAPS if body else MAPS.replace(" x", " v")
    step = rescaling(value, scales(3, C), axis=1)
    check_same(chain(body or "y = Conv(v, u)", inputs=inputs), step, changes=False)
    (found,) = step.refusals
    assert found.startswith("not equalized: ")
    assert reason in found


ROWS = f"float[2, 3, {C}] x"


def attention(seed: int = 0) -> ir.Model:
    """Two heads of values, weighted, and the projection behind them."""
    body = (
        "[a] l = LayerNormalization(x, g, b)\n[q] q = MatMul(l, wq)\n[v] v = MatMul(l, wv)\n"
        "[s] p = Softmax(q)\n[r] r = Reshape(v, heads)\n[t] t = Transpose <perm=[0, 2, 1, 3]> (r)\n"
        "[m] m = MatMul(weights, t)\n[k] k = Transpose <perm=[0, 2, 1, 3]> (m)\n"
        "[f] o = Reshape(k, merge)\n[o] z = MatMul(o, wo)\n[e] y = Add(z, p)"
    )
    names = ("wq", "wv", "wo")
    return graph_of(
        f"{ROWS}, float[2, 2, 3, 3] weights",
        body,
        g=normal(seed + 1, C),
        b=normal(seed + 2, C),
        heads=np.array([0, 0, 2, C // 2], np.int64),
        merge=np.array([0, 0, C], np.int64),
        **{name: normal(seed + i + 3, C, C) for i, name in enumerate(names)},
    )


@given(st.integers(0, 999))
def test_q_and_v_share_one_scale_and_heads_are_followed(seed):
    rescaled = {
        "l": Rescaled(remedy="smoothquant", axis=-1, scale=[float(s) for s in scales(seed, C)]),
        "o": Rescaled(remedy="smoothquant", axis=-1, scale=[float(s) for s in scales(seed + 1, C)]),
    }
    step = RescaleChannels(remedies=Remedies(rescaled=rescaled))
    model = check_same(attention(seed), step)
    assert not step.refusals
    assert not any(node.op_type == "Mul" for node in model.graph)
    assert {"wq.rescaled", "wv.rescaled.rescaled", "wo.rescaled"} <= set(model.graph.initializers)


FOLDS = {
    "layer norm": "[a] v = LayerNormalization(x, g, h)",
    "rms norm written out": "[p] q = Mul(x, x)\n[m] m = ReduceMean(q, last)\n"
    "[s] s = Sqrt(m)\n[d] d = Div(x, s)\n[a] v = Mul(d, g)",
    "mul": "[p] p = Tanh(x)\n[a] v = Mul(p, g)",
    "linear": "[p] p = MatMul(x, r)\n[a] v = Add(p, h)",
    "linear behind relu": "[p] p = MatMul(x, r)\n[q] q = Add(p, h)\n[a] v = Relu(q)",
    "gated": "[p] p = MatMul(x, r)\n[q] q = Sigmoid(x)\n[a] v = Mul(q, p)",
}


@pytest.mark.parametrize("case", FOLDS)
def test_smoothing_folds_into_what_makes_the_value(case):
    body = f"{FOLDS[case]}\n[b] y = MatMul(v, w)\n[c] k = MatMul(v, u)\n[e] z = Add(y, k)"
    weights = {"g": normal(1, C), "h": normal(2, C), "r": normal(3, C, C)}
    weights |= {"w": normal(4, C, C), "u": normal(5, C, C), "last": np.array([-1])}
    used = {n: w for n, w in weights.items() if f" {n})" in body or f" {n}," in body}
    model = graph_of(ROWS, body, outputs="z", **used)
    before = model.graph.num_nodes()
    step = rescaling("v", scales(6, C), -1, "smoothquant")
    check_same(model, step)
    assert not step.refusals
    assert not step.multiplied
    assert model.graph.num_nodes() == before


def test_a_mul_divides_for_the_layers_alone():
    layers = "[b] p = MatMul(v, w)\n[c] q = MatMul(v, u)\n"
    body = f"[a] v = Tanh(x)\n{layers}[d] s = Add(p, q)\n[e] y = Add(s, v)"
    model = graph_of(ROWS, body, w=normal(1, C, C), u=normal(2, C, C))
    step = rescaling("v", scales(4, C), -1, "smoothquant")
    model = check_same(model, step)
    assert step.refusals == {MUL + "others read the same value": 1}
    assert step.multiplied == {"v": "others read the same value"}
    (mul,) = [node for node in model.graph if node.op_type == "Mul"]
    assert sorted(use.node.name for use in mul.outputs[0].uses()) == ["b", "c"]


def test_smoothing_needs_a_layer():
    model = graph_of(ROWS, "[a] v = Tanh(x)\n[b] y = Relu(v)")
    step = rescaling("v", scales(4, C), -1, "smoothquant")
    check_same(model, step, changes=False)
    assert step.refusals == {"not smoothed: no layer of the main graph reads the value": 1}


def test_a_weight_that_two_nodes_share_is_not_changed_for_the_other():
    body = "[a] l = Relu(x)\n[b] v = MatMul(l, w)\n[c] y = MatMul(v, w)"
    step = rescaling("v", scales(5, C), -1, "smoothquant")
    model = check_same(graph_of(ROWS, body, w=normal(1, C, C)), step)
    assert set(model.graph.initializers) == {"w.rescaled", "w.rescaled.2"}


def test_a_plan_that_does_not_fit_is_an_error():
    model = graph_of(ROWS, "[a] v = Tanh(x)\n[b] y = MatMul(v, w)", w=normal(1, C, C))
    for step, message in (
        (rescaling("gone", scales(1, C), -1), "value gone is not in the model"),
        (rescaling("v", scales(1, 3), -1), "value v has not 3 channels on axis -1"),
        (rescaling("v", np.full(C, 1e-45), -1), "a scale of value v is no float32 number"),
    ):
        with pytest.raises(Exception, match=message) as caught:
            step(model)
        assert isinstance(caught.value.__cause__ or caught.value, PlanError)
