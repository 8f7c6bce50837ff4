"""GPTQ of one layer: the plain column loop of the usual implementations against ``solve``.

Same process, same Hessian, same order of columns, same grids; both in float64. The loop is
algorithm 1 of arXiv:2210.17323 as it is commonly written: the inverse Hessian's Cholesky factor,
blocks of 128 columns, and in each block one numpy statement after another for each column.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from qcompile.numerics.gptq import DAMPING, HessianSum, output_error, prepare, solve_prepared
from qcompile.numerics.groups import (
    Floats,
    SolvedWeight,
    WeightFormat,
    group_parameters,
    round_to,
)
from tests.benchmarks.table import Table

SIZES = (1024, 4096)
FORMAT = WeightFormat(4, 128)
ROUNDS = 3
BLOCK = 128


def measure(sizes: Sequence[int] = SIZES) -> Table:
    """Solve square layers both ways; return the table."""
    table = Table(
        "GPTQ of one layer, 4 bits, groups of 128",
        [
            "layer",
            "column loop, s",
            "qcompile, s",
            "ratio",
            "error, loop",
            "error, qcompile",
            "RTN",
        ],
    )
    _ours(*_layer(2 * BLOCK))  # compiles the loops
    for size in sizes:
        weights, hessian = _layer(size)
        loop_seconds, looped = _timed(partial(_loop, weights, hessian), 1)
        seconds, solved = _timed(partial(_ours, weights, hessian), ROUNDS)
        grids = group_parameters(weights, FORMAT, search=True)
        plain = SolvedWeight(FORMAT, round_to(weights, FORMAT, *grids), *grids)
        power = output_error(weights, hessian)
        errors = [
            np.sqrt(output_error(weights - found.values(), hessian) / power)
            for found in (looped, solved, plain)
        ]
        table.add(
            f"{size} x {size}",
            f"{loop_seconds:.2f}",
            f"{seconds:.2f}",
            f"{loop_seconds / seconds:.1f}",
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


def _timed(work: Callable[[], SolvedWeight], rounds: int) -> tuple[float, SolvedWeight]:
    """Return the shortest time in seconds, and the result."""
    seconds, found = np.inf, None
    for _ in range(rounds):
        start = time.perf_counter()
        found = work()
        seconds = min(seconds, time.perf_counter() - start)
    assert found is not None
    return seconds, found


def _ours(weights: Floats, hessian: Floats) -> SolvedWeight:
    """Solve, the search for the grids included."""
    grids = group_parameters(weights, FORMAT, search=True)
    return solve_prepared(weights, prepare(hessian), FORMAT, grids=grids)


def _loop(weights: Floats, hessian: Floats) -> SolvedWeight:
    """Solve by the loop; the grids come from the same search."""
    grids = group_parameters(weights, FORMAT, search=True)
    columns = len(hessian)
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian[np.ix_(order, order)] + DAMPING * np.diag(hessian).mean() * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    work = weights[:, order].astype(np.float64)
    group = FORMAT.group_of(columns)[order]
    scales, zeros = (grid.astype(np.float64) for grid in grids)
    codes = np.empty(work.shape, np.uint8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block, errors = work[:, start:end].copy(), np.empty((len(work), end - start))
        for i in range(end - start):
            scale, zero = scales[:, group[start + i]], zeros[:, group[start + i]]
            code = np.clip(np.rint(block[:, i] / scale) + zero, 0, FORMAT.high)
            error = (block[:, i] - (code - zero) * scale) / factor[start + i, start + i]
            block[:, i:] -= np.outer(error, factor[start + i, start + i : end])
            errors[:, i], codes[:, order[start + i]] = error, code
        work[:, end:] -= errors @ factor[start:end, end:]
    return SolvedWeight(FORMAT, codes, *grids)
