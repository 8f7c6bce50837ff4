"""GPTQ of one layer: the plain numpy of the usual implementations against ``qcompile.numerics``.

One process, the same Hessian, order of columns and candidates for the grids; both in float64. Plain
is algorithm 1 of arXiv:2210.17323 as it is commonly written (the inverse Hessian's Cholesky factor,
blocks of 128 columns, in each block one numpy statement after another for each column), behind a
search for the grids that goes through the candidates with one numpy statement after another.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from qcompile.numerics.gptq import DAMPING, prepare, solve_prepared
from qcompile.numerics.groups import (
    Codes,
    Floats,
    SolvedWeight,
    WeightFormat,
    group_parameters,
    round_nearest,
)
from qcompile.numerics.hessian import HessianSum, output_error
from tests.benchmarks.table import Table

SIZES = (1024, 4096)
FORMAT = WeightFormat(4, 128)
ROUNDS = 3
BLOCK = 128

Grids = tuple[Floats, Codes]
Found = TypeVar("Found")


def measure(sizes: Sequence[int] = SIZES) -> Table:
    """Solve square layers both ways; return the table."""
    table = Table(
        "GPTQ of one layer, 4 bits, groups of 128",
        [
            "layer",
            "plain: grids, s",
            "plain: columns, s",
            "qcompile: grids, s",
            "qcompile: columns, s",
            "ratio",
            "error, plain",
            "error, qcompile",
            "error, RTN",
        ],
    )
    small = _layer(2 * BLOCK)
    _solved(*small, group_parameters(small[0], FORMAT, search=True))  # compiles the loops
    for size in sizes:
        weights, hessian = _layer(size)
        seconds, found = [], []
        for search, solve, rounds in ((_plain_grids, _plain, 1), (_grids, _solved, ROUNDS)):
            searching, grids = _timed(partial(search, weights), rounds)
            solving, solved = _timed(partial(solve, weights, hessian, grids), rounds)
            seconds += [searching, solving]
            found.append(solved)
        found.append(round_nearest(weights, FORMAT, search=True))
        power = output_error(weights, hessian)
        errors = [np.sqrt(output_error(weights - w.values(), hessian) / power) for w in found]
        table.add(
            f"{size} x {size}",
            *(f"{part:.2f}" for part in seconds),
            f"{sum(seconds[:2]) / sum(seconds[2:]):.1f}",
            *(f"{error:.5f}" for error in errors),
        )
    return table


def _layer(size: int) -> tuple[Floats, Floats]:
    """Weights, and the Hessian of inputs that share an eighth as many directions."""
    rng = np.random.default_rng(size)
    mixing = rng.standard_normal((size // 8, size), np.float32)
    power = rng.lognormal(0, 0.7, size).astype(np.float32)
    total = HessianSum(size)
    for _ in range(4):
        common = rng.standard_normal((size // 2, size // 8), np.float32)
        own = rng.standard_normal((size // 2, size), np.float32)
        total.add((common @ mixing / np.sqrt(size / 8) + own) * power)
    return rng.standard_normal((size, size), np.float32), total.matrix()


def _timed(work: Callable[[], Found], rounds: int) -> tuple[float, Found]:
    """Return the shortest time in seconds, and the result."""
    seconds = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        found = work()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds, found


def _grids(weights: Floats) -> Grids:
    return group_parameters(weights, FORMAT, search=True)


def _solved(weights: Floats, hessian: Floats, grids: Grids) -> SolvedWeight:
    return solve_prepared(weights, prepare(hessian), FORMAT, grids=grids)


def _plain_grids(weights: Floats) -> Grids:
    """Return for each group the grid with the least squared error."""
    shape = len(weights), -1, FORMAT.group_size
    groups = weights.astype(np.float64).reshape(shape)
    peak = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
    best, scales = np.full(peak.shape, np.inf), np.ones(peak.shape, np.float32)
    for share in (-1 / FORMAT.middle, 1 / (FORMAT.middle - 1)):
        for narrower in 0.96 ** np.arange(40):
            scale = (peak * share * narrower).astype(np.float32)
            code = np.clip(np.round(groups / scale), -FORMAT.middle, FORMAT.middle - 1)
            error = np.square(code * scale - groups).sum(-1, keepdims=True)
            scales = np.where(error < best, scale, scales)
            best = np.minimum(error, best)
    return scales[..., 0], np.full(scales.shape[:2], FORMAT.middle, np.uint8)


def _plain(weights: Floats, hessian: Floats, grids: Grids) -> SolvedWeight:
    """Algorithm 1, columns by falling ``diag(H)``; the grids are given."""
    columns = len(hessian)
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian[np.ix_(order, order)] + DAMPING * np.diag(hessian).mean() * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    work = weights[:, order].astype(np.float64)
    group = FORMAT.group_of(columns)[order]
    scales, zeros = (grid.astype(np.float64) for grid in grids)
    codes, loss = np.empty(work.shape, np.uint8), 0.0
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block, errors = work[:, start:end].copy(), np.empty((len(work), end - start))
        for i in range(end - start):
            column, pivot = block[:, i], factor[start + i, start + i]
            scale, zero = scales[:, group[start + i]], zeros[:, group[start + i]]
            code = np.clip(np.round(column / scale) + zero, 0, FORMAT.high)
            rounded = scale * (code - zero)
            loss += float(np.sum((column - rounded) ** 2 / pivot**2)) / 2
            error = (column - rounded) / pivot
            block[:, i:] -= error[:, None] @ factor[start + i : start + i + 1, start + i : end]
            errors[:, i], codes[:, order[start + i]] = error, code
        work[:, end:] -= errors @ factor[start:end, end:]
    return SolvedWeight(FORMAT, codes, *grids)
