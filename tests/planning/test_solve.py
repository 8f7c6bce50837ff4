"""Layers that share an input: who judges, who is chosen, and what is reported of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.numerics.descent import settle
from qcompile.numerics.gptq import prepare, solve_prepared
from qcompile.numerics.grouped import solve_grouped
from qcompile.numerics.groups import WeightFormat, round_nearest
from qcompile.planning.layer_inputs import JUDGES, JUDGING, SEARCHED, LayerInputs
from qcompile.planning.solve import round_layer, solve_layers
from qcompile.recipe import Weights
from tests.planning.solving import BRIEF, needs_torch

ALGORITHMS = ("rtn", "gptq", "awq", "awq+gptq")

MARGIN = 0.985
"""What the combination's error may be at most of GPTQ's, on inputs that neither has seen."""


def decoder_rows(seed, count, columns):
    """Inputs as layers of a decoder have them: correlated, some columns far louder than others."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(77).standard_normal((columns // 4, columns))
    loud = np.exp(np.random.default_rng(78).standard_normal(columns))
    rows = rng.standard_normal((count, columns // 4)) @ mix + rng.standard_normal((count, columns))
    return (rows * loud).astype(np.float32)


def inputs_of(columns=64, samples=12, tokens=40):
    found = LayerInputs(columns, samples)
    for index in range(samples):
        found.add(index, decoder_rows(index, tokens, columns))
    return found


def weights_of(seed, *shapes, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def judged(weight, values, rows):
    """Relative L2 error of a layer's output, written down plainly."""
    exact = rows.astype(np.float64) @ weight.astype(np.float64).T
    found = rows.astype(np.float64) @ values.astype(np.float64).T
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def test_one_sample_in_six_judges_and_is_not_solved_on():
    tokens, samples = 40, 13
    inputs = inputs_of(32, samples, tokens)
    judges = [i for i in range(samples) if i % JUDGES == JUDGES - 1]
    fits = [i for i in range(samples) if i not in judges]
    assert judges == [5, 11]
    rows = np.concatenate([decoder_rows(i, tokens, 32) for i in fits]).astype(np.float64)
    hessian = inputs.hessian.matrix()
    expected = rows.T @ rows
    expected *= hessian.trace() / expected.trace()  # known up to a factor
    np.testing.assert_allclose(hessian, expected, rtol=1e-4, atol=1e-3 * hessian.max())
    np.testing.assert_allclose(inputs.magnitude(), np.abs(rows).mean(axis=0), rtol=1e-5)
    searched, judging = inputs.rows()
    seen = {row.tobytes() for row in rows.astype(np.float32)}
    held = {row.tobytes() for i in judges for row in decoder_rows(i, tokens, 32)}
    assert {row.tobytes() for row in searched} <= seen
    assert {row.tobytes() for row in judging} <= held
    assert not seen & held


@pytest.mark.parametrize(("samples", "tokens"), [(2000, 3), (12, 5000)])
def test_rows_that_are_kept_are_bounded(samples, tokens):
    inputs = LayerInputs(4, samples)
    rows = np.ones((tokens, 4), np.float32)
    for index in range(samples):
        inputs.add(index, rows)
    searched, judging = inputs.rows()
    assert SEARCHED / 2 < len(searched) <= SEARCHED
    assert 0 < len(judging) <= JUDGING
    judges = samples // JUDGES * tokens
    assert len(judging) > min(judges, JUDGING) / 2


def test_too_few_samples_judge_on_what_was_solved_on():
    inputs = inputs_of(32, JUDGES - 1, 20)
    searched, judging = inputs.rows()
    assert judging is searched
    outcomes, _ = solve_layers(weights_of(0, (8, 32)), inputs, Weights(group_size=16), "float32")
    assert 0 < outcomes[0].errors["gptq"] < outcomes[0].errors["rtn"]


@settings(max_examples=15)
@given(
    st.integers(0, 999),
    st.sampled_from([*ALGORITHMS, "auto"]),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
    st.sampled_from(["float32", "float16"]),
)
def test_the_chosen_error_is_what_is_reported_and_never_above_rtn(
    seed, algorithm, bits, asymmetric, kind
):
    inputs = inputs_of(48)
    weights = weights_of(seed, (8, 48), (5, 48), dtype=np.dtype(kind))
    options = Weights(bits=bits, group_size=32, asymmetric=asymmetric, algorithm=algorithm)
    outcomes, _ = solve_layers(weights, inputs, options, kind)
    rows = inputs.rows()[1]
    form = WeightFormat(bits, 32, not asymmetric, kind)
    totals = dict.fromkeys(("chosen", "rtn"), 0.0)
    for weight, outcome in zip(weights, outcomes, strict=True):
        chosen = outcome.chosen
        assert chosen.solved.format == form
        assert chosen.solved.scales.dtype == np.dtype(kind)
        found = judged(weight, chosen.solved.values(), rows)
        assert outcome.errors[chosen.algorithm] == pytest.approx(found, rel=1e-3)
        plain = judged(weight, round_nearest(weight, form, search=True).values(), rows)
        assert outcome.errors["rtn"] == pytest.approx(plain, rel=1e-3)
        power = np.square(rows @ weight.astype(np.float32).T, dtype=np.float64).sum()
        totals["chosen"] += found**2 * power
        totals["rtn"] += plain**2 * power
        asked = {"rtn", algorithm} if algorithm != "auto" else set(ALGORITHMS)
        assert set(outcome.errors) == asked
        if algorithm in ("rtn", "gptq"):
            assert found <= plain * (1 + 1e-6)
    # those that share a scale of their input are judged together
    assert totals["chosen"] <= totals["rtn"] * (1 + 1e-6)


def test_auto_takes_the_family_with_the_least_error():
    inputs, weights = inputs_of(64), weights_of(3, (16, 64), (16, 64))
    rows = inputs.rows()[1]
    power = [np.square(rows @ w.T, dtype=np.float64).sum() for w in weights]
    outcomes, _ = solve_layers(weights, inputs, Weights(bits=3, group_size=32), "float32")

    def total(names):
        return sum(
            min(o.errors[n] for n in names) ** 2 * p for o, p in zip(outcomes, power, strict=True)
        )

    families = [("rtn", "gptq"), ("awq",), ("awq+gptq",)]
    best = min(families, key=total)
    for outcome in outcomes:
        assert outcome.chosen.algorithm in best
        assert outcome.errors[outcome.chosen.algorithm] == min(outcome.errors[n] for n in best)


@pytest.mark.parametrize("algorithm", ["awq", "awq+gptq"])
def test_layers_with_one_input_have_one_scale_of_it(algorithm):
    inputs, weights = inputs_of(64), weights_of(4, (16, 64), (8, 64), (8, 64))
    options = Weights(bits=3, group_size=32, algorithm=algorithm)
    outcomes, _ = solve_layers(weights, inputs, options, "float32")
    scales = [o.chosen.solved.input_scale for o in outcomes]
    assert scales[0] is not None
    for scale in scales[1:]:
        np.testing.assert_array_equal(scale, scales[0])


def test_gptq_and_awq_gain_on_correlated_inputs():
    inputs, weights = inputs_of(64, 24, 64), weights_of(5, (32, 64))
    options = Weights(bits=4, group_size=32)
    (outcome,), damping = solve_layers(weights, inputs, options, "float32")
    errors = outcome.errors
    assert errors["gptq"] < 0.8 * errors["rtn"]
    assert errors["awq"] < errors["rtn"]
    assert errors["awq+gptq"] <= errors["awq"]
    assert damping == options.damping


def test_without_gptq_nothing_is_damped():
    options = Weights(group_size=32, algorithm="awq")
    assert solve_layers(weights_of(5, (8, 64)), inputs_of(), options, "float32")[1] == 0


@pytest.mark.parametrize("static", [True, False])
def test_static_groups_keep_the_order_of_columns(static):
    options = Weights(bits=3, group_size=16, algorithm="gptq", static_groups=static)
    (outcome,), _ = solve_layers(weights_of(6, (16, 64)), inputs_of(), options, "float32")
    order = outcome.chosen.solved.order
    assert (order is None) == static
    if not static:
        power = np.diag(inputs_of().hessian.matrix())
        np.testing.assert_array_equal(order, np.argsort(-power, kind="stable"))


@pytest.mark.parametrize(("size", "narrow"), [(0, False), (64, True), (128, False), (16, True)])
def test_gptq_solves_narrow_groups_in_turn_and_wide_ones_on_fixed_grids(size, narrow):
    form, (weight,) = WeightFormat(3, size), weights_of(6, (16, 160))
    inputs = inputs_of(160)
    options = Weights(bits=3, group_size=size, algorithm="gptq")
    (outcome,), _ = solve_layers([weight], inputs, options, "float32")
    inverse = prepare(inputs.hessian.matrix(), group_size=size if narrow else 0)
    expected = (solve_grouped if narrow else solve_prepared)(weight, inverse, form)
    assert outcome.chosen.solved.order is None
    for name in ("codes", "scales"):
        np.testing.assert_array_equal(getattr(outcome.chosen.solved, name), getattr(expected, name))


def test_inputs_of_zero_leave_an_error_of_zero():
    inputs = LayerInputs(32, 7)
    for index in range(7):
        inputs.add(index, np.zeros((4, 32), np.float32))
    (outcome,), damping = solve_layers(
        weights_of(7, (8, 32)), inputs, Weights(group_size=16), "float32"
    )
    assert set(outcome.errors.values()) == {0.0}
    assert np.isfinite(damping)
    assert np.isfinite(outcome.chosen.solved.values()).all()


def test_a_single_short_sample_is_enough_to_solve():
    inputs = LayerInputs(32, 1)
    inputs.add(0, decoder_rows(0, 1, 32))
    (outcome,), _ = solve_layers(weights_of(8, (8, 32)), inputs, Weights(group_size=16), "float32")
    assert outcome.errors["gptq"] <= outcome.errors["rtn"]


@pytest.mark.parametrize("search", [True, False])
def test_without_data_the_codes_are_those_of_plain_rounding(search):
    (weight,) = weights_of(9, (8, 40))
    options = Weights(bits=3, group_size=16, asymmetric=True, search=search)
    found = round_layer(weight, options, "float16")
    expected = round_nearest(weight, WeightFormat(3, 16, False, "float16"), search=search)
    for name in ("codes", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("size", [32, 128])
def test_without_a_scale_the_combination_settles_the_codes_of_gptq(size):
    (weight,) = weights_of(6, (16, 128))
    inputs = LayerInputs(128, 12)
    for index in range(12):
        inputs.add(index, np.sign(decoder_rows(index, 40, 128)))  # all as loud: no scale but 1
    options = Weights(bits=3, group_size=size, algorithm="awq+gptq")
    (outcome,), damping = solve_layers([weight], inputs, options, "float32")
    hessian, form = inputs.hessian.matrix(), WeightFormat(3, size)
    inverse = prepare(hessian, group_size=size)
    plain = solve_grouped(weight, inverse, form)
    assert outcome.chosen.algorithm == "awq+gptq"
    expected = settle(weight.astype(float), plain, hessian, damping=damping)
    found = outcome.chosen.solved
    assert found.input_scale is None
    assert (plain.codes != expected.codes).any()
    np.testing.assert_array_equal(found.scales, expected.scales)
    np.testing.assert_array_equal(found.codes, expected.codes)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_the_combination_is_better_than_gptq_whatever_the_inputs(spread, size):
    """Loud columns: in the order of all columns; even ones: in groups, each clipped."""
    rng = np.random.default_rng(1)
    loud = np.exp(spread * rng.standard_normal(128))
    mix = rng.standard_normal((32, 128))
    inputs = LayerInputs(128, 24)
    for index in range(24):
        rows = rng.standard_normal((80, 32)) @ mix + 3 * rng.standard_normal((80, 128))
        inputs.add(index, (rows * loud).astype(np.float32))
    options = Weights(bits=3, group_size=size)
    (outcome,), _ = solve_layers(weights_of(10, (128, 128)), inputs, options, "float32")
    assert outcome.errors["awq+gptq"] < MARGIN * outcome.errors["gptq"]


# learned rounding


@needs_torch
@pytest.mark.parametrize(
    ("bits", "size", "asymmetric", "kind"),
    [
        (4, 16, False, "float32"),
        (4, 0, False, "float32"),
        (3, 32, True, "float16"),
        (2, 0, True, "float32"),
        (8, 64, False, "float32"),
    ],
)
def test_learned_codes_do_better_on_rows_that_were_held_back(bits, size, asymmetric, kind):
    weights = weights_of(11, (16, 64), (5, 64), dtype=np.dtype(kind))
    options = Weights(bits=bits, group_size=size, asymmetric=asymmetric, algorithm="adaround")
    inputs = inputs_of(64, 24, 64)
    outcomes, damping = solve_layers(weights, inputs, options, kind, learned=BRIEF)
    assert damping == 0
    form, rows = WeightFormat(bits, size, not asymmetric, kind), inputs.rows()[1]
    for weight, outcome in zip(weights, outcomes, strict=True):
        found = outcome.chosen.solved
        assert outcome.chosen.algorithm == "adaround"
        assert found.format == form
        assert found.codes.max() <= form.high
        assert set(outcome.errors) == {"rtn", "adaround"}
        assert outcome.errors["adaround"] < 0.95 * outcome.errors["rtn"]
        error = judged(weight, found.values(), rows)
        assert outcome.errors["adaround"] == pytest.approx(error, rel=1e-3)
    again, _ = solve_layers(weights, inputs, options, kind, learned=BRIEF)
    for one, other in zip(outcomes, again, strict=True):
        np.testing.assert_array_equal(one.chosen.solved.codes, other.chosen.solved.codes)


@needs_torch
def test_learned_codes_that_do_worse_are_not_taken():
    """Halves of the columns are alike in samples that are learned from, opposite in the others."""
    inputs = LayerInputs(64, 12)
    for index in range(12):
        half = decoder_rows(index, 40, 32)
        judges = index % JUDGES == JUDGES - 1
        inputs.add(index, np.concatenate([half, -half if judges else half], axis=1))
    options = Weights(bits=3, group_size=0, algorithm="adaround")
    (weight,) = weights_of(12, (16, 64))
    (outcome,), _ = solve_layers([weight], inputs, options, "float32", learned=BRIEF)
    assert outcome.errors["adaround"] > outcome.errors["rtn"]
    assert outcome.chosen.algorithm == "rtn"
    expected = round_nearest(weight, WeightFormat(3, 0), search=True)
    np.testing.assert_array_equal(outcome.chosen.solved.codes, expected.codes)


def beside(lost, judged_lost, columns=64, samples=24):
    """Inputs that lost a share of what they have in common, and what the float model has."""
    inputs = LayerInputs(columns, samples, compensated=True)
    for index in range(samples):
        rows = decoder_rows(index, 40, columns)
        share = judged_lost if index % JUDGES == JUDGES - 1 else lost
        turned = rows @ np.random.default_rng(1).standard_normal((columns, columns))
        inputs.add(index, rows, rows + np.float32(share) * turned.astype(np.float32))
    return inputs


def plain(columns=64, samples=24):
    return inputs_of(columns, samples, 40)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_that_make_up_for_earlier_layers_are_rounded_in_place_of_the_others(algorithm):
    weights, options = weights_of(3, (24, 64), (8, 64)), Weights(bits=4, group_size=32)
    options = options.model_copy(update={"algorithm": algorithm, "compensate": True})
    inputs = beside(0.01, 0.01)
    rows, exact = inputs.rows()[1].copy(), inputs.exact().copy()
    outcomes, _ = solve_layers(weights, inputs, options, "float32")
    assert inputs.lost is None
    plainly, _ = solve_layers(weights, plain(), options, "float32")
    for weight, outcome, other in zip(weights, outcomes, plainly, strict=True):
        wanted = exact @ weight.T
        inherited = np.linalg.norm(rows @ weight.T - wanted) / np.linalg.norm(wanted)
        assert outcome.inherited is not None
        assert outcome.inherited.error == pytest.approx(inherited, rel=1e-3)
        assert outcome.inherited.left < 0.7 * inherited
        assert other.inherited is None
        found, without = (
            np.linalg.norm(rows @ one.chosen.solved.values().T - wanted) for one in (outcome, other)
        )
        assert found < without


def test_what_makes_up_for_nothing_that_judges_see_is_not_taken():
    weights = weights_of(3, (24, 64))
    options = Weights(group_size=32, algorithm="gptq", compensate=True)
    (found,), _ = solve_layers(weights, beside(0.01, 0.0), options, "float32")
    (expected,), _ = solve_layers(weights, plain(), options, "float32")
    assert found.inherited is not None
    assert found.inherited.error == found.inherited.left == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(found.chosen.solved.codes, expected.chosen.solved.codes)
    assert found.errors == expected.errors
