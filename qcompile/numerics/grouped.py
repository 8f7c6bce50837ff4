"""GPTQ one group after another, each grid clipped to the least error when its group's turn comes.

AWQ (Lin et al. 2023, arXiv:2306.00978) narrows the range of each group where that lowers the error
at the output. Inside GPTQ (Frantar et al. 2022, arXiv:2210.17323) that error is known exactly: with
the columns of a group neighbours in the order of rounding, the sum of squares of the errors that
GPTQ leaves for them is what the group adds at the output once all later columns have made up for
what they can. So each of a few grids is tried by rounding the group on it. Columns stay where they
are in the weight: the engine does not reorder its inputs.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from qcompile.numerics.devices import Block
from qcompile.numerics.gptq import BLOCK, InverseHessian, Sweep, pieces, restored
from qcompile.numerics.groups import Floats, SolvedWeight, WeightFormat, group_parameters

SHARES = np.array([1, 0.97, 1.03, 0.94, 1.06, 0.91, 1.09])
"""Grids that are tried, in units of the one with the least error of rounding to the nearest."""

WIDEST = 256
"""Columns of a group that is rounded more than once; a wider one takes its first grid."""


def solve_grouped(
    weights: Floats,
    inverse: InverseHessian,
    format: WeightFormat,  # noqa: A002 - the word of SolvedWeight
    input_scale: npt.NDArray[np.float32] | None = None,
    *,
    search: bool = True,
) -> SolvedWeight:
    """Round the weights of one layer.

    Args:
        weights: ``(R, K)``, any floating type.
        inverse: Of the layer's Hessian, prepared with the format's ``group_size``.
        format: The format.
        input_scale: float32 ``(K,)``: codes stand for ``weights * input_scale``; None: 1.
        search: Look for the grids with the least error, else they hold the extremes.

    Raises:
        ModelError: For weights that are not finite.
        PlanError: For scales that the scale type cannot hold.
    """
    columns = weights.shape[1]
    group = format.group_of(columns)[inverse.order]
    scales = np.ones((len(weights), format.groups(columns)), format.scale_type)
    zeros = np.full(scales.shape, format.middle, np.uint8)
    sweep = Sweep(weights, inverse, scales, zeros, group, format.high, input_scale)

    def take_group(start: int, end: int) -> None:
        number = slice(group[start], group[start] + 1)
        work, factor = sweep.scaled(start, end)
        cost = inverse.device.host(factor.diagonal()) ** -2.0
        scales[:, number], zeros[:, number] = group_parameters(
            inverse.device.host(work),
            replace(format, group_size=0),
            search=search,
            importance=cost if search else None,
        )
        sweep.zeros[:, number] = inverse.device.load(zeros[:, number])
        if search and end - start <= WIDEST:
            scales[:, number] = _clip(sweep, start, end, scales[:, number], zeros[:, number])
            return
        sweep.scales[:, number] = inverse.device.load(scales[:, number])
        sweep.by_halves(pieces(start, end, BLOCK), sweep.round)

    turns = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), columns]
    sweep.by_halves(turns, take_group)
    codes = restored(sweep.codes, inverse.order)
    return SolvedWeight(format, codes, scales, zeros, input_scale=input_scale)


def _clip(
    sweep: Sweep, start: int, end: int, scales: Floats, zeros: npt.NDArray[np.uint8]
) -> Floats:
    """Round one group on each grid ``(R, 1)``; keep the codes of the best, return its scales."""
    device, one = sweep.inverse.device, slice(start, end)
    best, least = scales.copy(), np.full(len(scales), np.inf)
    weights, factor = sweep.scaled(start, end)
    errors = weights * 1.0
    same = np.zeros(end - start, np.int64)
    for share in SHARES:
        steps = _steps(scales, share)
        work = weights * 1.0
        block = Block(work, factor, device.load(steps), device.load(zeros), same, sweep.high)
        codes = device.round_block(block)
        error = device.host((work * work).sum(1))
        better = error < least
        least[better], best[better] = error[better], steps[better]
        sweep.codes[better, one] = codes[better]
        errors[better] = work[better]
    sweep.work[:, one] = errors
    return best


def _steps(scales: Floats, share: float) -> Floats:
    """Return a share of scales in their type; the scales themselves where it has no such number."""
    with np.errstate(over="ignore"):
        steps = (scales.astype(np.float64) * share).astype(scales.dtype)
    return np.where((steps == 0) | ~np.isfinite(steps), scales, steps)
