"""Learned rounding: each weight goes down or up, whichever keeps the layer's output.

AdaRound (Nagel et al. 2020, arXiv:2004.10568). A weight on a grid of step s becomes
``s * clip(floor(w / s) + h(V))``, equation 22, with the rectified sigmoid h of equation 23, which
reaches 0 and 1. V is trained on the output error and a penalty ``1 - |2 h - 1|^beta``, equation 24,
that pushes h to 0 or 1 as beta falls; in the end h is rounded.

Departures: errors are shares of those of plain rounding and the penalty is a mean over weights, so
that one weight of the penalty serves layers of all sizes. Where a Hessian stands for the inputs,
rows do not depend on each other: each is learned on its own share and mean, in blocks of rows.

torch computes, on a GPU where it sees one. On a processor it has one thread, for
the bits of a result must not depend on the machine's cores.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.errors import DataError, RuntimeMissingError
from qcompile.numerics.groups import SolvedWeight

Floats = npt.NDArray[np.floating]
Codes = npt.NDArray[np.int64]
Tensor = Any
"""A float32 tensor of torch."""

LOW, HIGH = -0.1, 1.1
"""The stretched range of the sigmoid, gamma and zeta."""

FIRST_BETA, LAST_BETA = 20.0, 2.0

WARM = 0.2
"""Share of the steps without a penalty."""

PENALTY = 3.0
"""Of the penalty against the error: both are near 1 before anything is learned."""

RATE = 0.05
"""Of Adam; from the middle of two codes V has 2.4 to go."""

DECAYS = (0.9, 0.999)
"""Of Adam's means of gradients and of their squares."""

THREADS = 1

BLOCK = 1 << 20
"""Weights whose rows are learned at once: with all that is kept of each, 200 MB."""

ROWS = 64
"""Blocks are multiples of so many rows: vector instructions end where those of all rows do."""


@dataclass(frozen=True)
class Grid:
    """The grid of a weight; scales and zero points spread over it as numpy broadcasts.

    Attributes:
        scales: float64, positive or, on groups' signed grids, negative; never 0.
        zeros: int64, the codes of 0.0.
        low: Lowest code.
        high: Highest code.
    """

    scales: Floats
    zeros: Codes
    low: int
    high: int

    def floors(self, weights: Floats) -> Codes:
        """Return the code at or below each weight, not clipped."""
        return np.floor(weights / self.scales).astype(np.int64) + self.zeros

    def nearest(self, weights: Floats) -> Codes:
        """Return the nearest codes."""
        return self.clipped(np.rint(weights / self.scales).astype(np.int64) + self.zeros)

    def clipped(self, codes: Codes) -> Codes:
        """Return the codes within the grid's bounds."""
        return np.clip(codes, self.low, self.high)

    def values(self, codes: Codes) -> npt.NDArray[np.float64]:
        """Return what codes stand for, float64."""
        found: npt.NDArray[np.float64] = (codes - self.zeros) * self.scales
        return found


@dataclass(frozen=True)
class Schedule:
    """How long, and by which chance.

    Attributes:
        steps: Of Adam.
        seed: Of the choice of rows or samples for each step.
        batch: Rows or samples of a step.
    """

    steps: int
    seed: int
    batch: int


@dataclass(frozen=True)
class LayerData:
    """What a layer reads and should make; groups are those of a convolution, else one.

    Attributes:
        inputs: float32 ``(G, n, K)``, as the layers before leave them when they are rounded.
        targets: float32 ``(G, n, R)``, of the float model, behind the activation function.
        bias: float32 ``(G, R)``.
        low: Of the activation function, a clip; minus infinity for none.
        high: The same.
    """

    inputs: Floats
    targets: Floats
    bias: Floats
    low: float = -np.inf
    high: float = np.inf

    def error(self, weights: Floats) -> float:
        """Return the squared error at the output with weights ``(G, R, K)``."""
        found = np.matmul(self.inputs, weights.astype(np.float32).transpose(0, 2, 1))
        found += self.bias[:, None]
        np.clip(found, self.low, self.high, out=found)
        found -= self.targets
        return float(np.einsum("gnr,gnr->", found, found, dtype=np.float64))

    def power(self) -> float:
        """Return the squared targets' sum."""
        return float(np.einsum("gnr,gnr->", self.targets, self.targets, dtype=np.float64))


def torch_library() -> ModuleType:
    """Return torch.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise RuntimeMissingError(
            "learning how to round (adaround, brecq) needs torch, which is not installed: "
            "pip install 'qcompile[torch]', or take --algorithm gptq"
        )
    return importlib.import_module("torch")


@contextmanager
def fixed_threads(torch: ModuleType) -> Iterator[str]:
    """Give the device to compute on, while torch uses one thread of the processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield "cuda" if torch.cuda.is_available() else "cpu"
    finally:
        torch.set_num_threads(before)


class SoftWeight:
    """A weight whose codes are being learned.

    Attributes:
        variable: V, float32, shaped like the weight.
    """

    def __init__(self, torch: ModuleType, weights: Floats, grid: Grid, device: str) -> None:
        """Begin with what the weights are: h is the part above the floor.

        Args:
            torch: The library.
            weights: Any shape.
            grid: Its scales and zero points spread over it.
            device: To compute on.
        """
        self._torch, self.grid = torch, grid
        self._floors = grid.floors(weights)
        rest = weights / grid.scales - (self._floors - grid.zeros)
        start = -np.log((HIGH - LOW) / (np.clip(rest, 0, 1) - LOW) - 1)

        def on_device(array: Floats | Codes) -> Tensor:
            whole = np.ascontiguousarray(np.broadcast_to(array, weights.shape), np.float32)
            return torch.from_numpy(whole).to(device)

        self.variable = on_device(start).requires_grad_()
        self._base, self._zeros = on_device(self._floors), on_device(grid.zeros)
        self._scales = on_device(grid.scales)

    def share(self) -> Tensor:
        """Return h(V), in ``[0, 1]``: how far above the floor."""
        sigmoid = self._torch.sigmoid(self.variable)
        return self._torch.clamp(sigmoid * (HIGH - LOW) + LOW, 0, 1)

    def values(self) -> Tensor:
        """Return the weight between its codes, differentiable in V."""
        codes = self._torch.clamp(self._base + self.share(), self.grid.low, self.grid.high)
        return (codes - self._zeros) * self._scales

    def penalty(self, beta: float) -> Tensor:
        """Return the mean of ``1 - |2 h - 1|^beta``."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).mean()

    def codes(self) -> Codes:
        """Return the codes that are learned so far: h rounded."""
        up = (self.variable.detach() >= 0).cpu().numpy()
        return self.grid.clipped(self._floors + up)


def annealed(step: int, steps: int) -> float | None:
    """Return beta at a step, None while there is no penalty; it falls along half a cosine."""
    warm = int(WARM * steps)
    if step < warm:
        return None
    share = (step - warm) / max(1, steps - warm)
    return float(LAST_BETA + (FIRST_BETA - LAST_BETA) * 0.5 * (1 + np.cos(np.pi * share)))


def minimize(
    weights: Sequence[SoftWeight],
    error: Callable[[npt.NDArray[np.int64]], Tensor],
    count: int,
    schedule: Schedule,
    problems: int = 1,
) -> None:
    """Train the variables of some weights together.

    Args:
        weights: What is trained.
        error: Gives the differentiable error on some rows or samples, as a share of that of plain
            rounding, or the sum of the shares of independent problems.
        count: Of rows or samples.
        schedule: How long.
        problems: Of the same size; the penalty of each is a mean over its weights.
    """
    optimizer = _Adam(torch_library(), [weight.variable for weight in weights])
    chance = np.random.default_rng(schedule.seed)
    total = sum(weight.variable.numel() for weight in weights)
    for step in range(schedule.steps):
        some = chance.integers(0, count, min(schedule.batch, count))
        loss = error(some)
        beta = annealed(step, schedule.steps)
        if beta is not None:
            parts = [w.penalty(beta) * (w.variable.numel() / total) for w in weights]
            loss = loss + PENALTY * problems * sum(parts)
        loss.backward()
        optimizer.step()


class _Adam:
    """Adam (arXiv:1412.6980); torch's own takes seconds to load."""

    def __init__(self, torch: ModuleType, variables: Sequence[Tensor]) -> None:
        self._torch, self._count = torch, 0
        self._state = [(v, torch.zeros_like(v), torch.zeros_like(v)) for v in variables]

    def step(self) -> None:
        """Move the variables against their gradients, and forget these."""
        self._count += 1
        first, second = (1 - decay**self._count for decay in DECAYS)
        with self._torch.no_grad():
            for variable, mean, square in self._state:
                gradient, variable.grad = variable.grad, None
                mean.lerp_(gradient, 1 - DECAYS[0])
                square.mul_(DECAYS[1]).addcmul_(gradient, gradient, value=1 - DECAYS[1])
                spread = (square / second).sqrt_().add_(1e-8)
                variable.addcdiv_(mean, spread, value=-RATE / first)


def learn_layer(weights: Floats, grid: Grid, data: LayerData, schedule: Schedule) -> Codes:
    """Return codes ``(G, R, K)`` that keep the output of one layer.

    Args:
        weights: ``(G, R, K)``.
        grid: Spreads over them: scales ``(G, R, 1)`` for one a channel.
        data: Rows to learn from.
        schedule: How long.

    Raises:
        RuntimeMissingError: torch is not installed.
    """
    torch = torch_library()
    plain = data.error(grid.values(grid.nearest(weights)))
    if plain <= 0:
        return grid.nearest(weights)
    with fixed_threads(torch) as device:
        soft = SoftWeight(torch, weights.astype(np.float64), grid, device)
        inputs, targets, bias = (
            torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)
            for array in (data.inputs, data.targets, data.bias[:, None])
        )
        count = inputs.shape[1]

        def error(some: npt.NDArray[np.int64]) -> Tensor:
            index = torch.from_numpy(some).to(device)
            found = torch.baddbmm(bias, inputs[:, index], soft.values().transpose(1, 2))
            if np.isfinite(data.low) or np.isfinite(data.high):
                found = found.clamp(data.low, data.high)
            return (found - targets[:, index]).square().sum() * (count / len(some) / plain)

        minimize([soft], error, count, schedule)
        return soft.codes()


def learn_weight(
    weights: Floats, start: SolvedWeight, hessian: Floats, schedule: Schedule
) -> SolvedWeight:
    """Return codes on the grids of a solved weight that keep the output of its layer.

    The error ``d H d^T`` of each row of differences d is exact over all inputs behind H, so no rows
    of inputs are needed; an activation function behind the layer is not seen. Memory: H in float32,
    and what is learned of ``BLOCK`` weights.

    Args:
        weights: ``(R, K)``.
        start: Any solution, as that of plain rounding; its columns stand in the weight's order and
            are not scaled. Its scales and zero points stay.
        hessian: ``(K, K)``, ``X^T X`` up to a factor.
        schedule: How long; every step sees all inputs.

    Raises:
        RuntimeMissingError: torch is not installed.
        DataError: For a Hessian that is not finite.
    """
    torch = torch_library()
    mean = float(np.diag(hessian).mean()) or 1.0  # nothing was excited: any scale will do
    if not np.isfinite(mean):
        raise DataError("the layer's inputs hold NaN or infinity, or overflow: see the samples")
    group = start.format.group_of(weights.shape[1])
    codes = np.empty_like(start.codes)
    with fixed_threads(torch) as device:
        moments = torch.from_numpy(np.multiply(hessian, 1 / mean, dtype=np.float32)).to(device)
        for part in _blocks(weights):
            scales, zeros = start.scales[part][:, group], start.zeros[part][:, group]
            grid = Grid(scales.astype(np.float64), zeros.astype(np.int64), 0, start.format.high)
            exact = weights[part].astype(np.float64)
            codes[part] = _learn_rows(torch, exact, grid, moments, schedule)
    return replace(start, codes=codes)


def _blocks(weights: Floats) -> Iterator[slice]:
    """Yield rows that are learned at once."""
    rows = max(1, BLOCK // weights.shape[1] // ROWS) * ROWS
    for first in range(0, len(weights), rows):
        yield slice(first, first + rows)


def _learn_rows(
    torch: ModuleType, weights: Floats, grid: Grid, moments: Tensor, schedule: Schedule
) -> Codes:
    """Return codes ``(R, K)``, each row learned on its own error.

    Args:
        torch: The library.
        weights: float64 ``(R, K)``.
        grid: Spreads over them.
        moments: float32 ``(K, K)``, the Hessian up to a factor, where to compute.
        schedule: How long.
    """
    soft = SoftWeight(torch, weights, grid, moments.device)
    original, nearest = (
        torch.from_numpy(values.astype(np.float32)).to(moments.device)
        for values in (weights, grid.values(grid.nearest(weights)))
    )
    plain = (((nearest - original) @ moments) * (nearest - original)).sum(dim=1, keepdim=True)
    share = torch.where(plain > 0, 1 / plain, torch.zeros_like(plain))

    def error(_: npt.NDArray[np.int64]) -> Tensor:
        difference = soft.values() - original
        # twice with one factor held: the gradient of the square for a single product
        return 2 * (((difference.detach() @ moments) * share) * difference).sum()

    minimize([soft], error, 1, schedule, problems=len(weights))
    return soft.codes()
