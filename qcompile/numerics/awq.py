"""AWQ: weights that meet large activations get finer steps (Lin et al. 2023, arXiv:2306.00978).

A layer ``y = x W^T`` equals ``y = (x / s) (W s)^T`` for any positive scale s of its input columns.
Rounding ``W s`` makes the error of column k smaller by ``s_k``; the group's step grows with the
largest scaled weight. Section 3.2 searches ``s = m^a``, m the mean magnitude of the columns of x;
the authors' program ``s = m^a / v^(1-a)``, v the mean magnitude of the columns of W, each weight as
a share of its group's largest. Both are tried here. Section 3.2's clipping then narrows each
group's range where that lowers the error at the output: here under the Hessian, and with the
errors of the groups before it, which it may cancel.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from qcompile.numerics.groups import (
    Codes,
    Floats,
    SolvedWeight,
    WeightFormat,
    group_parameters,
)
from qcompile.numerics.hessian import Wide, output_error

STEPS = 5
"""Exponents of each kind of scale that are tried, evenly spaced from 0 to below 1."""

CHANNELS = 256
"""Output channels of each weight on which scales are compared, evenly spaced."""

NARROWER = 0.96 ** np.arange(24)
"""Ranges that clipping tries, as shares of the whole; the narrowest is 0.39."""

_AT_ONCE = 1 << 16
"""Weights that are rounded to all ranges together: 75 MB."""

_SPAN = 1e4
"""Scales stay within this factor of their middle."""


Narrow = npt.NDArray[np.float32]

Rounding = Callable[[Floats, npt.NDArray[np.float32]], SolvedWeight]
"""Rounds a weight ``(R, K)`` times a scale ``(K,)``; its result says so in ``input_scale``."""


def input_scale(
    weights: Sequence[Floats],
    hessian: Wide,
    magnitude: Floats,
    group_size: int,
    rounding: Rounding,
) -> npt.NDArray[np.float32] | None:
    """Search the scale of the input columns that layers with the same input share.

    Args:
        weights: One ``(R, K)`` for each layer.
        hessian: ``(K, K)``, ``X^T X`` of the layers' inputs up to a factor.
        magnitude: ``(K,)``, mean magnitude of each input column over all samples.
        group_size: Of the format.
        rounding: How the weights will be rounded.

    Returns:
        float32 ``(K,)``, or None where no scale lowers the error.
    """
    # of all rows: what only those that are compared have in common would fit just them
    share = sum((_shares(weight, group_size) for weight in weights), np.zeros(len(magnitude)))
    errors = _errors_of(weights, hessian, rounding)
    found, least = None, errors(None).sum()
    for scale in _scales(magnitude, share):
        error = errors(scale).sum()
        if error < least:
            least, found = error, scale
    return found


def harmless_scale(
    weights: Sequence[Floats], hessian: Wide, magnitude: Floats, rounding: Rounding
) -> npt.NDArray[np.float32] | None:
    """Search the scale of the input columns with which no layer is worse off than without.

    Only section 3.2's scales, which depend on inputs alone: those that look at weights follow the
    output channels of the largest ones. The sum of all layers' errors decides between scales.

    Args:
        weights: As for ``input_scale``.
        hessian: As for ``input_scale``.
        magnitude: As for ``input_scale``.
        rounding: How the weights will be rounded.

    Returns:
        float32 ``(K,)``, or None where each scale raises the error of some layer.
    """
    errors = _errors_of(weights, hessian, rounding)
    plain = errors(None)
    found, least, loud = None, plain.sum(), _alive(magnitude)
    for step in range(1, STEPS):
        scale = _centred(loud ** (step / STEPS))
        error = errors(scale)
        if (error <= plain).all() and error.sum() < least:
            found, least = scale, error.sum()
    return found


def round_clipped(
    weights: Floats,
    hessian: Wide,
    scale: npt.NDArray[np.float32],
    format: WeightFormat,  # noqa: A002 - the word of SolvedWeight
) -> SolvedWeight:
    """Round to the nearest codes, each group's range narrowed to the least output error.

    Groups are taken one after another. With e the errors of a group and E those of the groups
    before it, the range is the one with the least ``e H_ee e^T + 2 E H_Ee e^T``.

    Args:
        weights: ``(R, K)``.
        hessian: ``(K, K)``, ``X^T X`` of the layer's inputs up to a factor.
        scale: ``(K,)``, what inputs are divided by; codes stand for ``weights * scale``.
        format: The format.
    """
    scaled = np.multiply(weights, scale, dtype=np.float64)
    scales, zeros = group_parameters(scaled, format)
    codes, moved = np.empty(scaled.shape, np.uint8), np.zeros(scaled.shape, np.float32)
    size = format.group_size or scaled.shape[1]
    at_once = max(1, _AT_ONCE // size)
    for group in range(scales.shape[1]):
        part, before = slice(group * size, (group + 1) * size), slice(0, group * size)
        block = (hessian[part, part] / scale[part] / scale[part, None]).astype(np.float32)
        pull = 2 * moved[:, before] @ hessian[before, part].astype(np.float32) / scale[part]
        one = slice(group, group + 1)
        for start in range(0, len(scaled), at_once):
            rows = slice(start, start + at_once)
            grids = scales[rows, one], zeros[rows, one]
            found = _clip(scaled[rows, part], block, pull[rows], grids, format)
            scales[rows, one], codes[rows, part], errors = found
            moved[rows, part] = errors / scale[part]
    return SolvedWeight(format, codes, scales, zeros, input_scale=scale)


def _errors_of(
    weights: Sequence[Floats], hessian: Wide, rounding: Rounding
) -> Callable[[npt.NDArray[np.float32] | None], Wide]:
    """Return what gives, for a scale, each layer's error on the channels that are compared."""
    parts = [_spread(weight).astype(np.float64) for weight in weights]

    def errors(scale: npt.NDArray[np.float32] | None) -> Wide:
        basis = np.ones(len(hessian), np.float32) if scale is None else scale
        moved = (part - rounding(part, basis).values() for part in parts)
        return np.array([output_error(difference, hessian) for difference in moved])

    return errors


def _clip(
    weights: Floats,
    block: Narrow,
    pull: Narrow,
    grids: tuple[Floats, Codes],
    format: WeightFormat,  # noqa: A002
) -> tuple[Floats, Codes, Narrow]:
    """Return one group's scales ``(R, 1)``, codes and errors of the least cost."""
    steps = _steps(grids[0], format)
    wide, zeros = steps.astype(np.float64), grids[1].astype(np.float64)
    levels = np.clip(np.rint(weights / wide), -zeros, format.high - zeros)
    moved = (weights - wide * levels).astype(np.float32)
    flat = moved.reshape(-1, len(block))  # one product: many small ones wait for their threads
    costs = np.einsum("srk,srk->sr", (flat @ block).reshape(moved.shape) + pull, moved)
    best, row = costs.argmin(axis=0), np.arange(len(weights))
    return steps[best, row], (levels[best, row] + zeros).astype(np.uint8), moved[best, row]


def _steps(whole: Floats, format: WeightFormat) -> Floats:  # noqa: A002
    """Return the scales ``(S, R, 1)`` to try: narrower ones, of either sign where they may be.

    Symmetric grids have one code more below than above 0; the other sign puts it above.
    """
    shares = NARROWER
    if format.symmetric and format.signed:
        shares = np.outer([1.0, -format.middle / (format.middle - 1)], NARROWER).ravel()
    with np.errstate(over="ignore"):
        steps = (whole * shares[:, None, None]).astype(format.scale_type)
    return np.where((steps == 0) | ~np.isfinite(steps), whole, steps)


def _scales(magnitude: Floats, share: Floats) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the scales to try, ``m^a`` and ``m^a / v^(1-a)``."""
    loud, large = _alive(magnitude), _alive(share)
    for step in range(STEPS):
        exponent = step / STEPS
        if step:
            yield _centred(loud**exponent)
        yield _centred(loud**exponent / large ** (1 - exponent))


def _shares(weight: Floats, group_size: int) -> Floats:
    """Return the sum over rows of magnitudes, each as a share of its group's largest."""
    shares = np.abs(weight, dtype=np.float32)
    size = group_size or weight.shape[1]
    for start in range(0, weight.shape[1], size):
        part = shares[:, start : start + size]
        part /= np.maximum(part.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    total: Floats = shares.sum(axis=0, dtype=np.float64)
    return total


def _alive(values: Floats) -> Floats:
    """Return values of which those that are 0 count as the least of the others."""
    alive = values[values > 0]
    return np.maximum(values, alive.min() if alive.size else 1.0)


def _centred(scale: Floats) -> npt.NDArray[np.float32]:
    """Return a scale whose extremes lie around 1 and within bounds."""
    scale = scale / np.sqrt(scale.max() * scale.min())
    clipped: npt.NDArray[np.float32] = np.clip(scale, 1 / _SPAN, _SPAN).astype(np.float32)
    return clipped


def _spread(weight: Floats) -> Floats:
    """Return at most ``CHANNELS`` rows, evenly spaced."""
    step = max(1, len(weight) // CHANNELS)
    return weight[::step][:CHANNELS]
