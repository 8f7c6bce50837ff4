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

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qcompile.errors import DataError
from qcompile.numerics.devices import Block, Cpu, Device, Matrix, best_device
from qcompile.numerics.groups import Codes, Floats, SolvedWeight, WeightFormat, group_parameters

Wide = npt.NDArray[np.float64]

BLOCK = 64
"""Columns that the innermost loop works on; all beyond it is matrix products."""

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: what the samples did not excite."""

ROWS = 2048
"""Inputs that go into one product: float32 sums of so many lose nothing that matters."""

STRIP = 1024
"""Rows of a Hessian that are added to together."""

_MOST_DAMPING = 1e3
"""Where a Hessian cannot be inverted at this share it is no Hessian."""

_LEAST_PIVOT = 1e-10
"""Of the Cholesky factor, squared, as a share of the diagonal's mean: below it rounding decides."""


class HessianSum:
    """A running ``X^T X``: products in float32, sums in float64.

    GPTQ's Hessian is ``2 X^T X`` (arXiv:2210.17323, section 2); its solution, damping included,
    does not depend on the factor. Sums of parts merge in any order, equal up to the rounding of
    float64. Memory: one matrix ``(K, K)`` and a strip of it.

    Attributes:
        count: Inputs summed so far, n.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self._sum = np.zeros((columns, columns))  # its upper triangle; below, nothing counts

    def add(self, rows: Floats) -> None:
        """Add inputs ``(n, K)``. Those that are not finite make the matrix not finite."""
        for start in range(0, len(rows), ROWS):
            part = np.ascontiguousarray(rows[start : start + ROWS], np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                for strip in self._strips():
                    self._sum[strip, strip.start :] += part[:, strip].T @ part[:, strip.start :]
        self.count += len(rows)

    def merge(self, other: "HessianSum") -> None:
        """Add what another sum has seen."""
        self._sum += other._sum  # noqa: SLF001 - of the same class
        self.count += other.count

    def matrix(self) -> Wide:
        """Return ``X^T X``, ``(K, K)``: no copy, it changes with the next ``add``."""
        for strip in self._strips():
            square = self._sum[strip, strip]
            square[:] = np.triu(square) + np.triu(square, 1).T
            self._sum[strip.stop :, strip] = self._sum[strip, strip.stop :].T
        return self._sum

    def _strips(self) -> list[slice]:
        columns = len(self._sum)
        starts = range(0, columns, STRIP)
        return [slice(start, min(start + STRIP, columns)) for start in starts]


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

    def scaled(self, scale: Floats) -> "InverseHessian":
        """Return it for inputs that are divided by ``scale`` ``(K,)``, rounded in the same order.

        With ``H' = S^-1 H S^-1``, ``U S`` is upper triangular and ``(U S)^T (U S) = H'^-1``.
        """
        columns = self.device.load(scale[self.order])
        return replace(
            self, upper=self.upper * columns, importance=self.importance / np.square(scale)
        )


def prepare(
    hessian: Wide,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
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
        device: Where to compute; by default on the GPU that torch sees, else on the processor.

    Raises:
        DataError: For a Hessian that is not finite, or nowhere near positive semidefinite.
    """
    if not np.isfinite(hessian).all():
        raise DataError("the layer's inputs hold NaN or infinity, or overflow: see the samples")
    device = device or best_device()
    power = np.diag(hessian)
    order = np.argsort(-power, kind="stable") if act_order else np.arange(len(power))
    mean = float(np.abs(power).mean()) or 1.0  # nothing was excited: any multiple of 1 will do
    while damping <= _MOST_DAMPING:
        upper = device.load(hessian[np.ix_(order, order)])
        upper.ravel()[:: len(power) + 1] += damping * mean
        if _invert(upper, device):
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

    Raises:
        ModelError: For weights that are not finite.
        PlanError: For scales that the scale type cannot hold.
    """
    columns = weights.shape[1]
    group = format.group_of(columns)
    importance = inverse.importance if search else None
    scales, zeros = grids or group_parameters(weights, format, search=search, importance=importance)
    if grids or static_groups or scales.shape[1] == 1:
        sweep = _Sweep(weights, inverse, scales, zeros, group[inverse.order], format.high)
        sweep.by_halves(0, columns, BLOCK, sweep.round)
        return SolvedWeight(format, _restored(sweep.codes, inverse.order), scales, zeros)

    sweep = _Sweep(weights, inverse, scales, zeros, group, format.high)

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
        sweep.by_halves(start, end, BLOCK, sweep.round)

    sweep.by_halves(0, columns, format.group_size, take_group)
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
    sweep = _Sweep(weights, inverse, scale[:, None], zeros, group, 2 * code_high)
    sweep.by_halves(0, weights.shape[1], BLOCK, sweep.round)
    return (_restored(sweep.codes, inverse.order).astype(np.int16) - code_high).astype(np.int8)


def output_error(difference: Floats, hessian: Wide) -> float:
    """Return ``sum_r d_r H d_r^T``: the squared error at the layer's output.

    Args:
        difference: ``(R, K)``, weights minus what their codes stand for.
        hessian: ``(K, K)``.
    """
    return float(np.einsum("rk,rk->", difference @ hessian, difference))


def output_error_on(difference: Floats, rows: Floats) -> float:
    """Return the squared error at the layer's output over given inputs, ``|X d^T|^2``.

    Args:
        difference: ``(R, K)``, weights minus what their codes stand for.
        rows: ``(n, K)``, inputs; products are float32, their squares are summed in float64.
    """
    narrow, total = np.asarray(difference, np.float32).T, 0.0
    for start in range(0, len(rows), ROWS):
        outputs = np.asarray(rows[start : start + ROWS], np.float32) @ narrow
        total += float(np.einsum("nr,nr->", outputs, outputs, dtype=np.float64))
    return total


class _Sweep:
    """Goes once over the columns, in the order of rounding.

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
    ) -> None:
        self.inverse = inverse
        self.work = inverse.device.load(np.take(weights, inverse.order, axis=1))
        self.scales = inverse.device.load(scales)
        self.zeros = inverse.device.load(zeros)
        self.codes = np.empty(weights.shape, np.uint8)
        self.group = group
        self.high = high

    def by_halves(self, start: int, end: int, unit: int, visit: Callable[[int, int], None]) -> None:
        """Visit columns ``start..end`` in pieces of ``unit``, each when its weights are final."""
        if end - start <= unit:
            visit(start, end)
            return
        middle = start + unit * -(-(end - start) // (2 * unit))
        self.by_halves(start, middle, unit, visit)
        upper = self.inverse.upper[start:middle, middle:end]
        self.work[:, middle:end] -= self.work[:, start:middle] @ upper
        self.by_halves(middle, end, unit, visit)

    def round(self, start: int, end: int) -> None:
        """Round the columns of one piece."""
        one = slice(start, end)
        block = Block(
            self.work[:, one],
            self.inverse.upper[one, one],
            self.scales,
            self.zeros,
            self.group[one],
            self.high,
        )
        self.codes[:, one] = self.inverse.device.round_block(block)


def _invert(matrix: Matrix, device: Device) -> bool:
    """Replace a symmetric matrix by the upper triangular U with ``U^T U = matrix^-1``.

    By halves: with ``matrix = R R^T``, R upper triangular (Cholesky of the reversed matrix), and
    ``U = R^-1``, the lower right quarter gives ``U_22``, then ``R_12 = A_12 U_22^T``, then the rest
    ``A_11 - R_12 R_12^T`` gives ``U_11``, and ``U_12 = -U_11 R_12 U_22``.

    Returns:
        Whether the matrix is positive definite.
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
    if not _invert(right, device):
        return False
    _multiply(corner, right.T, upper=False)
    left -= corner @ corner.T
    if not _invert(left, device):
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


def _restored(codes: Codes, order: npt.NDArray[np.int64]) -> Codes:
    """Put columns back to their places."""
    return np.take(codes, np.argsort(order), axis=1)
