"""Weights are solved one group after another, each on what earlier codes leave of its input."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import OutputError
from qcompile.planning.layer_inputs import LayerInputs
from qcompile.planning.sequence import POSITIONS, round_weights, solve_weights
from qcompile.planning.solve import solve_layers
from qcompile.progress import Silent
from qcompile.recipe import Weights
from qcompile.runtime.ort import Session, kernels
from qcompile.samples import InMemory
from qcompile.targets.onnx_std import ONNX_STD
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.solving import (
    ADAROUND,
    job_of,
    mixed,
    needs_torch,
    outputs_differ,
    plan_of,
    samples_of,
    with_values,
    written,
)
from tests.planning.tools import graph_of, normal

K = 64
ALGORITHMS = ("rtn", "gptq", "awq", "awq+gptq", "auto")


def chain(seed=0):
    """Two layers, one behind the other."""
    body = "[up] h = MatMul(x, up)\n[act] a = Relu(h)\n[down] y = MatMul(a, down)"
    weights = {"up": normal(seed, K, 96, scale=0.2), "down": normal(seed + 1, 96, K, scale=0.2)}
    return graph_of(f'float["n", {K}] x', body, **weights)


def attention(seed=0):
    """Three layers with one input behind a normalization, a fourth behind them."""
    body = """
        [norm] n = LayerNormalization(x, gamma, beta)
        [q] a = MatMul(n, wq)
        [k] b = Gemm <transB = 1> (n, wk, bias)
        [v] c = MatMul(n, wv)
        [ab] d = Mul(a, b)
        [abc] e = Add(c, d)
        [o] y = MatMul(e, wo)
    """
    shapes = {"wq": (K, K), "wk": (K, K), "wv": (K, K), "wo": (K, 96)}
    weights = {n: normal(seed + i, *s, scale=0.2) for i, (n, s) in enumerate(shapes.items())}
    weights |= {"gamma": 1 + normal(7, K, scale=0.5), "beta": normal(8, K), "bias": normal(9, K)}
    return graph_of(f'float["n", {K}] x', body, **weights)


def values_at(model: ir.Model, name: str, samples) -> list[np.ndarray]:
    """Return an activation of a model, by ONNX Runtime, for each sample."""
    tapped = model.clone()
    found = {out.name: out for node in tapped.graph for out in node.outputs}
    tapped.graph.outputs.clear()
    tapped.graph.outputs.append(found[name])
    session = Session(tapped, optimize=False)
    return [session.run(samples[i])[name] for i in range(len(samples))]


def distance(job, feeds) -> float:
    """Return how far the engine is from a float model with the values of the solved weights.

    Optimized, ONNX Runtime computes behind a DequantizeLinear with int8 activations.
    """
    exact = Session(with_values(job)).run(feeds)
    optimized = Session(written(job)).run(feeds)
    if job.target is ORT_CPU:
        return outputs_differ(optimized, exact)
    assert outputs_differ(optimized, exact) < 0.03
    return outputs_differ(Session(written(job), optimize=False).run(feeds), exact)


def solved_on(rows, weight, options):
    """Solve one layer on given inputs, outside of any sequence."""
    inputs = LayerInputs(rows[0].shape[-1], len(rows))
    for index, x in enumerate(rows):
        inputs.add(index, x.reshape(-1, x.shape[-1]))
    (outcome,), _ = solve_layers([weight], inputs, options, "float32")
    return outcome


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_a_later_layer_is_solved_on_what_earlier_codes_leave(tmp_path, algorithm):
    samples = samples_of(24, K)
    job = job_of(chain(), tmp_path, bits=3, group_size=32, algorithm=algorithm)
    solve_weights(job, samples)
    options = Weights(bits=3, group_size=32, algorithm=algorithm)
    down = next(layer for layer in job.selection.layers if layer.name == "down")
    quantized = values_at(with_values(job, ["up"]), "a", samples)
    in_float = values_at(job.model, "a", samples)
    expected = solved_on(quantized, down.values(), options)
    other = solved_on(in_float, down.values(), options)
    found, errors = job.store.load("down"), job.plans()["down"].errors
    assert errors == pytest.approx(expected.errors, rel=1e-4)
    assert errors != pytest.approx(other.errors, rel=2e-3)
    right = (found.codes == expected.chosen.solved.codes).mean()
    wrong = (found.codes == other.chosen.solved.codes).mean()
    assert right > 0.999
    assert wrong < 0.99


@pytest.mark.parametrize("algorithm", ["gptq", "awq+gptq"])
def test_a_later_layer_makes_up_for_the_codes_of_earlier_ones(tmp_path, algorithm):
    options = {"bits": 3, "group_size": 32, "algorithm": algorithm}
    moved, plain = (
        job_of(chain(), tmp_path / str(asked), **options, compensate=asked)
        for asked in (True, False)
    )
    for job in (moved, plain):
        solve_weights(job, samples_of(48, K, count=48))
    up, down = moved.plans().values()
    assert (up.inherited, up.left) == (0, 0)
    assert down.left < 0.97 * down.inherited
    assert {p.inherited for p in plain.plans().values()} == {None}
    first, same = (job.store.load("up").codes for job in (moved, plain))
    np.testing.assert_array_equal(first, same)
    exact, found, other = (
        values_at(model, "y", samples_of(48, K, count=60))[48:]
        for model in (moved.model, with_values(moved), with_values(plain))
    )
    lost = [
        sum(np.square(x - y).sum() for x, y in zip(one, exact, strict=True))
        for one in (found, other)
    ]
    assert lost[0] < 0.97 * lost[1]


def test_rows_that_depend_on_earlier_values_are_compared_with_none(tmp_path):
    body = """
        h = MatMul(x, up)
        s = ReduceSum <keepdims=0> (h, axis)
        c = Greater(s, zero)
        k = Compress <axis=0> (h, c)
        y = MatMul(k, down)
    """
    weights = {"up": normal(0, K, 96, scale=0.2), "down": normal(1, 96, K, scale=0.2)}
    more = {"axis": np.array([1]), "zero": np.float32(0)}
    model = graph_of(f'float["n", {K}] x', body, **weights, **more)
    progress = Silent()
    job = job_of(model, tmp_path, bits=3, group_size=32, algorithm="awq+gptq", progress=progress)
    solve_weights(job, samples_of(24, K, count=24))
    (notice,) = progress.notices
    assert notice.startswith("down: makes up for no earlier layer")
    assert job.plans()["down"].inherited is None
    assert distance(job, {"x": mixed(50, 5, K)}) < 1e-5


def test_a_plan_gives_the_codes_that_made_it(tmp_path):
    samples, options = samples_of(24, K), {"bits": 3, "group_size": 32}
    job = job_of(attention(), tmp_path / "a", algorithm="awq+gptq", **options)
    solve_weights(job, samples)
    assert all(plan.compensate for plan in job.plans().values())
    again = job_of(attention(), tmp_path / "b", algorithm="rtn", edited=plan_of(job))
    solve_weights(again, samples)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


@pytest.mark.parametrize("target", [ORT_CPU, ONNX_STD], ids=lambda t: t.name)
@pytest.mark.parametrize(("bits", "asymmetric"), [(3, False), (4, True)])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, ADAROUND])
def test_the_engine_computes_what_the_solved_values_say(
    tmp_path, target, algorithm, bits, asymmetric
):
    job = job_of(
        attention(), tmp_path, target,
        bits=bits, group_size=32, algorithm=algorithm, asymmetric=asymmetric,
    )  # fmt: skip
    solve_weights(job, samples_of(24, K))
    for feeds in (samples_of(24, K)[0], {"x": mixed(100, 1, K)}):
        assert distance(job, feeds) < 1e-5
    if target is ORT_CPU:
        assert kernels(written(job))["com.microsoft::MatMulNBits"] == 4


def test_q_k_and_v_share_a_scale_of_their_input_and_a_hessian(tmp_path):
    job = job_of(attention(), tmp_path, bits=3, group_size=32, algorithm="awq")
    solve_weights(job, samples_of(24, K))
    scales = {n: job.store.load(n).input_scale for n in ("wq", "wk", "wv", "wo")}
    assert scales["wq"] is not None
    np.testing.assert_array_equal(scales["wq"], scales["wk"])
    np.testing.assert_array_equal(scales["wq"], scales["wv"])
    # their scale went into the normalization: it costs no operator
    ops = [node.op_type for node in written(job).graph]
    assert ops.index("LayerNormalization") == ops.index("MatMulNBits") - 1
    ordered = job_of(
        attention(), tmp_path / "b", bits=3, group_size=32, algorithm="gptq", static_groups=False
    )
    solve_weights(ordered, samples_of(24, K))
    orders = [ordered.store.load(n).order for n in ("wq", "wk", "wv")]
    assert orders[0] is not None
    np.testing.assert_array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[0], orders[2])
    gathers = [node for node in written(ordered).graph if node.op_type == "Gather"]
    assert len(gathers) == 2  # one for the three, one for the last


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("target", [ORT_CPU, ONNX_STD], ids=lambda t: t.name)
def test_any_order_of_columns_gives_an_engine_that_computes_the_same(
    tmp_path, target, act_order, static
):
    job = job_of(
        chain(), tmp_path, target,
        group_size=32, algorithm="gptq", act_order=act_order, static_groups=static,
    )  # fmt: skip
    solve_weights(job, samples_of(24, K))
    engine = written(job)
    permuted = act_order and not static
    assert any(node.op_type == "Gather" for node in engine.graph) == permuted
    assert {plan.permuted for plan in job.plans().values()} == {permuted}
    assert distance(job, {"x": mixed(50, 5, K)}) < 1e-5
    assert all(p.errors["gptq"] < p.errors["rtn"] for p in job.plans().values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("target", [ORT_CPU, ONNX_STD], ids=lambda t: t.name)
def test_a_weight_that_two_nodes_read(tmp_path, target, algorithm):
    body = "[a] h = MatMul(x, w)\n[r] k = Relu(h)\n[b] y = MatMul(k, w)"
    model = graph_of(f"float[4, {K}] x", body, w=normal(0, K, K, scale=0.2))
    job = job_of(model, tmp_path, target, bits=3, group_size=32, algorithm=algorithm)
    solve_weights(job, samples_of(4, K))
    assert list(job.plans()) == ["w"]
    assert distance(job, {"x": mixed(60, 4, K)}) < 1e-5
    codes = [v for v in written(job).graph.initializers.values() if "codes" in str(v.name)]
    assert len(codes) == 1


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "awq+gptq", ADAROUND])
@pytest.mark.parametrize(
    "body",
    [
        "[a] y = Gemm <transB = 1> (x, w, b)",
        "[a] y = Gemm <transB = 1> (x, w)",
    ],
)
def test_a_gemm_that_reads_its_weight_by_rows(tmp_path, body, algorithm):
    more = {"b": normal(1, 96)} if "b)" in body else {}
    model = graph_of(f"float[20, {K}] x", body, w=normal(0, 96, K, scale=0.2), **more)
    job = job_of(model, tmp_path, bits=3, group_size=32, algorithm=algorithm)
    solve_weights(job, samples_of(20, K))
    assert job.store.load("w").codes.shape == (96, K)
    assert job.plans()["w"].errors[algorithm] < job.plans()["w"].errors["rtn"]
    assert distance(job, {"x": mixed(70, 20, K)}) < 1e-5


@pytest.mark.parametrize("shape", [(K,), (2, 3, K), (2, 1, 5, K)])
def test_a_matmul_of_any_rank(tmp_path, shape):
    dims = ", ".join(map(str, shape))
    model = graph_of(f"float[{dims}] x", "[a] y = MatMul(x, w)", w=normal(0, K, 48, scale=0.2))
    job = job_of(model, tmp_path, group_size=32, algorithm="awq+gptq")
    solve_weights(job, samples_of(*shape, count=40))
    assert distance(job, {"x": mixed(80, *shape)}) < 1e-5
    flat = graph_of(f'float["n", {K}] x', "[a] y = MatMul(x, w)", w=normal(0, K, 48, scale=0.2))
    rows = InMemory([{"x": mixed(i, *shape).reshape(-1, K)} for i in range(40)])
    same = job_of(flat, tmp_path / "flat", group_size=32, algorithm="awq+gptq")
    solve_weights(same, rows)
    assert (same.store.load("w").codes == job.store.load("w").codes).mean() > 0.999


@pytest.mark.parametrize("algorithm", ["rtn", "gptq", ADAROUND])
@pytest.mark.parametrize(
    "how",
    ["dilations = [2, 2]", "pads = [1, 1, 1, 1], strides = [2, 2]", 'auto_pad = "SAME_UPPER"'],
)
def test_convolutions(tmp_path, how, algorithm):
    body = f"[a] h = Conv <{how}> (x, w, b)\n[r] k = Relu(h)\n[c] y = Conv(k, v)"
    weights = {"w": normal(0, 24, 16, 3, 3, scale=0.2), "b": normal(1, 24)}
    model = graph_of(
        "float[1, 16, 16, 16] x", body, **weights, v=normal(2, 16, 24, 3, 3, scale=0.1)
    )
    job = job_of(model, tmp_path, ONNX_STD, operators=("Conv",), algorithm=algorithm, bits=4)
    rng = np.random.default_rng(0)
    images = [np.cumsum(rng.standard_normal((1, 16, 16, 16)), axis=3) for _ in range(18)]
    samples = InMemory([{"x": image.astype(np.float32)} for image in images])
    solve_weights(job, samples)
    plans = job.plans()
    assert list(plans) == ["w", "v"]
    if algorithm != "rtn":
        assert all(p.errors[algorithm] < p.errors["rtn"] for p in plans.values())
    engine = written(job)
    assert [node.op_type for node in engine.graph].count("DequantizeLinear") == 2
    assert distance(job, samples[3]) < 1e-5


def test_the_error_of_a_convolution_is_that_of_its_output(tmp_path):
    model = graph_of(
        "float[1, 16, 9, 9] x", "[a] y = Conv(x, w)", w=normal(0, 24, 16, 3, 3, scale=0.2)
    )
    job = job_of(model, tmp_path, ONNX_STD, operators=("Conv",), algorithm="gptq")
    samples = InMemory([{"x": normal(i, 1, 16, 9, 9)} for i in range(6)])
    solve_weights(job, samples)  # the last of six judges
    exact, found = (Session(m).run(samples[5])["y"] for m in (model, with_values(job)))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    plan = job.plans()["w"]
    assert plan.errors[plan.algorithm] == pytest.approx(error, rel=1e-3)


class Stops(Silent):
    """Stops a job, as a kill does, when so many weights are done."""

    def __init__(self, after):
        super().__init__()
        self.after, self.steps = after, []

    def step(self, stage, done, total):
        self.steps.append((stage, done, total))
        if done == self.after:
            raise KeyboardInterrupt


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "weights").iterdir()}


@pytest.mark.parametrize(
    ("algorithm", "after"),
    [
        *(("awq+gptq", after) for after in (0, 1, 2, 3, 4)),
        *(pytest.param("adaround", after, marks=needs_torch) for after in (0, 2, 3)),
    ],
)
def test_a_stopped_job_goes_on_with_the_same_bytes(tmp_path, algorithm, after):
    samples = samples_of(24, K)
    options = {"bits": 3, "group_size": 32, "algorithm": algorithm}
    whole = job_of(attention(), tmp_path / "whole", **options)
    solve_weights(whole, samples)
    job = job_of(attention(), tmp_path / "part", progress=Stops(after), **options)
    with pytest.raises(KeyboardInterrupt):
        solve_weights(job, samples)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "part" / "weights").glob("*")}
    assert len(kept) == after
    progress = Stops(after=99)
    again = job_of(attention(), tmp_path / "part", progress=progress, **options)
    solve_weights(again, samples)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert progress.steps[0] == ("solve: weights", after, 4)
    assert progress.steps[-1] == ("solve: weights", 4, 4)
    assert plan_of(again).text() == plan_of(whole).text()
    if after >= 3:  # the group of three was finished: its files were left alone
        assert sum(p.stat().st_mtime_ns == t for p, t in kept.items()) >= 3
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["weights"]


def test_a_finished_job_does_nothing(tmp_path):
    samples = samples_of(24, K)
    solve_weights(job_of(chain(), tmp_path, group_size=32), samples)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "weights").iterdir()}
    solve_weights(job_of(chain(), tmp_path, group_size=32), samples)
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "weights").iterdir()}


def test_a_damaged_weight_of_an_earlier_run_is_not_used(tmp_path):
    samples, options = samples_of(24, K), {"group_size": 32, "algorithm": "gptq"}
    with pytest.raises(KeyboardInterrupt):
        solve_weights(job_of(chain(), tmp_path, progress=Stops(1), **options), samples)
    (path,) = (tmp_path / "weights").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OutputError, match=r"weight 'up' is lost or damaged.*remove the folder"):
        solve_weights(job_of(chain(), tmp_path, **options), samples)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_rounding_needs_no_data_and_is_resumed(tmp_path, kind):
    body = "[up] h = MatMul(x, up)\n[act] a = Relu(h)\n[down] y = MatMul(a, down)"
    weights = {n: normal(i, K, K).astype(kind) for i, n in enumerate(("up", "down"))}
    typed = f"{'float16' if kind == 'float16' else 'float'}"
    model = graph_of(f"{typed}[3, {K}] x", body, f"{typed}[] y", **weights)
    with pytest.raises(KeyboardInterrupt):
        round_weights(job_of(model, tmp_path, group_size=32, progress=Stops(1)))
    job = job_of(model, tmp_path, group_size=32)
    round_weights(job)
    assert {p.algorithm for p in job.plans().values()} == {"rtn"}
    assert {p.scale_type for p in job.plans().values()} == {kind}
    assert all(p.errors == {} for p in job.plans().values())
    feeds = {"x": mixed(1, 3, K).astype(kind) / 8}
    exact = Session(with_values(job)).run(feeds)
    limit = 1e-5 if kind == "float32" else 2e-2
    assert outputs_differ(Session(written(job)).run(feeds), exact) < limit


@pytest.mark.parametrize("algorithm", ["rtn", "gptq", "auto"])
def test_no_weight_stays_mapped(tmp_path, algorithm):
    """Pages of a mapped file count as memory in use, and a model has more than there is."""
    path = tmp_path / "model.onnx"
    ir.save(attention(), path, external_data="model.data", size_threshold_bytes=1)
    model = ir.load(path)
    job = job_of(model, tmp_path / "job", group_size=32, algorithm=algorithm)
    solve_weights(job, samples_of(8, K))
    solved = [v.const_value for v in model.graph.initializers.values() if v.name in job.plans()]
    assert [type(tensor) for tensor in solved] == [ir.ExternalTensor] * 4
    assert [tensor.raw for tensor in solved] == [None] * 4
    mapped = Path("/proc/self/maps").read_text().count("model.data")
    assert mapped <= len(model.graph.initializers) - 4


def test_many_positions_are_thinned_out(tmp_path):
    """A sample gives at most so many rows, spread over it, so that a long one is not cut off."""
    rows = np.concatenate([np.zeros((POSITIONS, K)), mixed(0, POSITIONS, K)]).astype(np.float32)
    model = graph_of(f'float["n", {K}] x', "[a] y = MatMul(x, w)", w=normal(0, K, 48))
    job = job_of(model, tmp_path, group_size=32, algorithm="gptq")
    solve_weights(job, InMemory([{"x": rows}]))
    assert job.plans()["w"].errors["gptq"] < job.plans()["w"].errors["rtn"]


def test_damping_beyond_what_was_asked_is_told(tmp_path):
    model = graph_of(f"float[2, {K}] x", "[a] y = MatMul(x, w)", w=normal(0, K, 48))
    progress = Silent()
    x = np.ones((2, K), np.float32) * 1e3
    job = job_of(model, tmp_path, group_size=32, algorithm="gptq", damping=1e-18, progress=progress)
    solve_weights(job, InMemory([{"x": x}]))
    (notice,) = progress.notices
    assert notice.startswith("w: GPTQ's Hessian took a damping of ")


def test_the_record_of_a_weight_is_its_plan(tmp_path):
    job = job_of(chain(), tmp_path, bits=3, group_size=32, algorithm="auto", asymmetric=True)
    solve_weights(job, samples_of(24, K))
    for plan in job.plans().values():
        assert set(plan.errors) == {"rtn", "gptq", "awq", "awq+gptq"}
        assert (plan.bits, plan.group_size, plan.symmetric, plan.form) == (3, 32, False, "nbits")
        assert (plan.accuracy_level, plan.level_error) == (0, pytest.approx(0, abs=1e-5))
        assert json.loads(json.dumps(plan.model_dump(mode="json"))) == plan.model_dump(mode="json")
