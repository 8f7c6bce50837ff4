"""Rounding a layer's weights one column after another, each error taken up by the next columns.

GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1). With X the layer's inputs ``(n, K)`` and
``H = X^T X``, each row w of the weights is rounded to q so that ``(w - q) H (w - q)^T``, the
squared error at the output, is small. With U upper triangular and ``U^T U = (H + damping)^-1``,
column c leaves the error ``e = (w_c - q_c) / U_cc``, and ``e U_cj`` is taken from each later w_j.

Departures: the updates of later columns are not done in blocks of one size but by halves, so that
nearly all of the work is large matrix products; U is found the same way, without an inverse Hessian
in between; and the errors lie where the weights were, for memory: beside H there is one matrix of
its size, halves of it for moments, and one of the weights' size, all float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.errors import DataError
from qcompile.numerics.devices import Block, Cpu, Device, Matrix, best_device
from qcompile.numerics.groups import Codes, Floats, SolvedWeight, WeightFormat, group_parameters
from qcompile.numerics.hessian import Wide

BLOCK = 64
"""Columns that the innermost loop works on; all beyond it is matrix products."""

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: what the samples did not excite."""

_MOST_DAMPING = 1e3
"""Where a Hessian cannot be inverted at this share it is no Hessian."""

_LEAST_PIVOT = 1e-10
"""Of the Cholesky factor, squared, as a share of the diagonal's mean: below it rounding decides."""


@dataclass(frozen=True)
class InverseHessian:
    """What GPTQ needs of a layer's inputs; layers that read the same input share it.

    Attributes:
        upper: ``(K, K)`` on the device: U with ``U^T U = (H + damping)^-1``, rows in this order.
        order: int64 ``(K,)``: the order in which columns are rounded.
        importance: ``(K,)``, ``1 / U_cc^2`` in the weights' order: what an error of column c costs
            at the output when the columns after it have made up for what they can.
        damping: What was added to the diagonal, as a share of its mean. It is more than what was
            asked for where the Hessian could not be inverted with that.
        device: Where ``upper`` lies.
    """

    upper: Matrix
    order: npt.NDArray[np.int64]
    importance: Wide
    damping: float
    device: Device


def prepare(
    hessian: Wide,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    group_size: int = 0,
    device: Device | None = None,
) -> InverseHessian:
    """Invert a Hessian; it is left as it is.

    Columns that no input excited (0 on the diagonal) are independent of all others: they are
    rounded plainly, last in act-order.

    Args:
        hessian: ``(K, K)``, ``X^T X`` up to a factor.
        damping: Added to the diagonal, as a share of its mean; ten times as much, and again, where
            the sum is not positive definite.
        act_order: Round columns by falling ``diag(H)``, else from first to last.
        group_size: Keep so many neighbours together in act-order: groups go by the falling mean
            of their ``diag(H)``; 0: nothing is kept together.
        device: Where to compute; by default on the GPU that torch sees, else on the processor.

    Raises:
        DataError: For a Hessian that is not finite, or nowhere near positive semidefinite.
    """
    if not np.isfinite(hessian).all():
        raise DataError("the layer's inputs hold NaN or infinity, or overflow: see the samples")
    device = device or best_device()
    power = np.diag(hessian)
    order = _falling(power, group_size) if act_order else np.arange(len(power))
    mean = float(np.abs(power).mean()) or 1.0  # nothing was excited: any multiple of 1 will do
    while damping <= _MOST_DAMPING:
        upper = device.load(hessian[np.ix_(order, order)])
        upper.ravel()[:: len(power) + 1] += damping * mean
        if invert(upper, device):
            importance = np.empty(len(power))
            importance[order] = device.host(upper.diagonal()) ** -2.0
            if importance.min() > _LEAST_PIVOT * mean:
                return InverseHessian(upper, order, importance, damping, device)
        damping = max(10 * damping, 1e-6)
    raise DataError("the layer's Hessian is not positive semidefinite: its sums were not X^T X")


def solve(
    weights: Floats,
    hessian: Wide,
    format: WeightFormat,  # noqa: A002 - the word of SolvedWeight
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    static_groups: bool = True,
    search: bool = True,
) -> SolvedWeight:
    """Round the weights of one layer: ``prepare`` and ``solve_prepared`` in one.

    Args:
        weights: ``(R, K)``, any floating type.
        hessian: ``(K, K)``, ``X^T X`` up to a factor.
        format: The format.
        damping: As for ``prepare``.
        act_order: As for ``prepare``.
        static_groups: As for ``solve_prepared``.
        search: As for ``solve_prepared``.

    Raises:
        DataError: As ``prepare``.
        ModelError: For weights that are not finite.
        PlanError: For scales that the scale type cannot hold.
    """
    prepared = prepare(hessian, damping=damping, act_order=act_order)
    return solve_prepared(weights, prepared, format, static_groups=static_groups, search=search)


def solve_prepared(
    weights: Floats,
    inverse: InverseHessian,
    format: WeightFormat,  # noqa: A002
    *,
    grids: tuple[Floats, Codes] | None = None,
    static_groups: bool = True,
    search: bool = True,
    input_scale: npt.NDArray[np.float32] | None = None,
) -> SolvedWeight:
    """Round the weights of one layer.

    Static groups lie in the weight's own order and their grids come from the weights as they are.
    Else groups lie in the order of rounding, and each grid comes from what earlier errors left
    of its weights when their turn comes; if that order is not the weight's own, the result says so
    in ``order``, and the engine has to reorder its inputs.

    Args:
        weights: ``(R, K)``, any floating type.
        inverse: Of the layer's Hessian.
        format: The format.
        grids: Scales and zero points ``(R, G)`` of the groups in the weight's own order, to be
            used as they are; None: they are found here, as the two next arguments say.
        static_groups: Fix all grids at the start.
        search: Look for the grids with the least error, as ``group_parameters`` does, the columns
            weighted by the inverse's importance.
        input_scale: float32 ``(K,)``: codes stand for ``weights * input_scale``; only for static
            groups.

    Raises:
        ModelError: For weights that are not finite.
        PlanError: For scales that the scale type cannot hold.
    """
    columns = weights.shape[1]
    group = format.group_of(columns)
    importance = inverse.importance if search else None
    scaled = weights
    if input_scale is not None:
        scaled = np.multiply(weights, input_scale, dtype=np.float64)
        importance = None if importance is None else importance / np.square(input_scale)
    scales, zeros = grids or group_parameters(scaled, format, search=search, importance=importance)
    if grids or static_groups or scales.shape[1] == 1:
        place = group[inverse.order]
        sweep = Sweep(weights, inverse, scales, zeros, place, format.high, input_scale)
        sweep.by_halves(pieces(0, columns, BLOCK), sweep.round)
        codes = restored(sweep.codes, inverse.order)
        return SolvedWeight(format, codes, scales, zeros, input_scale=input_scale)

    sweep = Sweep(weights, inverse, scales, zeros, group, format.high)

    def take_group(start: int, end: int) -> None:
        one, number = slice(start, end), slice(group[start], group[start] + 1)
        scales[:, number], zeros[:, number] = group_parameters(
            inverse.device.host(sweep.work[:, one]),
            format,
            search=search,
            importance=importance[inverse.order[one]] if importance is not None else None,
        )
        sweep.scales[:, number] = inverse.device.load(scales[:, number])
        sweep.zeros[:, number] = inverse.device.load(zeros[:, number])
        sweep.by_halves(pieces(start, end, BLOCK), sweep.round)

    sweep.by_halves(pieces(0, columns, format.group_size), take_group)
    natural = np.array_equal(inverse.order, np.arange(columns))
    return SolvedWeight(format, sweep.codes, scales, zeros, None if natural else inverse.order)


def round_columns(
    weights: Wide, scale: Wide, hessian: Wide, code_high: int
) -> npt.NDArray[np.int8]:
    """Round the weights of one layer on a given symmetric grid of each row, on one thread.

    Args:
        weights: ``(R, K)``, one row for each output channel.
        scale: ``(R,)``, the step of each row's grid.
        hessian: ``(K, K)``, ``X^T X`` up to a factor.
        code_high: Largest code; the lowest is ``-code_high``.

    Returns:
        Codes ``(R, K)``.
    """
    inverse = prepare(hessian, device=Cpu(threads=1))
    zeros = np.full((len(scale), 1), code_high, np.uint8)
    group = np.zeros(weights.shape[1], np.int64)
    sweep = Sweep(weights, inverse, scale[:, None], zeros, group, 2 * code_high)
    sweep.by_halves(pieces(0, weights.shape[1], BLOCK), sweep.round)
    return (restored(sweep.codes, inverse.order).astype(np.int16) - code_high).astype(np.int8)


class Sweep:
    """Goes once over the columns, in the order of rounding.

    Codes may stand for weights times an input scale S (AWQ). Then the Hessian is that of inputs
    divided by it, ``S^-1 H S^-1``, and its factor ``U S``; the errors ``e`` are the same numbers
    in both bases, so only the columns that are being rounded have to be scaled.

    Attributes:
        work: ``(R, K)`` on the device: weights that are still to be rounded, then their errors.
        codes: ``(R, K)``, in the order of rounding.
        scales: ``(R, G)`` on the device.
        zeros: ``(R, G)`` on the device.
    """

    def __init__(
        self,
        weights: Floats,
        inverse: InverseHessian,
        scales: Floats,
        zeros: Codes,
        group: npt.NDArray[np.int64],
        high: int,
        input_scale: Floats | None = None,
    ) -> None:
        self.inverse = inverse
        self.work = inverse.device.load(np.take(weights, inverse.order, axis=1))
        self.scales = inverse.device.load(scales)
        self.zeros = inverse.device.load(zeros)
        self.codes = np.empty(weights.shape, np.uint8)
        self.group = group
        self.high = high
        self.input_scale = None
        if input_scale is not None:
            self.input_scale = inverse.device.load(input_scale[inverse.order])

    def by_halves(self, ends: Sequence[int], visit: Callable[[int, int], None]) -> None:
        """Visit the pieces between neighbouring ends, each when its weights are final."""
        start, end = ends[0], ends[-1]
        if len(ends) <= 2:
            visit(start, end)
            return
        half = len(ends) // 2
        middle = ends[half]
        self.by_halves(ends[: half + 1], visit)
        upper = self.inverse.upper[start:middle, middle:end]
        self.work[:, middle:end] -= self.work[:, start:middle] @ upper
        self.by_halves(ends[half:], visit)

    def scaled(self, start: int, end: int) -> tuple[Matrix, Matrix]:
        """Return weights and factor of some columns in the basis of the codes."""
        one = slice(start, end)
        work, factor = self.work[:, one], self.inverse.upper[one, one]
        if self.input_scale is None:
            return work, factor
        return work * self.input_scale[one], factor * self.input_scale[one]

    def round(self, start: int, end: int) -> None:
        """Round the columns of one piece."""
        one = slice(start, end)
        work, factor = self.scaled(start, end)
        block = Block(work, factor, self.scales, self.zeros, self.group[one], self.high)
        self.codes[:, one] = self.inverse.device.round_block(block)
        self.work[:, one] = work


def pieces(start: int, end: int, unit: int) -> list[int]:
    """Return the ends of pieces of ``unit`` columns; the last may be shorter."""
    return [*range(start, end, unit), end]


def invert(matrix: Matrix, device: Device) -> bool:
    """Replace a symmetric matrix by the upper triangular U with ``U^T U = matrix^-1``.

    By halves: with ``matrix = R R^T``, R upper triangular (Cholesky of the reversed matrix), and
    ``U = R^-1``, the lower right quarter gives ``U_22``, then ``R_12 = A_12 U_22^T``, then the rest
    ``A_11 - R_12 R_12^T`` gives ``U_11``, and ``U_12 = -U_11 R_12 U_22``.

    Args:
        matrix: ``(K, K)`` on the device.
        device: Where it lies.

    Returns:
        Whether the matrix is positive definite; it is spoiled if not.
    """
    if len(matrix) <= BLOCK:
        found = device.invert_small(matrix)
        if found is not None:
            matrix[:] = found
        return found is not None
    half = len(matrix) // 2
    left, right = matrix[:half, :half], matrix[half:, half:]
    corner = matrix[:half, half:]
    matrix[half:, :half] = 0
    if not invert(right, device):
        return False
    _multiply(corner, right.T, upper=False)
    left -= corner @ corner.T
    if not invert(left, device):
        return False
    _multiply(corner, right, upper=True)
    _multiply(corner.T, left.T, upper=False)
    corner *= -1
    return True


def _multiply(matrix: Matrix, triangle: Matrix, *, upper: bool) -> None:
    """Multiply a matrix by a triangular one from the right, in place: half of a full product."""
    if len(triangle) <= 4 * BLOCK:
        matrix[:] = matrix @ triangle
        return
    half = len(triangle) // 2
    first, second = matrix[:, :half], matrix[:, half:]
    if upper:
        _multiply(second, triangle[half:, half:], upper=True)
        second += first @ triangle[:half, half:]
        _multiply(first, triangle[:half, :half], upper=True)
    else:
        _multiply(first, triangle[:half, :half], upper=False)
        first += second @ triangle[half:, :half]
        _multiply(second, triangle[half:, half:], upper=False)


def _falling(power: Wide, group_size: int) -> npt.NDArray[np.int64]:
    """Return columns by falling power, those of one group together."""
    group = np.arange(len(power)) // (group_size or max(1, len(power)))
    means = np.bincount(group, power) / np.bincount(group)
    return np.lexsort((-power, group, -means[group]))


def restored(codes: Codes, order: npt.NDArray[np.int64]) -> Codes:
    """Put columns back to their places."""
    return np.take(codes, np.argsort(order), axis=1)
