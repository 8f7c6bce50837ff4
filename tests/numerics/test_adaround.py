"""Learned rounding: what is between codes, its gradient, and codes that beat the nearest ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import RuntimeMissingError
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


def test_weights_in_groups_are_learned_on_the_hessian() -> None:
    weights = np.random.default_rng(5).normal(size=(8, 24))
    start = round_nearest(weights, WeightFormat(4, 16))
    inputs = rows(6, 500)[0].astype(np.float64)
    solved = adaround.learn_weight(weights, start, inputs.T @ inputs, Schedule(300, 0, 1))
    assert (solved.scales == start.scales).all()
    fresh = rows(7, 300)[0]
    errors = [((fresh @ (weights - s.values()).T) ** 2).sum() for s in (solved, start)]
    assert errors[0] < 0.4 * errors[1]


def test_without_torch_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaround.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'qcompile\[torch\]'.*gptq"):
        adaround.torch_library()
