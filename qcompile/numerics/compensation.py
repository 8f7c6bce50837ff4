"""Weights that make up for what their inputs lost: asymmetric calibration.

Layers before this one are in codes already, so it reads X where the float model's reads X'. GPTAQ
(Li et al. 2025, arXiv:2504.02692) rounds so that ``X W'^T`` comes near ``X' W^T``, not ``X W^T``.
The square of that distance is, but for a constant, that of ``X (W' - V)^T`` with V the solution of
least squares without rounding. So V is found first, and any algorithm rounds it in W's place:

    V^T = W^T + (H + damping)^-1 X^T (X' - X) W^T,    H = X^T X

Departure: the damping is a share of each column's own power, and large. V is then moved along what
many columns have in common, which samples tell well, and hardly elsewhere.
"""

import numpy as np

from qcompile.errors import DataError
from qcompile.numerics.devices import Device, best_device
from qcompile.numerics.gptq import invert
from qcompile.numerics.groups import Floats
from qcompile.numerics.hessian import ROWS, Wide

DAMPING = 1.0
"""Added to the diagonal, as a share of it. From 0.1 to 1 textlm5m (6,000 rows) cannot tell; with
400 rows, on stories260k, a third is too little and 3 as good."""


class LostSum:
    """A running ``X^T (X' - X)``: products in float32, sums in float64. Memory: ``(K, K)``."""

    def __init__(self, columns: int) -> None:
        self.matrix: Wide = np.zeros((columns, columns))

    def add(self, rows: Floats, exact: Floats) -> None:
        """Add inputs ``(n, K)`` and what the float model has in their place."""
        for start in range(0, len(rows), ROWS):
            part = np.asarray(rows[start : start + ROWS], np.float32)
            lost = np.asarray(exact[start : start + ROWS], np.float32) - part
            with np.errstate(over="ignore", invalid="ignore"):
                self.matrix += part.T @ lost


class Compensation:
    """Solves for the weights of layers that read the same inputs."""

    def __init__(self, hessian: Wide, lost: Wide, device: Device | None = None) -> None:
        """Invert the Hessian; it is left as it is.

        Args:
            hessian: ``(K, K)``, ``X^T X``.
            lost: ``(K, K)``, ``X^T (X' - X)``.
            device: Where to compute; by default on the GPU that torch sees, else on the processor.

        Raises:
            DataError: One is not finite, or the first is not positive semidefinite.
        """
        if not (np.isfinite(hessian).all() and np.isfinite(lost).all()):
            raise DataError("the layer's inputs hold NaN or infinity, or overflow: see the samples")
        power = np.diag(hessian)
        self._lost, self._device = lost, device or best_device()
        self._unit = np.where(power > 0, power, 1.0) ** -0.5
        scaled = hessian * self._unit
        scaled *= self._unit[:, None]
        scaled.ravel()[:: len(power) + 1] += DAMPING
        self._upper = self._device.load(scaled)
        if not invert(self._upper, self._device):
            raise DataError("the layer's Hessian is not positive semidefinite: it is not X^T X")

    def of(self, weight: Floats) -> Floats:
        """Return V of a weight W, both ``(R, K)``, float32."""
        exact = np.asarray(weight, np.float32)
        pull = self._device.load((exact @ self._lost.T) * self._unit)
        moved = self._device.host((pull @ self._upper.T) @ self._upper) * self._unit
        return exact + moved.astype(np.float32)
