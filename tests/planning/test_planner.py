"""Whole plans: what is too loud stays in float with its reason; edited plans are checked."""

import re

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.calibrate.collect import collect
from qcompile.errors import PlanError
from qcompile.graph.digest import model_digest
from qcompile.graph.runner import run_passes
from qcompile.numerics.grids import Codes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.plan import NodePlan, Plan, TensorPlan
from qcompile.planning.edited import with_bias_scales
from qcompile.planning.followed import check_plan
from qcompile.planning.plan import Planner, activations_of, wishes_of
from qcompile.planning.select import select
from qcompile.planning.switchboard import judged_values
from qcompile.progress import Silent
from qcompile.recipe import Calibration, Recipe
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.tools import HOLDS, graph_of, normal

PICTURE = "float[1, 16, 14, 14] x"


def network(**weights: np.ndarray) -> ir.Model:
    """Four convolutions, each with enough arithmetic to pay for its conversions."""
    body = """
    [c1] a = Conv <auto_pad="SAME_UPPER"> (x, w1)
    [r1] p = Relu(a)
    [c2] d = Conv <auto_pad="SAME_UPPER"> (p, w2)
    [r2] q = Relu(d)
    [c3] e = Conv <auto_pad="SAME_UPPER"> (q, w3)
    [r3] s = Relu(e)
    [c4] y = Conv <auto_pad="SAME_UPPER"> (s, w4)
    """
    sizes = {"w1": 3, "w2": 3, "w3": 5, "w4": 5}
    given = {
        name: normal(i, 16, 16, size, size, scale=0.1)
        for i, (name, size) in enumerate(sizes.items())
    }
    return graph_of(PICTURE, body, **{**given, **weights})


def pictures(model: ir.Model, count: int = 12, outlier: float = 1.0) -> InMemory:
    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(count):
        x = rng.standard_normal((1, 16, 14, 14)).astype(np.float32)
        x[:, 3] *= outlier
        feeds.append({"x": x})
    return InMemory(feeds)


def made(
    model: ir.Model, samples: InMemory, recipe: Recipe | None = None
) -> tuple[Plan, dict[str, Codes], Silent]:
    recipe = recipe or Recipe(jobs=2)
    wishes = wishes_of(recipe)
    names = activations_of(select(model, ORT_CPU, "int8", wishes))
    statistics = collect(model, samples, names, jobs=2)
    progress = Silent()
    types = ORT_CPU.types("int8", "vnni")
    planner = Planner(model, statistics, samples, recipe, ORT_CPU, "vnni", types, progress)
    return *planner.make(wishes), progress


def sqnr(model: ir.Model, plan: Plan, codes: dict[str, Codes], samples: InMemory) -> float:
    written = model.clone()
    run_passes(written, [InsertQdq(plan=plan, codes=codes)], holds=HOLDS)
    exact, rough = Session(model), Session(written, optimize=False)
    pairs = [(exact.run(f)["y"], rough.run(f)["y"]) for f in samples.feeds]
    noise = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return 10 * np.log10(sum(float((a**2).sum()) for a, _ in pairs) / noise)


def floats(plan: Plan) -> dict[str, str]:
    return {n: e.reason for n, e in plan.nodes.items() if e.precision == "float"}


def test_a_quiet_model_is_int8_from_end_to_end():
    model = network()
    samples = pictures(model)
    plan, codes, progress = made(model, samples)
    assert not floats(plan)
    assert sqnr(model, plan, codes, samples) > 30
    assert not progress.notices
    assert all(t.errors for t in plan.tensors.values() if t.kind == "activation")


def gain(model: ir.Model, samples: InMemory, plan: Plan, codes: dict[str, Codes]) -> float:
    """Return by how many dB a plan beats int8 everywhere."""
    everything, all_codes, _ = made(model, samples, Recipe(jobs=2, keep_accuracy=False))
    assert not floats(everything)
    return sqnr(model, plan, codes, samples) - sqnr(model, everything, all_codes, samples)


def test_a_planted_noisy_layer_is_found_and_left_in_float():
    """A huge weight on a channel that is always zero makes the grid of all others too coarse."""
    silent = normal(1, 16, 16, 3, 3, scale=0.1)
    silent[0] = 0
    loud = normal(2, 16, 16, 3, 3, scale=0.1)
    loud[:, 0] = 20
    model = network(w1=silent, w2=loud)
    samples = pictures(model)
    plan, codes, _ = made(model, samples)
    assert set(floats(plan)) == {"c2", "r2"}
    assert re.fullmatch(
        r"in int8 it alone causes \d+% of the noise at the outputs; "
        r"in float it costs \d+\.\d% of the arithmetic",
        floats(plan)["c2"],
    )
    assert gain(model, samples, plan, codes) > 6


def differences(size: int) -> ir.Model:
    """Return differences of nearly equal channels: what is left of them is the rounding of p."""
    half = normal(2, 16, 8, 1, 1)
    twin = normal(1, 16, 16, size, size, scale=0.1)
    twin[8:] = twin[:8] * (1 + normal(9, 8, 16, size, size, scale=0.01))
    return network(w1=twin, w2=np.concatenate([half, -half], axis=1) * 40)


def test_what_is_left_in_float_lowers_the_noise():
    model = differences(5)
    samples = pictures(model)
    plan, codes, _ = made(model, samples)
    assert not floats(plan) or gain(model, samples, plan, codes) > 1


def test_the_producer_of_a_tensor_that_must_not_be_rounded_is_left_in_float():
    model = differences(3)
    samples = pictures(model)
    plan, codes, _ = made(model, samples)
    assert set(floats(plan)) == {"c1", "r1", "c2", "r2"}
    assert gain(model, samples, plan, codes) > 20


def test_an_input_with_one_outlier_channel():
    """A channel 300 times as large as the others owns the input's grid: its reader is too loud."""
    quiet = normal(1, 16, 16, 3, 3, scale=0.1)
    quiet[:, 3] /= 3000
    model = network(w1=quiet)
    samples = pictures(model, outlier=300.0)
    plan, codes, _ = made(model, samples)
    assert "c1" in floats(plan)
    assert plan.precision("c3") == "int8"
    assert gain(model, samples, plan, codes) > 6


def test_plans_do_not_depend_on_jobs():
    model = network()
    samples = pictures(model, 6)
    one, two = (made(model, samples, Recipe(jobs=jobs))[0] for jobs in (1, 2))
    assert one.text() == two.text()


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_one_method_for_all(method):
    model = network()
    samples = pictures(model, 6)
    recipe = Recipe(jobs=2, calibration=Calibration(method=method), keep_accuracy=False)
    plan, _, _ = made(model, samples, recipe)
    methods = {t.method for t in plan.tensors.values() if t.kind == "activation"}
    assert methods == {method}


def test_auto_measures_all_methods():
    model = network()
    plan, _, _ = made(model, pictures(model, 6))
    for tensor in plan.tensors.values():
        if tensor.kind == "activation":
            assert {"minmax", "percentile", "mse", "entropy"} <= set(tensor.errors)
            assert all(error >= 0 for error in tensor.errors.values())


def test_solved_weights_are_marked_and_better_than_plain_ones():
    model = network()
    plan, codes, _ = made(model, pictures(model))
    assert codes
    for name in codes:
        tensor = plan.tensors[name]
        assert tensor.method == "gptq"
        assert tensor.errors["gptq"] < tensor.errors["plain"]
        assert codes[name].dtype == np.int8
    for name, tensor in plan.tensors.items():
        assert (tensor.method == "gptq") == (name in codes)


def test_exclusions_reach_the_plan():
    model = network()
    plan, _, _ = made(model, pictures(model, 4), Recipe(jobs=2, exclude=("c3",), float_first=True))
    reasons = floats(plan)
    assert reasons["c3"] == "excluded by name (c3)"
    assert reasons["c1"] == "first weighted layer (--float-first)"


@pytest.fixture(scope="module")
def good() -> tuple[ir.Model, Plan]:
    body = "[g] y = Gemm(x, s, b)\n[t] z = Tanh(y)"
    model = graph_of("float[7, 32] x", body, "z", s=normal(1, 32, 64), b=normal(2, 64))
    samples = InMemory([{"x": normal(i, 7, 32)} for i in range(4)])
    plan, _, _ = made(model, samples)
    return model, plan


def test_a_plan_fits_its_own_model(good):
    model, plan = good
    check_plan(plan, model, model_digest(model), ORT_CPU, "vnni", "int8")
    check_plan(
        Plan.model_validate_json(plan.text()), model, model_digest(model), ORT_CPU, "vnni", "int8"
    )
    plain = plan.model_copy(update={"tensors": {}, "nodes": {}})
    check_plan(plain, model, model_digest(model), ORT_CPU, "vnni", "int8")


def rescaled(plan: Plan, name: str, factor: float) -> Plan:
    tensor = plan.tensors[name]
    scale = tensor.model_copy(update={"scale": [factor * s for s in tensor.scale]})
    return plan.model_copy(update={"tensors": plan.tensors | {name: scale}})


@pytest.mark.parametrize("name", ["x", "s"])
def test_bias_scales_follow_those_of_input_and_weight(name, good):
    model, plan = good
    heard = Silent()
    assert with_bias_scales(plan, model, ORT_CPU, heard) == plan
    assert not heard.notices
    settled = with_bias_scales(rescaled(plan, name, 2), model, ORT_CPU, heard)
    assert settled == rescaled(rescaled(plan, name, 2), "b", 2)
    assert len(heard.notices) == 1
    assert heard.notices[0].endswith("as kernels demand: b")
    with pytest.raises(PlanError, match=r"--plan: tensor b: .* too small for int32"):
        with_bias_scales(rescaled(plan, "x", 1e-8), model, ORT_CPU, heard)


FLOAT = NodePlan(op="Gemm", precision="int8", reason="edited")
GRID = TensorPlan(kind="activation", type="uint8", scale=[1.0], zero_point=[0])
EDITS = {
    "target": ({"target": "other"}, "it is for target other, this build is for ort-cpu"),
    "device": ({"device": "arm"}, "it is for device arm, this build is for vnni"),
    "scheme": ({"scheme": "int8-dynamic"}, "it is for scheme int8-dynamic"),
    "model": ({"model": "0" * 64}, "it belongs to another model"),
    "node": ({"nodes": {"gone": FLOAT}}, "node gone is not in the model"),
    "operator": ({"nodes": {"t": FLOAT}}, "node t is a Tanh, not a Gemm"),
    "no kernel": (
        {"nodes": {"t": FLOAT.model_copy(update={"op": "Tanh"})}},
        "node t: ort-cpu has no int8 Tanh",
    ),
    "tensor": ({"tensors": {"gone": GRID}, "nodes": {}}, "tensor gone is not in the model"),
    "input grid": ({"tensors": {}}, "node g is int8, but tensor x has no grid"),
    "weight grid": ({"tensors": {"x": GRID}}, "node g is int8, but its weight has no grid"),
    "precision": (
        {"nodes": {"g": FLOAT.model_copy(update={"precision": "int8-dynamic"})}},
        "node g is int8-dynamic, but the plan is int8: write that, or float",
    ),
    "way out": ({"device": "arm"}, "build with --cpu arm, or without --plan"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_each_wrong_edit_is_one_line_that_names_the_entry(edit, good):
    model, plan = good
    update, message = EDITS[edit]
    with pytest.raises(PlanError, match=f"--plan: .*{message}") as caught:
        check_plan(
            plan.model_copy(update=update), model, model_digest(model), ORT_CPU, "vnni", "int8"
        )
    assert "\n" not in str(caught.value)


def classifier(end: str, outputs: str) -> ir.Model:
    body = f"""
    [c1] a = Conv <auto_pad="SAME_UPPER"> (x, w1)
    [r1] p = Relu(a)
    [c2] d = Conv <auto_pad="SAME_UPPER"> (p, w2)
    {end}
    """
    weights = {f"w{i}": normal(i, 16, 16, 3, 3, scale=0.1) for i in (1, 2)}
    return graph_of(PICTURE, body, outputs, **weights)


def test_layers_of_a_model_with_integer_outputs_are_judged_before_the_decision():
    end = "[m] i = ArgMax <axis=1> (d)\n[s] j = Cast <to=6> (i)"
    model = classifier(end, "int32[] j")
    assert [value.name for value in judged_values(model.graph)] == ["d"]
    plan, codes, progress = made(model, pictures(model))
    assert plan.precision("c2") == "int8"
    assert codes
    assert not progress.notices


def test_a_model_without_any_float_to_judge_is_planned_with_a_notice():
    model = classifier("[n] i = Shape(d)", "int64[] i")
    assert judged_values(model.graph) == []
    plan, _, progress = made(model, pictures(model))
    assert plan.precision("c2") == "int8"
    assert any("no output is a float" in notice for notice in progress.notices)


GRID_EDITS = {
    "too few scales": ("s", {"scale": [1.0] * 63, "zero_point": [0] * 63}, "64 channels, but 63"),
    "axis beyond": ("s", {"axis": 7}, "its channels are axis 1, not 7"),
    "axis from the end": ("s", {"axis": -4}, "its channels are axis 1, not -4"),
    "vanishing scale": ("x", {"scale": [1e-60]}, "scale 1e-60 is no normal float32 number"),
    "infinite scale": ("x", {"scale": [1e300]}, r"scale 1e\+300 is no normal float32 number"),
    "channels of an activation": (
        "x",
        {"axis": 1, "scale": [1.0] * 32, "zero_point": [0] * 32},
        "must have one scale and no axis",
    ),
    "weight off zero": ("s", {"zero_point": [5] * 64}, "the zero point of a weight must be 0"),
    "wide activation": ("x", {"type": "int32"}, "activation must be uint8 on this target"),
    "wide weight": ("s", {"type": "int32"}, "weight must be int8 on this target, not int32"),
    "narrow bias": ("b", {"type": "int8"}, "bias must be int32 on this target, not int8"),
    "computed weight": ("x", {"kind": "weight"}, "is computed: its kind is activation"),
    "constant activation": ("s", {"kind": "activation"}, "is a constant: its kind is weight"),
}


@pytest.mark.parametrize("edit", GRID_EDITS)
def test_each_wrong_grid_is_one_line_that_names_the_tensor(edit, good):
    model, plan = good
    name, update, message = GRID_EDITS[edit]
    tensor = TensorPlan.model_validate(plan.tensors[name].model_dump() | update)
    edited = plan.model_copy(update={"tensors": plan.tensors | {name: tensor}})
    with pytest.raises(PlanError, match=f"--plan: tensor {name}: .*{message}"):
        check_plan(edited, model, model_digest(model), ORT_CPU, "vnni", "int8")
