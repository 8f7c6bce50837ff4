"""AWQ: weights that meet large activations get finer steps (Lin et al. 2023, arXiv:2306.00978).

A layer ``y = x W^T`` equals ``y = (x / s) (W s)^T`` for any positive scale s of its input columns.
Rounding ``W s`` makes the error of column k smaller by ``s_k``; the group's step grows with the
largest scaled weight. Section 3.2 searches ``s = m^alpha``, m the mean magnitude of the columns of
x. Section 3.2's clipping then narrows each group's range where that lowers the error at the
output; here the error is taken over the group's own columns, from their block of the Hessian.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from qcompile.numerics.gptq import output_error_on
from qcompile.numerics.groups import (
    Codes,
    Floats,
    SolvedWeight,
    WeightFormat,
    group_parameters,
    round_to,
)

STEPS = 20
"""Exponents that are tried, evenly spaced between 0 and 1."""

CHANNELS = 512
"""Output channels of each weight on which exponents are compared, evenly spaced."""

NARROWER = 0.96 ** np.arange(24)
"""Ranges that clipping tries, as shares of the whole; the narrowest is 0.39."""

_SPAN = 1e4
"""Scales stay within this factor of their middle."""


Rounding = Callable[[Floats, npt.NDArray[np.float32]], SolvedWeight]
"""Rounds a scaled weight ``(R, K)``; its second argument is the scale ``(K,)``."""


def input_scale(
    weights: Sequence[Floats],
    rows: Floats,
    magnitude: Floats,
    rounding: Rounding,
    steps: int = STEPS,
) -> npt.NDArray[np.float32] | None:
    """Search the scale of the input columns that layers with the same input share.

    Args:
        weights: One ``(R, K)`` for each layer.
        rows: ``(n, K)``, inputs of the layers.
        magnitude: ``(K,)``, mean magnitude of each input column over all samples.
        rounding: How the scaled weights will be rounded: to the nearest codes, or by GPTQ.
        steps: Exponents that are tried, evenly spaced between 0 and 1.

    Returns:
        float32 ``(K,)``, or None where no scale lowers the error on ``rows``.
    """
    parts = [_spread(weight).astype(np.float64) for weight in weights]
    found, least = None, np.inf
    for step in range(steps):
        scale = _scale(magnitude, step / steps)
        moved = (rounding(part * scale, scale).stored() / scale - part for part in parts)
        error = sum(output_error_on(difference, rows) for difference in moved)
        if error < least:
            least, found = error, scale if step else None
    return found


def clipped_parameters(
    weights: Floats,
    hessian: Floats,
    scale: Floats,
    format: WeightFormat,  # noqa: A002 - the word of SolvedWeight
) -> tuple[Floats, Codes]:
    """Return scales and zero points ``(R, G)``, each range narrowed to the least output error.

    Args:
        weights: ``(R, K)``, scaled.
        hessian: ``(K, K)``, ``X^T X`` of the layer's inputs up to a factor. Only the blocks of the
            groups on its diagonal are read.
        scale: ``(K,)``, what inputs are divided by.
        format: The format.
    """
    columns = weights.shape[1]
    scales, zeros = group_parameters(weights, format)
    size = format.group_size or columns
    for group in range(scales.shape[1]):
        part = slice(group * size, min((group + 1) * size, columns))
        values = np.ascontiguousarray(weights[:, part], np.float64)
        block = hessian[part, part] / scale[part] / scale[part, None]
        alone = WeightFormat(format.bits, 0, format.symmetric, format.scale_type)
        zero = zeros[:, [group]]
        best = np.full(len(values), np.inf)
        for step in _steps(scales[:, [group]], format):
            codes = round_to(values, alone, step, zero)
            moved = values - step.astype(np.float64) * (codes.astype(np.float64) - zero)
            error = np.einsum("rk,rk->r", moved @ block, moved)
            better = error < best
            best[better] = error[better]
            scales[better, group] = step[better, 0]
    return scales, zeros


def _steps(whole: Floats, format: WeightFormat) -> Iterator[Floats]:  # noqa: A002
    """Yield the scales ``(R, 1)`` to try: narrower ones, on symmetric grids of either sign.

    Symmetric grids have one code more below than above 0; the other sign puts it above.
    """
    ends = [1.0]
    if format.symmetric:
        ends.append(-format.middle / (format.middle - 1))
    for end in ends:
        for share in NARROWER:
            step = (whole * (end * share)).astype(format.scale_type)
            yield np.where(step == 0, whole, step)


def _scale(magnitude: Floats, exponent: float) -> npt.NDArray[np.float32]:
    """Return ``magnitude ** exponent``, its extremes around 1; dead columns count as the least."""
    alive = magnitude[magnitude > 0]
    if not alive.size:
        return np.ones(len(magnitude), np.float32)
    scale = np.maximum(magnitude, alive.min()) ** exponent
    scale = scale / np.sqrt(scale.max() * scale.min())
    clipped: npt.NDArray[np.float32] = np.clip(scale, 1 / _SPAN, _SPAN).astype(np.float32)
    return clipped


def _spread(weight: Floats) -> Floats:
    """Return at most ``CHANNELS`` rows, evenly spaced."""
    step = max(1, len(weight) // CHANNELS)
    return weight[::step][:CHANNELS]
