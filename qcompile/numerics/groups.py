"""Weights whose codes share a scale in groups along the reduction axis.

A weight is seen as rows ``(R, K)``: a row for each output channel, a column for each element that
the product sums over. Codes are unsigned, ``weight = scale * (code - zero point)``; each group of
``group_size`` columns of a row has a scale and a zero point, and the last group may be shorter.

Rounding to the nearest code (RTN) is the plain way to codes. Its scales come from the extremes of
the group or, with ``search``, from the least squared error over a row of narrower grids. On a
symmetric grid scales are signed: there is one more code below the zero point than above it, and
the value of largest magnitude may use it whichever its sign.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcompile.errors import ModelError, PlanError, RecipeError
from qcompile.numerics.threads import available, for_each

Floats = npt.NDArray[np.floating]
Codes = npt.NDArray[np.uint8]

BITS = (2, 3, 4, 8)
SCALE_TYPES = ("float32", "float16")

_AT_ONCE = 1 << 18
"""Weights that one thread widens to float64 together: 2 MB."""

_NARROWER = 0.96 ** np.arange(40)
"""Widths of the grids that the search tries, as shares of the whole range; the last is a fifth."""


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored as codes.

    Attributes:
        bits: 2, 3, 4 or 8.
        group_size: Columns that share a scale; 0: the whole row.
        symmetric: The zero point is ``middle`` everywhere.
        scale_type: ``float32`` or ``float16``; scales are rounded to it before weights are.
        signed: Scales of symmetric grids may be negative; those of others never are. It says how
            scales are found: formats that differ in it alone store the same things.

    Raises:
        RecipeError: For a format that does not exist.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    scale_type: str = "float32"
    signed: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise RecipeError(f"weights of {self.bits} bits: there are 2, 3, 4 and 8")
        if self.group_size < 0:
            raise RecipeError(f"group size {self.group_size}: give 16 to 256, or 0 for no groups")
        if self.scale_type not in SCALE_TYPES:
            raise RecipeError(f"scales of type {self.scale_type}: use float32 or float16")

    @property
    def high(self) -> int:
        """The largest code; the lowest is 0."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric grids."""
        return 1 << (self.bits - 1)

    def groups(self, columns: int) -> int:
        """Return the number of groups in a row."""
        return -(-columns // self.group_size) if self.group_size else 1

    def width(self, columns: int) -> int:
        """Return the columns of the widest group in a row."""
        return min(self.group_size or columns, columns)

    def group_of(self, columns: int) -> npt.NDArray[np.int64]:
        """Return the group of each column, ``(K,)``."""
        return np.arange(columns) // (self.group_size or columns)


@dataclass(frozen=True)
class SolvedWeight:
    """A weight as codes. The engine computes ``y = ((x / input_scale)[..., order]) @ stored.T``.

    Attributes:
        format: The format.
        codes: uint8 ``(R, K)``, columns in stored order.
        scales: ``(R, G)`` of the format's scale type, never 0.
        zeros: uint8 ``(R, G)``, zero points.
        order: int64 ``(K,)``: stored column j is column ``order[j]`` of the weight; None: as it is.
        input_scale: float32 ``(K,)``: what is stored approximates ``weight * input_scale``
            (AWQ, arXiv:2306.00978); None: the weight itself.
    """

    format: WeightFormat
    codes: Codes
    scales: Floats
    zeros: Codes
    order: npt.NDArray[np.int64] | None = None
    input_scale: npt.NDArray[np.float32] | None = None

    def stored(self) -> npt.NDArray[np.float32]:
        """Return what the codes stand for, ``(R, K)`` in stored order: computed in float32."""
        group = self.format.group_of(self.codes.shape[1])
        values = self.codes.astype(np.float32)
        values -= self.zeros[:, group]
        values *= self.scales[:, group]
        return values

    def values(self) -> npt.NDArray[np.float32]:
        """Return what the engine computes with, ``(R, K)``, in the weight's order and basis."""
        values = self.stored()
        if self.order is not None:
            restored = np.empty_like(values)
            restored[:, self.order] = values
            values = restored
        if self.input_scale is not None:
            values /= self.input_scale
        return values


def round_nearest(
    weights: Floats,
    format: WeightFormat,  # noqa: A002 - the word of SolvedWeight
    *,
    search: bool = False,
    importance: Floats | None = None,
) -> SolvedWeight:
    """Round each weight to the nearest code of its group's grid.

    Args:
        weights: ``(R, K)``, any floating type.
        format: The format.
        search: As for ``group_parameters``.
        importance: As for ``group_parameters``.

    Raises:
        ModelError: For weights that are not finite.
        PlanError: For scales that the scale type cannot hold.
    """
    scales, zeros = group_parameters(weights, format, search=search, importance=importance)
    return SolvedWeight(format, round_to(weights, format, scales, zeros), scales, zeros)


def group_parameters(
    weights: Floats,
    format: WeightFormat,  # noqa: A002
    *,
    search: bool = False,
    importance: Floats | None = None,
) -> tuple[Floats, Codes]:
    """Return scales and zero points ``(R, G)`` for rounding to the nearest code.

    Symmetric: the value of largest magnitude falls on code 0, or on the highest where it is
    positive and scales must be, too. Asymmetric: the range, widened to hold 0, falls on all codes.
    ``search`` takes for each group the grid with the least squared error among these and narrower
    ones, and for symmetric formats among those that have the value of largest magnitude at the
    upper end. A group of zeros gets the scale 1.

    Args:
        weights: ``(R, K)``, any floating type.
        format: The format.
        search: Look for the grid with the least error.
        importance: ``(K,)``, weight of each column's squared error in the search: the mean square
            of the layer's inputs makes it the error at the output if inputs are independent.

    Raises:
        ModelError: For weights that are not finite.
        PlanError: For scales that the scale type cannot hold.
    """
    from qcompile.numerics.kernels import Search, find_grids

    rows, columns = weights.shape
    kind = np.finfo(np.dtype(format.scale_type))
    scales = np.ones((rows, format.groups(columns)), format.scale_type)
    zeros = np.full(scales.shape, format.middle, np.uint8)
    if not weights.size:
        return scales, zeros
    weight = np.ones(columns) if importance is None else np.ascontiguousarray(importance, float)
    search_of = Search(
        format.group_size or columns,
        format.high,
        format.symmetric,
        not format.signed,
        kind.nmant + 1,
        float(kind.smallest_subnormal),
    )

    def part_of(part: slice) -> None:
        found, zeros[part] = find_grids(
            _wide(weights[part]), weight, _steps(format, search=search), search_of
        )
        if not np.isfinite(found).all():
            raise ModelError("the weights hold NaN or infinity: they cannot be quantized")
        if np.abs(found).max() > kind.max:
            raise PlanError(
                f"a scale of {np.abs(found).max():.3g} does not fit {format.scale_type}: "
                "use scales of type float32"
            )
        scales[part] = found

    for_each(_parts(weights), part_of, available())
    return scales, zeros


def round_to(
    weights: Floats,
    format: WeightFormat,  # noqa: A002
    scales: Floats,
    zeros: Codes,
) -> Codes:
    """Return the nearest codes ``(R, K)`` on given grids: ``rint(w / scale) + zero``, clipped.

    Args:
        weights: ``(R, K)``, any floating type.
        format: The format.
        scales: ``(R, G)``.
        zeros: ``(R, G)``.
    """
    from qcompile.numerics.kernels import round_groups

    codes = np.empty(weights.shape, np.uint8)
    size = format.group_size or weights.shape[1]

    def part_of(part: slice) -> None:
        wide = scales[part].astype(np.float64)
        round_groups(_wide(weights[part]), size, format.high, wide, zeros[part], codes[part])

    for_each(_parts(weights), part_of, available())
    return codes


def _steps(format: WeightFormat, *, search: bool) -> npt.NDArray[np.float64]:  # noqa: A002
    """Return the scales to try, in units of the extreme value or, asymmetric, of the range."""
    narrower = _NARROWER if search else np.ones(1)
    if not format.symmetric:
        return narrower / format.high
    below = -narrower / format.middle
    both = search or not format.signed
    return np.concatenate([below, narrower / (format.middle - 1)]) if both else below


def _parts(weights: Floats) -> Iterator[slice]:
    """Yield rows that are worked on together."""
    rows = max(1, _AT_ONCE // max(1, weights.shape[1]))
    for start in range(0, len(weights), rows):
        yield slice(start, start + rows)


def _wide(weights: Floats) -> npt.NDArray[np.float64]:
    return np.ascontiguousarray(weights, np.float64)
