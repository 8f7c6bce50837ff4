"""GPTQ against a loop written straight from the paper, and against plain rounding."""

import dataclasses
import importlib.metadata
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import DataError
from qcompile.numerics.devices import Cpu, Torch, best_device
from qcompile.numerics.gptq import (
    BLOCK,
    DAMPING,
    prepare,
    round_columns,
    solve,
    solve_prepared,
)
from qcompile.numerics.groups import WeightFormat, group_parameters, round_nearest, round_to
from qcompile.numerics.hessian import HessianSum, output_error, output_error_on

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
devices = [
    pytest.param(lambda: Cpu(threads=1), id="one-thread"),
    pytest.param(lambda: Cpu(threads=3), id="three-threads"),
    pytest.param(lambda: Torch("cpu"), id="torch", marks=needs_torch),
]
formats = st.builds(
    WeightFormat,
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([0, 4, 16, 48, 128]),
    st.booleans(),
    st.sampled_from(["float32", "float16"]),
)


def inputs_of(seed, count, columns, alike=1.0):
    """Inputs that share a few directions, columns of different power."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((count, 1 + columns // 8))
    mixed = alike * common @ rng.standard_normal((1 + columns // 8, columns))
    return (mixed + rng.standard_normal((count, columns))) * rng.uniform(0.1, 3, columns)


def layer(seed, rows, columns, alike=1.0):
    """Weights and a Hessian."""
    inputs = inputs_of(seed, 4 * columns + 8, columns, alike)
    weights = np.random.default_rng(seed + 1).standard_normal((rows, columns))
    return weights, inputs.T @ inputs


def damped(hessian):
    return hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))


class Paper:
    """Algorithm 1 in float64: one column at a time, the inverse Hessian updated as in section 3."""

    def __init__(self, weights, hessian, order):
        self.order = order
        self.work = weights[:, order].astype(np.float64)
        self.inverse = np.linalg.inv(damped(hessian)[np.ix_(order, order)])
        # what an error costs once the later columns have made up for it: 1 / [H_F^-1]_cc
        rest = self.inverse.copy()
        cost = np.empty(len(order))
        for column in range(len(order)):
            cost[column] = 1 / rest[column, column]
            rest = rest - np.outer(rest[:, column], rest[column]) / rest[column, column]
        self.importance = cost

    def round(self, column, scale, zero, high):
        """Round one column to codes; spread its error."""
        left, pivot = self.work[:, column], self.inverse[column, column]
        code = np.clip(np.rint(left / scale) + zero, 0, high)
        error = (left - (code - zero) * scale) / pivot
        later = slice(column + 1, None)
        self.work[:, later] -= np.outer(error, self.inverse[column, later])
        row = self.inverse[column].copy()
        self.inverse -= np.outer(row, row) / pivot
        return code


def by_the_paper(weights, hessian, used, *, act_order, static_groups, search):
    """Codes in stored order, with the scales and zero points that they belong to."""
    columns = weights.shape[1]
    diagonal = np.diag(hessian)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(columns)
    paper = Paper(weights, hessian, order)
    importance = np.empty(columns)
    importance[order] = paper.importance
    importance = importance if search else None
    size = used.group_size or columns
    scales, zeros = group_parameters(weights, used, search=search, importance=importance)
    static = static_groups or scales.shape[1] == 1
    codes = np.empty(weights.shape, np.uint8)
    for column in range(columns):
        place = order[column] if static else column
        group = place // size
        if not static and column % size == 0:
            one = slice(column, column + size)
            scales[:, [group]], zeros[:, [group]] = group_parameters(
                paper.work[:, one],
                used,
                search=search,
                importance=paper.importance[one] if search else None,
            )
        scale, zero = scales[:, group].astype(np.float64), zeros[:, group].astype(np.float64)
        codes[:, place] = paper.round(column, scale, zero, used.high)
    return codes, scales, zeros, None if static or (order == np.arange(columns)).all() else order


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 10_000),
    st.integers(1, 5),
    st.integers(1, 150),
    formats,
    st.sampled_from([0.0, 1.0, 5.0]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_equals_the_paper(seed, rows, columns, used, alike, switches):
    weights, hessian = layer(seed, rows, columns, alike)
    options = dict(zip(("act_order", "static_groups", "search"), switches, strict=True))
    solved = solve(weights, hessian, used, **options)
    codes, scales, zeros, order = by_the_paper(weights, hessian, used, **options)
    assert np.array_equal(solved.scales, scales)
    assert np.array_equal(solved.zeros, zeros)
    assert np.array_equal(solved.codes, codes)
    assert (solved.order is None) == (order is None)
    assert order is None or np.array_equal(solved.order, order)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("size", [0, 96, 128])
@pytest.mark.parametrize("static_groups", [True, False])
def test_many_blocks_on_each_device(device, size, static_groups):
    weights, hessian = layer(1, 7, 5 * BLOCK + 11)
    used = WeightFormat(3, size)
    inverse = prepare(hessian, device=device())
    solved = solve_prepared(weights, inverse, used, static_groups=static_groups)
    options = {"act_order": True, "static_groups": static_groups, "search": True}
    codes, scales, _, _ = by_the_paper(weights, hessian, used, **options)
    assert np.array_equal(solved.scales, scales)
    assert np.array_equal(solved.codes, codes)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("columns", [1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 9 * BLOCK + 5])
def test_the_inverse(device, columns):
    _, hessian = layer(2, 1, columns)
    before = hessian.copy()
    inverse = prepare(hessian, device=device())
    assert np.array_equal(hessian, before)
    upper = inverse.device.host(inverse.upper)
    assert np.array_equal(upper, np.triu(upper))
    ordered = damped(hessian)[np.ix_(inverse.order, inverse.order)]
    assert np.allclose(upper.T @ upper @ ordered, np.eye(columns), atol=1e-8)
    assert (np.diff(np.diag(hessian)[inverse.order]) <= 0).all()
    assert np.allclose(inverse.importance[inverse.order], np.diag(upper) ** -2.0)
    assert inverse.damping == DAMPING


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_plain_rounding_on_the_same_grids(seed, bits):
    weights, hessian = layer(seed, 16, 96, alike=0.3)
    used = WeightFormat(bits, 32, symmetric=bool(seed % 2))
    grids = group_parameters(weights, used, search=True)
    solved = solve_prepared(weights, prepare(hessian), used, grids=grids)
    assert np.array_equal(solved.scales, grids[0])
    plain = dataclasses.replace(solved, codes=round_to(weights, used, *grids))
    errors = [output_error(weights - w.values(), hessian) for w in (plain, solved)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("static_groups", [True, False])
def test_a_fifth_better_on_inputs_it_has_not_seen(act_order, static_groups):
    inputs = inputs_of(3, 4000, 512, alike=0.5)
    weights = np.random.default_rng(4).standard_normal((64, 512))
    hessian = inputs[:3000].T @ inputs[:3000]
    used = WeightFormat(4, 128)
    solved = solve(weights, hessian, used, act_order=act_order, static_groups=static_groups)
    plain = round_nearest(weights, used, search=True)
    errors = [output_error_on(weights - w.values(), inputs[3000:]) for w in (plain, solved)]
    assert errors[1] < 0.8 * errors[0]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 90), formats, st.booleans())
def test_values_on_the_grid_stay(seed, columns, used, act_order):
    weights, hessian = layer(seed, 3, columns)
    solved = round_nearest(weights, used, search=True)
    inverse = prepare(hessian, act_order=act_order)
    grids = (solved.scales, solved.zeros)
    again = solve_prepared(solved.stored(), inverse, used, grids=grids)
    assert np.array_equal(again.codes, solved.codes)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 90), formats, st.booleans(), st.booleans())
def test_what_is_stored_is_well_formed(seed, columns, used, act_order, static_groups):
    weights, hessian = layer(seed, 3, columns, alike=3.0)
    solved = solve(weights, hessian, used, act_order=act_order, static_groups=static_groups)
    assert solved.codes.max() <= used.high
    assert solved.scales.shape == solved.zeros.shape == (3, used.groups(columns))
    assert solved.scales.dtype == used.scale_type
    assert (solved.scales != 0).all()
    # the products are those of the solver, rounded once to float32
    group = used.group_of(columns)
    exact = solved.scales.astype(np.float64)[:, group] * (
        solved.codes.astype(np.float64) - solved.zeros[:, group]
    )
    assert np.array_equal(solved.stored(), exact.astype(np.float32))
    if solved.order is not None:
        assert sorted(solved.order) == list(range(columns))
        assert np.array_equal(solved.values()[:, solved.order], solved.stored())


def test_columns_that_no_input_excites_are_rounded_plainly():
    weights, hessian = layer(5, 4, 40)
    hessian[7], hessian[:, 7] = 0, 0
    used = WeightFormat(4, 0)
    grids = group_parameters(weights, used)
    solved = solve_prepared(weights, prepare(hessian), used, grids=grids)
    assert np.array_equal(solved.codes[:, 7], round_to(weights, used, *grids)[:, 7])
    nothing = solve(weights, np.zeros((40, 40)), used, search=False)
    assert np.array_equal(nothing.codes, round_nearest(weights, used).codes)


def test_damping_rises_until_the_hessian_can_be_inverted():
    weights, hessian = layer(6, 3, 100)
    values, vectors = np.linalg.eigh(hessian)
    values[:5] = -0.05 * np.diag(hessian).mean()
    indefinite = vectors * values @ vectors.T
    indefinite = (indefinite + indefinite.T) / 2
    inverse = prepare(indefinite)
    assert inverse.damping == pytest.approx(0.1)
    solved = solve_prepared(weights, inverse, WeightFormat(4, 32))
    assert np.isfinite(solved.values()).all()
    inputs = inputs_of(7, 20, 100)  # fewer inputs than columns
    assert prepare(inputs.T @ inputs).damping == DAMPING
    assert prepare(inputs.T @ inputs, damping=0).damping > 0
    assert prepare(hessian, damping=0).damping == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_hessian_that_is_none(bad):
    _, hessian = layer(8, 1, 70)
    with pytest.raises(DataError, match="positive semidefinite"):
        prepare(-1e4 * hessian + np.diag(np.diag(1e4 * hessian)))
    hessian[3, 4] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        prepare(hessian)


def test_the_sum_of_inputs():
    inputs = inputs_of(9, 3000, 1100).astype(np.float16)
    whole, parts = HessianSum(1100), HessianSum(1100)
    whole.add(inputs)
    for part in (inputs[:1], inputs[1:1500], inputs[1500:]):
        parts.add(part)
        parts.matrix()  # reading in between changes nothing
    exact = inputs.astype(np.float64).T @ inputs.astype(np.float64)
    for total in (whole, parts):
        assert np.allclose(total.matrix(), exact, rtol=1e-6, atol=1e-7 * exact.max())
        assert total.count == 3000
    assert np.array_equal(whole.matrix(), whole.matrix().T)


def test_inputs_that_are_not_finite_show_in_the_sum():
    total = HessianSum(8)
    total.add(np.full((3, 8), np.float32(1e30)))
    with pytest.raises(DataError, match="overflow"):
        prepare(total.matrix())


def test_both_output_errors_agree():
    inputs = inputs_of(10, 3000, 60)
    difference = np.random.default_rng(11).standard_normal((9, 60))
    wanted = np.square(inputs @ difference.T).sum()
    assert output_error(difference, inputs.T @ inputs) == pytest.approx(wanted, rel=1e-9)
    assert output_error_on(difference, inputs) == pytest.approx(wanted, rel=1e-5)


def test_a_device_is_found():
    device = best_device()
    assert isinstance(device, Torch) or device.threads >= 1


@needs_torch
def test_a_torch_for_processors_is_not_imported_to_look_for_a_gpu():
    if not importlib.metadata.version("torch").endswith("+cpu"):
        pytest.skip("this torch may see a GPU")
    look = "import sys; from qcompile.numerics.devices import best_device; best_device()"
    said = subprocess.check_output([sys.executable, "-c", f"{look}; print('torch' in sys.modules)"])
    assert said == b"False\n"


def rounded_by_the_paper(weights, scale, hessian, high):
    order = np.argsort(-np.diag(hessian), kind="stable")
    paper = Paper(weights, hessian, order)
    codes = np.empty(weights.shape)
    for column, place in enumerate(order):
        codes[:, place] = paper.round(column, scale, high, 2 * high) - high
    return codes


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 100), st.sampled_from([63, 127]))
def test_given_scales_equal_the_paper(seed, rows, columns, high):
    weights, hessian = layer(seed, rows, columns)
    scale = np.abs(weights).max(axis=1) / high
    found = round_columns(weights, scale, hessian, high)
    assert found.dtype == np.int8
    assert np.abs(found.astype(int)).max() <= high
    assert np.array_equal(found, rounded_by_the_paper(weights, scale, hessian, high))
