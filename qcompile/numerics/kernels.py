"""Loops over weights that numba compiles; import this module inside functions, it takes a second.

Each releases the interpreter lock and works on one thread: callers hand parts of the rows to
several threads (numba's own thread pool may not be entered from two threads at once).
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

TILE = 16
"""Rows that are rounded side by side: enough to hide that each column waits for the one before."""


class Search(NamedTuple):
    """What ``find_grids`` needs to know of a format.

    Attributes:
        size: Columns of a group.
        high: Largest code.
        symmetric: The zero point is the middle code.
        positive: Scales are: of steps that are not, the magnitude is tried.
        digits: Binary digits of a scale.
        least: Least positive number of the scale's type; no scale is nearer to 0.
    """

    size: int
    high: int
    symmetric: bool
    positive: bool
    digits: int
    least: float


class Descent(NamedTuple):
    """What ``descend`` needs beside its matrices.

    Attributes:
        high: Largest code.
        sweeps: How often each row is gone through at most.
        damping: Added to the Hessian's diagonal.
    """

    high: int
    sweeps: int
    damping: float


@njit(cache=True, nogil=True)
def find_grids(
    weights: Floats, importance: Floats, steps: Floats, search: Search
) -> tuple[Floats, Codes]:
    """Return the scale and the zero point of each group: the grid with the least squared error.

    Args:
        weights: ``(R, K)``.
        importance: ``(K,)``, weight of each squared error.
        steps: Scales to try, in units of the value of largest magnitude or, asymmetric, of the
            range. Of several that are equal the first wins.
        search: The format.

    Returns:
        Scales ``(R, G)``, numbers of so many digits; NaN or infinity where weights are so.
        Zero points ``(R, G)``.
    """
    size, high, middle = search.size, search.high, (search.high + 1) // 2
    rows, columns = weights.shape
    groups = (columns + size - 1) // size
    scales = np.ones((rows, groups))
    zeros = np.full((rows, groups), middle, np.uint8)
    for row in range(rows):
        for group in range(groups):
            start, end = group * size, min(columns, (group + 1) * size)
            values = weights[row, start:end]
            low, top = _range(values)
            unit = top - low
            if search.symmetric:
                unit = low if -low > top else top
            if not math.isfinite(unit):
                scales[row, group] = unit
            if unit == 0.0 or not math.isfinite(unit):
                continue
            best = math.inf
            for step in steps:
                scale = _representable(unit * step, search.digits, search.least)
                if search.positive:
                    scale = abs(scale)
                zero = middle
                if not search.symmetric:
                    zero = int(min(max(np.rint(-low * step * high / scale), 0.0), float(high)))
                error = 0.0
                if len(steps) > 1:
                    error = _error(values, importance[start:end], scale, zero, high)
                if error < best:
                    best = error
                    scales[row, group], zeros[row, group] = scale, zero
    return scales, zeros


@njit(cache=True, nogil=True)
def round_groups(
    weights: Floats, size: int, high: int, scales: Floats, zeros: Codes, codes: Codes
) -> None:
    """Write the nearest codes of given grids.

    Args:
        weights: ``(R, K)``.
        size: Columns of a group.
        high: Largest code.
        scales: ``(R, G)``.
        zeros: ``(R, G)``.
        codes: ``(R, K)``, written.
    """
    rows, columns = weights.shape
    for row in range(rows):
        for group in range(scales.shape[1]):
            scale, zero = scales[row, group], float(zeros[row, group])
            for column in range(group * size, min(columns, (group + 1) * size)):
                code = np.rint(weights[row, column] / scale) + zero
                codes[row, column] = np.uint8(min(max(code, 0.0), float(high)))


@njit(cache=True, nogil=True)
def _range(values: Floats) -> tuple[float, float]:
    """Return the lowest and highest value and 0; NaN if there is one."""
    low, top = 0.0, 0.0
    for value in values:
        if math.isnan(value):
            return value, value
        low, top = min(low, value), max(top, value)
    return low, top


@njit(cache=True, nogil=True)
def _representable(value: float, digits: int, least: float) -> float:
    """Round to a floating type with so many binary digits, whose least number is ``least``."""
    _, exponent = math.frexp(value)
    unit = max(math.ldexp(1.0, exponent - digits), least)
    rounded = np.rint(value / unit) * unit
    return rounded if abs(rounded) >= least else math.copysign(least, value)


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _error(values: Floats, importance: Floats, scale: float, zero: int, high: int) -> float:
    inverse, low, top = 1.0 / scale, -float(zero), float(high - zero)
    total = 0.0
    for index in range(len(values)):
        code = min(max(np.rint(values[index] * inverse), low), top)
        off = values[index] - scale * code
        total += importance[index] * off * off
    return total


@njit(cache=True, nogil=True)
def round_columns(
    work: Floats,
    factor: Floats,
    scales: Floats,
    zeros: Floats,
    group: npt.NDArray[np.int64],
    high: int,
    codes: Codes,
) -> None:
    """Round one column after another, each error taken up by the later ones (GPTQ, algorithm 1).

    Rows do not depend on each other: some are worked on side by side, a vector of the processor.

    Args:
        work: ``(R, B)`` weights; ``(weight - rounded) / factor[c, c]`` is left in place.
        factor: ``(B, B)``, upper triangular.
        scales: ``(R, G)``.
        zeros: ``(R, G)``.
        group: ``(B,)``, the group of each column.
        high: Largest code.
        codes: ``(R, B)``, written.
    """
    rows, columns = work.shape
    left, taken = np.zeros((columns, TILE)), np.empty((columns, TILE), np.uint8)
    errors = np.zeros(TILE)
    for start in range(0, rows, TILE):
        count = min(TILE, rows - start)
        for row in range(count):
            for column in range(columns):
                left[column, row] = work[start + row, column]
        for column in range(columns):
            place, pivot = group[column], factor[column, column]
            for row in range(count):
                scale, zero = scales[start + row, place], zeros[start + row, place]
                code = min(max(np.rint(left[column, row] / scale) + zero, 0.0), float(high))
                errors[row] = (left[column, row] - (code - zero) * scale) / pivot
                taken[column, row] = np.uint8(code)
            left[column] = errors
            for later in range(column + 1, columns):
                share = factor[column, later]
                for row in range(TILE):
                    left[later, row] -= errors[row] * share
        for row in range(count):
            for column in range(columns):
                work[start + row, column] = left[column, row]
                codes[start + row, column] = taken[column, row]


@njit(cache=True, nogil=True)
def descend(
    errors: Floats, pull: Floats, steps: Floats, hessian: Floats, search: Descent, codes: Codes
) -> None:
    """Move one code after another to where its row's error is least, the others as they are.

    Args:
        errors: ``(R, K)``, weights minus what their codes stand for; changed.
        pull: ``(R, K)``, errors times the Hessian; changed.
        steps: ``(R, K)``, what one code more adds to the weight.
        hessian: ``(K, K)``, without its damping.
        search: Its damping, and the bounds.
        codes: ``(R, K)``, changed.
    """
    damping, top = search.damping, float(search.high)
    for row in range(len(codes)):
        for _ in range(search.sweeps):
            moved = False
            for column in range(codes.shape[1]):
                curve, old = hessian[column, column] + damping, float(codes[row, column])
                if curve == 0.0:
                    continue
                force = pull[row, column] + damping * errors[row, column]
                by = np.rint(force / (curve * steps[row, column]))
                new = min(max(old + by, 0.0), top)
                if new != old:
                    change = (new - old) * steps[row, column]
                    pull[row] -= change * hessian[column]
                    errors[row, column] -= change
                    codes[row, column], moved = np.uint8(new), True
            if not moved:
                break
