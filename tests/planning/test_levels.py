"""The kernel's accuracy level: the fastest that is harmless, or what was asked for."""

import numpy as np
import pytest

from qcompile.numerics.groups import WeightFormat, round_nearest
from qcompile.planning.layer_inputs import LayerInputs
from qcompile.planning.levels import LEVEL_ERROR, Level, choose_level
from qcompile.planning.solve import solve_layers
from qcompile.recipe import Weights
from qcompile.targets.onnx_std import ONNX_STD
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.solving import mixed
from tests.planning.tools import normal

K = 128


def solved(bits=4, **form):
    return round_nearest(normal(0, 40, K), WeightFormat(bits, 32, **form))


def calm(seed=0, count=60):
    return np.random.default_rng(seed).uniform(-1, 1, (count, K)).astype(np.float32)


def wild(count=60):
    """Inputs of which one a group is so large that int8 steps swallow the others."""
    rows = calm(1, count)
    rows[:, ::32] *= 1e4
    return rows


@pytest.mark.parametrize("form", [{}, {"symmetric": False}, {"scale_type": "float16"}])
def test_calm_inputs_take_the_fast_kernel(form):
    level = choose_level(ORT_CPU, Weights(group_size=32), solved(**form), calm())
    assert level.level == 4
    assert level.error is not None
    assert 1e-4 < level.error <= LEVEL_ERROR


def test_wild_inputs_take_the_exact_kernel():
    weight = solved()
    weight.codes[:, ::32] = weight.format.middle  # the loud ones reach no output
    level = choose_level(ORT_CPU, Weights(group_size=32), weight, wild())
    assert level.level == 0
    assert level.error is not None
    assert level.error < 1e-5


@pytest.mark.parametrize("asked", [0, 4])
def test_what_was_asked_for_is_taken_and_measured(asked):
    weight = solved()
    weight.codes[:, ::32] = weight.format.middle
    options = Weights(group_size=32, accuracy_level=asked)
    level = choose_level(ORT_CPU, options, weight, wild())
    assert level.level == asked
    assert level.error is not None
    assert (level.error > LEVEL_ERROR) == (asked == 4)


def test_the_only_level_is_taken_whatever_it_costs():
    weight = solved(8)
    weight.codes[:, ::32] = weight.format.middle
    level = choose_level(ORT_CPU, Weights(bits=8, group_size=32), weight, wild())
    assert level.level == 4
    assert level.error is not None
    assert level.error > LEVEL_ERROR


def test_without_inputs_nothing_is_measured():
    assert choose_level(ORT_CPU, Weights(group_size=32), solved(), None) == Level(4, None)
    options = Weights(group_size=32, accuracy_level=0)
    assert choose_level(ORT_CPU, options, solved(), None) == Level(0, None)


def test_a_form_without_levels_has_none():
    assert choose_level(ONNX_STD, Weights(group_size=32), solved(), calm()) == Level(None, None)


@pytest.mark.parametrize(("algorithm", "static"), [("awq", True), ("gptq", False)])
def test_the_kernel_is_tried_on_what_it_will_read(algorithm, static):
    """In the order and basis of the codes, not of the layer: the exact level has no error."""
    inputs = LayerInputs(K, 6)
    for index in range(6):
        inputs.add(index, mixed(index, 40, K))
    options = Weights(
        bits=3, group_size=32, algorithm=algorithm, static_groups=static, accuracy_level=0
    )
    (outcome,), _ = solve_layers([normal(0, 40, K)], inputs, options, "float32")
    weight = outcome.chosen.solved
    assert weight.input_scale is not None or weight.order is not None
    level = choose_level(ORT_CPU, options, weight, inputs.rows()[1])
    assert level.error == pytest.approx(0, abs=1e-5)


def test_inputs_of_zero_have_no_error():
    level = choose_level(ORT_CPU, Weights(group_size=32), solved(), np.zeros((5, K), np.float32))
    assert level == Level(4, 0)
