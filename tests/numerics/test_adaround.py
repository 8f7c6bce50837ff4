"""Learned rounding: what is between codes, its gradient, and codes that beat the nearest ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import DataError, RuntimeMissingError
from qcompile.numerics import adaround
from qcompile.numerics.adaround import Grid, LayerData, Schedule, SoftWeight, annealed, learn_layer
from qcompile.numerics.groups import WeightFormat, round_nearest

torch = pytest.importorskip("torch", reason="learned rounding needs torch")

SEEDS = st.integers(0, 2**32 - 1)
LOW, HIGH = adaround.LOW, adaround.HIGH


def grid_of(weights: np.ndarray, high: int = 7) -> Grid:
    scales = np.abs(weights).max(axis=-1, keepdims=True) / high
    return Grid(scales, np.zeros_like(scales, np.int64), -high, high)


def share_of(variable: np.ndarray) -> np.ndarray:
    """Equation 23 in float64."""
    return np.clip((HIGH - LOW) / (1 + np.exp(-variable)) + LOW, 0, 1)


@given(seed=SEEDS, spread=st.floats(0, 20))
def test_shares_lie_between_0_and_1_and_codes_differ_from_the_floor_by_as_much(
    seed: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(2, 3, 5))
    grid = grid_of(weights)
    soft = SoftWeight(torch, weights, grid, "cpu")
    np.testing.assert_allclose(soft.values().detach().numpy(), weights, atol=1e-5)
    with torch.no_grad():
        soft.variable += torch.from_numpy(rng.normal(0, spread, weights.shape).astype(np.float32))
    share = soft.share().detach().numpy()
    np.testing.assert_allclose(share, share_of(soft.variable.detach().numpy()), atol=1e-6)
    assert ((share >= 0) & (share <= 1)).all()
    up = soft.codes() - grid.clipped(np.floor(weights / grid.scales).astype(np.int64))
    assert set(np.unique(up)) <= {0, 1}
    assert ((up == 1) <= (share >= 0.5)).all()


@settings(max_examples=20)
@given(seed=SEEDS, beta=st.floats(2, 20))
def test_the_gradient_is_that_of_the_equations(seed: int, beta: float) -> None:
    rng = np.random.default_rng(seed)
    weights, inputs = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 6, 4)).astype(np.float32)
    targets = rng.normal(size=(1, 6, 3)).astype(np.float32)
    grid = grid_of(weights)
    soft = SoftWeight(torch, weights, grid, "cpu")

    def exact(variable: np.ndarray) -> float:
        share = share_of(variable)
        values = grid.scales * (np.floor(weights / grid.scales) + share)
        error = ((np.matmul(inputs, values.transpose(0, 2, 1)) - targets) ** 2).sum()
        return error + (1 - np.abs(2 * share - 1) ** beta).mean()

    made = torch.matmul(torch.from_numpy(inputs), soft.values().transpose(1, 2))
    loss = (made - torch.from_numpy(targets)).square().sum() + soft.penalty(beta)
    loss.backward()
    start = soft.variable.detach().numpy().astype(np.float64)
    share = share_of(start)
    inner = (share > 0.02) & (share < 0.98) & (np.abs(share - 0.5) > 0.02)  # smooth there
    for place in zip(*np.nonzero(inner), strict=True):
        step = np.zeros_like(start)
        step[place] = 1e-5
        slope = (exact(start + step) - exact(start - step)) / 2e-5
        assert np.isclose(soft.variable.grad.numpy()[place], slope, rtol=2e-3, atol=2e-3)


def test_beta_falls_after_a_warm_up() -> None:
    betas = [annealed(step, 100) for step in range(100)]
    assert betas[:20] == [None] * 20
    known = [beta for beta in betas if beta is not None]
    assert known[0] == 20
    assert known == sorted(known, reverse=True)
    assert 2 <= known[-1] < 2.1


def rows(seed: int, count: int, columns: int = 24) -> np.ndarray:
    """Rows that are positive and alike, as behind a Relu."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 6)) @ np.random.default_rng(1).normal(size=(6, columns))
    return np.maximum(mixed + 0.5, 0).astype(np.float32)[None]


def data(weights: np.ndarray, inputs: np.ndarray) -> LayerData:
    targets = np.maximum(np.matmul(inputs, weights.transpose(0, 2, 1)), 0).astype(np.float32)
    bias = np.zeros(weights.shape[:2], np.float32)
    return LayerData(inputs, targets, bias, 0.0, np.inf)


def test_learned_codes_do_much_better_on_rows_that_they_were_not_learned_on() -> None:
    weights = np.random.default_rng(0).normal(size=(1, 8, 24))
    grid = grid_of(weights)
    fitting, judging = data(weights, rows(2, 600)), data(weights, rows(3, 300))
    codes = learn_layer(weights, grid, fitting, Schedule(300, 0, 128))
    floors = np.floor(weights / grid.scales)
    assert set(np.unique(codes - np.clip(floors, -7, 7))) <= {0, 1}
    plain = judging.error(grid.values(grid.nearest(weights)))
    assert judging.error(grid.values(codes)) < 0.4 * plain
    again = learn_layer(weights, grid, fitting, Schedule(300, 0, 128))
    assert (codes == again).all()


def test_groups_of_a_convolution_are_learned_apart() -> None:
    weights = np.random.default_rng(0).normal(size=(2, 4, 24))
    inputs = np.concatenate([rows(2, 400), rows(4, 400)])
    both = learn_layer(weights, grid_of(weights), data(weights, inputs), Schedule(200, 0, 128))
    plain = grid_of(weights).nearest(weights)
    for group in range(2):
        one = data(weights[group : group + 1], inputs[group : group + 1])
        grid = grid_of(weights[group : group + 1])
        learned, nearest = (grid.values(c[group : group + 1]) for c in (both, plain))
        assert one.error(learned) < 0.6 * one.error(nearest)


def test_exact_weights_stay_as_they_are() -> None:
    grid = Grid(np.full((1, 2, 1), 0.5), np.zeros((1, 2, 1), np.int64), -7, 7)
    weights = np.asarray([[[0.5, -1.0, 0.0], [3.5, 1.5, -3.5]]])
    codes = learn_layer(weights, grid, data(weights, rows(0, 20, 3)), Schedule(5, 0, 8))
    assert (codes == [[[1, -2, 0], [7, 3, -7]]]).all()


@pytest.mark.parametrize(
    "form",
    [
        WeightFormat(4, 16),
        WeightFormat(3, 0, symmetric=False),
        WeightFormat(2, 32, symmetric=False, scale_type="float16"),
        WeightFormat(8, 0, signed=False),
    ],
    ids=str,
)
def test_weights_in_few_bits_are_learned_on_the_hessian(form: WeightFormat) -> None:
    weights = np.random.default_rng(5).normal(0.3, 1, size=(8, 24))
    start = round_nearest(weights, form, search=True)
    inputs = rows(6, 500)[0].astype(np.float64)
    schedule = Schedule(300, 0, 1)
    solved = adaround.learn_weight(weights, start, inputs.T @ inputs, schedule)
    np.testing.assert_array_equal(solved.scales, start.scales)
    np.testing.assert_array_equal(solved.zeros, start.zeros)
    assert solved.codes.dtype == np.uint8
    group = form.group_of(24)
    exact = weights / start.scales.astype(float)[:, group] + start.zeros[:, group]
    low, high = (np.clip(f(exact), 0, form.high) for f in (np.floor, np.ceil))
    assert ((solved.codes == low) | (solved.codes == high)).all()
    fresh = rows(7, 300)[0]
    errors = [((fresh @ (weights - s.values()).T) ** 2).sum() for s in (solved, start)]
    assert errors[0] < 0.5 * errors[1]
    again = adaround.learn_weight(weights, start, inputs.T @ inputs, schedule)
    np.testing.assert_array_equal(solved.codes, again.codes)


def test_most_of_what_the_best_codes_gain_is_learned() -> None:
    """Of all 2^9 ways to go down or up, each row on its own, in float64."""
    rng = np.random.default_rng(18)
    weights, inputs = rng.normal(size=(12, 9)), rows(9, 400, 9)[0].astype(np.float64)
    hessian = inputs.T @ inputs
    start = round_nearest(weights, WeightFormat(3, 0))
    scales = start.scales.astype(np.float64)
    low = np.floor(weights / scales) + start.zeros
    ways = np.array(list(itertools.product((0, 1), repeat=9)))
    codes = np.clip(low[:, None] + ways, 0, 7)  # (12, 512, 9)
    differ = (codes - start.zeros[..., None]) * scales[..., None] - weights[:, None]
    best = np.einsum("rwk,kl,rwl->rw", differ, hessian, differ).min(axis=1)
    learned = adaround.learn_weight(weights, start, hessian, Schedule(1000, 0, 1))
    found, plain = (
        np.einsum("rk,kl,rl->r", d, hessian, d)
        for d in (weights - learned.values(), weights - start.values())
    )
    assert (best <= found * (1 + 1e-6)).all()
    assert plain.sum() - found.sum() > 0.8 * (plain.sum() - best.sum())


@pytest.mark.parametrize(("count", "columns"), [(200, 24), (130, 48)])
def test_blocks_of_rows_give_the_same_codes(
    monkeypatch: pytest.MonkeyPatch, count: int, columns: int
) -> None:
    weights = np.random.default_rng(10).normal(size=(count, columns)).astype(np.float32)
    inputs = rows(11, 300, columns)[0]
    start = round_nearest(weights, WeightFormat(4, 16))
    about = weights, start, inputs.T @ inputs, Schedule(100, 0, 1)
    whole = adaround.learn_weight(*about)
    assert (whole.codes != start.codes).mean() > 0.05
    monkeypatch.setattr(adaround, "BLOCK", 1)
    np.testing.assert_array_equal(adaround.learn_weight(*about).codes, whole.codes)


def test_rows_are_learned_on_their_own_errors() -> None:
    """A row that is a thousand times as loud changes nothing for the others."""
    weights, inputs = np.random.default_rng(12).normal(size=(4, 24)), rows(13, 300)[0]
    codes = []
    for loud in (1, 1024):
        scaled = weights * [[loud], [1], [1], [1]]
        start = round_nearest(scaled, WeightFormat(4, 0))
        about = start, inputs.T @ inputs, Schedule(200, 0, 1)
        codes.append(adaround.learn_weight(scaled, *about).codes)
    np.testing.assert_array_equal(codes[0], codes[1])


def test_without_an_error_the_nearest_codes_stay() -> None:
    form = WeightFormat(4, 16)
    weights = np.random.default_rng(14).normal(size=(3, 32))
    start = round_nearest(weights, form)
    on_grid = start.values()
    for values, hessian in ((weights, np.zeros((32, 32))), (on_grid, np.eye(32))):
        found = adaround.learn_weight(values, start, hessian, Schedule(20, 0, 1))
        np.testing.assert_array_equal(found.codes, start.codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_hessian_that_is_not_finite_is_refused(bad: float) -> None:
    weights = np.random.default_rng(15).normal(size=(3, 8))
    start = round_nearest(weights, WeightFormat(4, 0))
    with pytest.raises(DataError, match="NaN or infinity"):
        adaround.learn_weight(weights, start, np.full((8, 8), bad), Schedule(1, 0, 1))


def test_without_torch_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaround.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'qcompile\[torch\]'.*gptq"):
        adaround.torch_library()
