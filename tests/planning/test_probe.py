"""What the probe and the switchboard measure, against direct computations."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics.grids import affine_grid, dequantize, quantize
from qcompile.planning.plan import activations_of, readers
from qcompile.planning.probe import Probe, Reading
from qcompile.planning.switchboard import Switchboard
from qcompile.runtime.ort import Session
from qcompile.samples import Array, InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.tools import Quantized, feeds_of, graph_of, minmax, normal, quantize_graph

VNNI, ARM = ORT_CPU.types("int8", "vnni"), ORT_CPU.types("int8", "arm")

PICTURE = "float[1, 8, 9, 9] x"
W1, W2 = normal(1, 8, 8, 3, 3, scale=0.2), normal(2, 8, 8, 1, 1)
CONVS = "[c1] a = Conv(x, v)\n[r] p = Relu(a)\n[c2] y = Conv(p, w)"


def rounded(values: Array, low: float, high: float) -> Array:
    """Round to the uint8 grid of a range, by numpy."""
    scale, zero = affine_grid(low, high, 0, 255)
    grid = np.float32(scale), np.asarray(zero)
    return dequantize(quantize(values, *grid, None, "uint8"), *grid, None)


@given(st.integers(0, 99), st.floats(0.1, 5), st.floats(0.1, 5))
def test_probe_is_the_error_of_the_layer_with_rounded_input(seed, low, high):
    model = graph_of(PICTURE, CONVS, v=W1, w=W2)
    samples = feeds_of(model, 2, seed)
    probe = Probe(model, {"x": ["c1"], "p": ["c2"]}, VNNI, InMemory(samples), 1)
    found = probe.measure({"x": (-low, high), "p": (0.0, high)})
    assert set(found) == {("x", "a"), ("p", "y")}
    layer = Session(graph_of(PICTURE, "[c1] y = Conv(x, v)", v=W1), optimize=False)
    error = power = 0.0
    for feeds in samples:
        exact = layer.run(feeds)["y"]
        rough = layer.run({"x": rounded(feeds["x"], -low, high)})["y"]
        error += float(((exact - rough) ** 2).sum(dtype=np.float64))
        power += float((exact**2).sum(dtype=np.float64))
    reading = found["x", "a"]
    np.testing.assert_allclose([reading.error, reading.power], [error, power], rtol=1e-3)
    assert reading.relative == pytest.approx(np.sqrt(error / power), rel=1e-3)


def test_probe_looks_behind_nodes_that_only_move_data():
    body = "[m] p = MaxPool <kernel_shape=[2,2]> (x)\n[t] q = Transpose <perm=[0,1,3,2]> (p)\n"
    model = graph_of(PICTURE, body + "[c] y = Conv(q, w)", w=W2)
    samples = InMemory(feeds_of(model))
    assert set(Probe(model, {"x": ["m"]}, VNNI, samples, 1).measure({"x": (-3, 3)})) == {("x", "y")}


def test_probe_of_a_tensor_without_readers_is_its_own_rounding():
    model = graph_of(PICTURE, "[c] y = Conv(x, w)", w=W2)
    samples = feeds_of(model)
    found = Probe(model, {"y": []}, ARM, InMemory(samples), 1).measure({"y": (-1.0, 2.0)})
    exact = [Session(model).run(feeds)["y"] for feeds in samples]
    error = sum(float(((e - rounded(e, -1.0, 2.0)) ** 2).sum()) for e in exact)
    assert found["y", "y"].error == pytest.approx(error, rel=1e-3)


def test_probe_leaves_the_model_and_knows_silence():
    model = graph_of(PICTURE, CONVS, v=W1, w=W2 * 0)
    before = model.graph.num_nodes()
    probe = Probe(model, {"p": ["c2"]}, VNNI, InMemory(feeds_of(model)), 1)
    assert probe.measure({"p": (0, 1)})["p", "y"] == Reading(0.0, 0.0)
    assert Reading(0.0, 0.0).relative == 0.0
    assert model.graph.num_nodes() == before


@pytest.mark.parametrize("jobs", [2, 5])
def test_sums_do_not_depend_on_jobs(jobs):
    model = graph_of(PICTURE, CONVS, v=W1, w=W2)
    samples = InMemory(feeds_of(model, 7))
    ranges = {"x": (-2.0, 2.0), "p": (0.0, 3.0), "y": (-4.0, 4.0)}
    probes = [Probe(model, {"x": ["c1"], "p": ["c2"]}, VNNI, samples, n) for n in (1, jobs)]
    one, many = (probe.measure(ranges) for probe in probes)
    assert one == many
    done = quantize_graph(model)
    boards = [board(done, samples, n) for n in (1, jobs)]
    assert boards[0].noise(ranges, boards[0].units) == boards[1].noise(ranges, boards[1].units)


BODIES = {
    "convs": CONVS,
    "residual": """
        [c1] a = Conv <pads=[1,1,1,1]> (x, v)
        [r] p = Relu(a)
        [c2] d = Conv(p, w)
        [add] s = Add(d, p)
        [r2] q = Relu(s)
        [pool] m = MaxPool <kernel_shape=[2,2]> (q)
        [c3] y = Conv(m, w)
    """,
    "float in the middle": """
        [c1] a = Conv(x, v)
        [e] p = Tanh(a)
        [c2] d = Conv(p, w)
        [s] y = Sub(d, a)
    """,
    "concat and two outputs": """
        [c1] a = Conv(x, w)
        [c2] d = Conv(a, w)
        [cat] s = Concat <axis=2> (a, d)
        [c3] y = Conv(s, w)
        [e] z = Exp(d)
    """,
    "matmul and add": """
        [f] p = Flatten(x)
        [g] q = Gemm(p, big, bias)
        [l] h = LayerNormalization(q, ones)
        [g2] y = MatMul(h, square)
    """,
}
MORE = {
    "big": normal(5, 648, 32, scale=0.1),
    "bias": normal(6, 32),
    "ones": np.ones(32, np.float32),
    "square": normal(7, 32, 32, scale=0.2),
}


def built(case: str) -> tuple[ir.Model, Quantized, InMemory]:
    body = BODIES[case]
    used = {k: v for k, v in {"v": W1, "w": W2, **MORE}.items() if f", {k}" in body}
    model = graph_of(PICTURE, body, "y, z" if "z =" in body else "y", **used)
    samples = feeds_of(model, 3)
    return model, quantize_graph(model, samples=samples), InMemory(samples)


def board(done: Quantized, samples: InMemory, jobs: int = 1) -> Switchboard:
    return Switchboard(done.source, done.selection, done.plan, VNNI, {}, samples, jobs)


def ranges_of(done: Quantized, samples: InMemory) -> dict[str, tuple[float, float]]:
    choices = minmax(done.source, activations_of(done.selection), samples.feeds)
    return {name: (choice.low, choice.high) for name, choice in choices.items()}


def output_noise(done: Quantized, samples: InMemory) -> float:
    """Return the mean over outputs of noise power over signal power of the plain QDQ graph."""
    exact, rough = Session(done.source, optimize=False), Session(done.model, optimize=False)
    error: dict[str, float] = {}
    power: dict[str, float] = {}
    for feeds in samples.feeds:
        left, right = exact.run(feeds), rough.run(feeds)
        for name in left:
            a, b = left[name].astype(np.float64), right[name].astype(np.float64)
            error[name] = error.get(name, 0) + ((a - b) ** 2).sum()
            power[name] = power.get(name, 0) + (a**2).sum()
    return float(np.mean([error[name] / power[name] for name in error]))


@pytest.mark.parametrize("case", BODIES)
def test_switchboard_with_all_units_on_is_the_simulated_model(case):
    _, done, samples = built(case)
    switches = board(done, samples)
    ranges = ranges_of(done, samples)
    expected = output_noise(done, samples)
    assert expected > 0
    assert switches.noise(ranges, switches.units) == pytest.approx(expected, rel=1e-3)
    assert switches.noise(ranges, ()) == 0.0


@pytest.mark.parametrize("case", BODIES)
def test_every_unit_makes_noise_and_they_nearly_add_up(case):
    _, done, samples = built(case)
    switches = board(done, samples)
    ranges = ranges_of(done, samples)
    alone = [switches.noise(ranges, [unit]) for unit in switches.units]
    assert all(noise > 0 for noise in alone)
    together = switches.noise(ranges, switches.units)
    assert together / 3 < sum(alone) < together * 3


def test_a_clipped_range_is_heard():
    _, done, samples = built("convs")
    switches = board(done, samples)
    ranges = ranges_of(done, samples)
    quiet = switches.noise(ranges, switches.units)
    assert switches.noise({**ranges, "x": (-0.2, 0.2)}, switches.units) > 10 * quiet


def test_errors_are_judged_before_a_final_softmax():
    body = CONVS + "\n[f] l = Flatten(y)\n[s] z = Softmax(l)"
    plain = quantize_graph(graph_of(PICTURE, CONVS, v=W1, w=W2))
    model = graph_of(PICTURE, body, "z", v=W1, w=W2)
    samples = InMemory(feeds_of(model, 3))
    done = quantize_graph(model, samples=samples.feeds)
    switches = board(done, samples)
    ranges = ranges_of(done, samples)
    expected = board(plain, samples).noise(ranges, switches.units)
    assert switches.noise(ranges, switches.units) == pytest.approx(expected, rel=1e-3)


def test_readers_of_float_and_int8_values():
    body = "[c1] a = Conv(x, v)\n[e] p = Tanh(a)\n[e2] q = Tanh(x)\n[c2] d = Conv(p, w)\n"
    model = graph_of(PICTURE, body + "[s] y = Mul(d, a)", "y, q", v=W1, w=W2)
    done = quantize_graph(model)
    found = readers(model, done.selection)
    assert found["x"] == ["c1"], "float readers of an input see exact values"
    assert found["a"] == ["e", "s"], "readers of an int8 node's output see codes"
