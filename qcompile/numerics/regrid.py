"""Grids that a model was given elsewhere, and the same grids in codes of another type."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcompile.numerics.grids import CODE_RANGE

Floats = npt.NDArray[np.floating]

RANGES: Mapping[str, tuple[int, int]] = CODE_RANGE | {
    "int2": (-2, 1),
    "uint2": (0, 3),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "float8e4m3fnuz": (-240, 240),
    "float8e5m2": (-57344, 57344),
    "float8e5m2fnuz": (-57344, 57344),
    "float4e2m1": (-6, 6),
}
"""Lowest and highest code of every type that QuantizeLinear and DequantizeLinear know."""


@dataclass(frozen=True)
class Grid:
    """A grid as QuantizeLinear and DequantizeLinear state it.

    Attributes:
        type: Of the codes, as in ``RANGES``.
        scale: float32, rank 0, ``(C,)`` along ``axis``, or of the tensor's rank with blocks.
        zero_point: int64, shaped like ``scale``; 0 for types of floats.
        axis: None where one scale serves the whole tensor.
        block: Elements along ``axis`` that share a scale; 0: a scale a channel.
    """

    type: str
    scale: Floats
    zero_point: npt.NDArray[np.int64]
    axis: int | None = None
    block: int = 0

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest real value, over all channels."""
        low, high = RANGES[self.type]
        scale = self.scale.astype(np.float64)
        return (
            float((scale * (low - self.zero_point)).min(initial=0.0)),
            float((scale * (high - self.zero_point)).max(initial=0.0)),
        )

    def spread(self, shape: tuple[int, ...]) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Return scale and zero point in a form that broadcasts against codes of a shape."""
        if self.axis is None:
            return self.scale.reshape(()), self.zero_point.reshape(())
        if self.block:
            axis, size = self.axis, shape[self.axis]
            group = np.arange(size) // self.block
            return np.take(self.scale, group, axis), np.take(self.zero_point, group, axis)
        line = [-1 if i == self.axis else 1 for i in range(len(shape))]
        return self.scale.reshape(line), self.zero_point.reshape(line)

    def values(self, codes: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Return ``scale * (codes - zero_point)``, rounded once to float32."""
        scale, zero = self.spread(codes.shape)
        wide = codes.astype(np.float64)
        return ((wide - zero) * scale.astype(np.float64)).astype(np.float32)

    def codes(self, values: Floats) -> npt.NDArray[np.float64]:
        """Return the nearest codes of an integer type, as whole numbers in float64."""
        scale, zero = self.spread(values.shape)
        codes = np.rint(values.astype(np.float64) / scale) + zero
        clipped: npt.NDArray[np.float64] = np.clip(codes, *RANGES[self.type])
        return clipped

    def same(self, other: "Grid") -> bool:
        """Say whether both have the same real values for the same codes."""
        return (
            (self.type, self.axis, self.block) == (other.type, other.axis, other.block)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


@dataclass(frozen=True)
class Given:
    """The grids of a model that was quantized elsewhere.

    Attributes:
        activations: Value to the grid that it was rounded to.
        weights: Constant to the grid that its codes lie on.
        moved: Of the activations, those that were only found to lie on a grid: moved from a value
            that was rounded.
    """

    activations: dict[str, Grid] = field(default_factory=dict)
    weights: dict[str, Grid] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Say whether there is any."""
        return bool(self.activations or self.weights)


def shifted(grid: Grid, type: str) -> tuple[float, int] | None:  # noqa: A002 - as in Grid
    """Return scale and zero point of the very same values in codes of another type.

    int8 and uint8 differ by 128 only: ``s * (c - z) = s * ((c + 128) - (z + 128))``.

    Args:
        grid: Any.
        type: As in ``RANGES``.

    Returns:
        None where no grid of that type has just these values.
    """
    if grid.scale.size != 1:
        return None
    low, high = RANGES[grid.type]
    other_low, other_high = RANGES[type]
    if grid.type != type and ("float" in grid.type + type or high - low != other_high - other_low):
        return None
    return float(grid.scale.reshape(())), int(grid.zero_point.reshape(())) - low + other_low


def refined(grid: Grid, type: str, *, symmetric: bool) -> tuple[float, int, int] | None:  # noqa: A002
    """Return a finer grid in a wider type, among whose values are all those of a grid of few bits.

    Args:
        grid: Of integer codes.
        type: An integer type, as in ``RANGES``.
        symmetric: Its zero point has to be 0.

    Returns:
        Scale, zero point, and how many new steps make an old one; None where the type is not at
        least twice as wide.
    """
    if grid.scale.size != 1 or "float" in grid.type + type:
        return None
    (low, high), (new_low, new_high) = RANGES[grid.type], RANGES[type]
    zero = int(grid.zero_point.reshape(()))
    if symmetric:
        steps, new_zero = min(new_high // max(high - zero, 1), -new_low // max(zero - low, 1)), 0
    else:
        steps = (new_high - new_low) // (high - low)
        new_zero = new_low + steps * (zero - low)
    return (float(grid.scale.reshape(())) / steps, new_zero, steps) if steps > 1 else None


def moved_axis(grid: Grid, axis: int) -> Grid:
    """Return the grid of a tensor whose channels were moved to another axis."""
    return Grid(grid.type, grid.scale, grid.zero_point, axis, grid.block)
