"""The squared error at a layer's output, and its Hessian: the sum over the inputs of ``x^T x``."""

import numpy as np
import numpy.typing as npt

from qcompile.numerics.groups import Floats

Wide = npt.NDArray[np.float64]

ROWS = 2048
"""Inputs that go into one product: float32 sums of so many lose nothing that matters."""

STRIP = 1024
"""Rows of a Hessian that are added to together."""


class HessianSum:
    """A running ``X^T X``: products in float32, sums in float64.

    GPTQ's Hessian is ``2 X^T X`` (arXiv:2210.17323, section 2); its solution, damping included,
    does not depend on the factor. Memory: one matrix ``(K, K)`` and a strip of it.

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
