"""Affine grids: scale and zero point of a range, rounding to codes and back.

``real = scale * (code - zero_point)``, codes rounded half to even, as ONNX QuantizeLinear defines.
"""

import ml_dtypes
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Codes = npt.NDArray[np.generic]

CODE_RANGE: dict[str, tuple[int, int]] = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "int32": (-(2**31), 2**31 - 1),
    "float8e4m3fn": (-448, 448),
}
"""Lowest and highest code of each type."""

TINY = float(np.finfo(np.float32).tiny) * 2**24
"""Smallest scale that is used: products of two scales stay normal float32 numbers."""


def affine_grid(low: float, high: float, code_low: int, code_high: int) -> tuple[float, int]:
    """Return scale and zero point of the asymmetric grid that covers a range.

    The range is widened to hold 0.0, which becomes a code exactly; a range that begins or ends at
    0.0 gets the outermost code as its zero point, so that a Relu vanishes into the rounding.

    Args:
        low: Lowest real value.
        high: Highest real value.
        code_low: Lowest code.
        code_high: Highest code.

    Returns:
        The scale (a float32 number) and the zero point.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (code_high - code_low)
    if scale < TINY:
        return 1.0, code_low if low == 0.0 else code_high
    scale = float(np.float32(scale))
    zero_point = round(code_low - low / scale)
    return scale, min(max(zero_point, code_low), code_high)


def symmetric_grid(low: float, high: float, code_high: int) -> tuple[float, int]:
    """Return scale and zero point of the symmetric grid that covers a range: the zero point is 0.

    Args:
        low: Lowest real value.
        high: Highest real value.
        code_high: Highest code; the lowest is its negative.
    """
    scale = max(-low, high) / code_high
    return (float(np.float32(scale)), 0) if scale >= TINY else (1.0, 0)


def symmetric_scales(weight: Floats, axis: int | None, code_high: int) -> Floats:
    """Return the step of the symmetric grid that just covers each channel.

    Args:
        weight: Any shape.
        axis: Channel axis, or None for one scale.
        code_high: Largest code; the lowest two's-complement code stays unused.

    Returns:
        float32 ``(C,)``, or ``(1,)`` without an axis. A channel of zeros takes the largest step of
        the others, for its bias is rounded to a multiple of it; 1 where there is nothing but zeros.
    """
    if axis is None:
        largest = np.asarray([np.abs(weight).max(initial=0.0)])
    else:
        others = tuple(i for i in range(weight.ndim) if i != axis)
        largest = np.abs(weight).max(axis=others, initial=0.0)
    scale = (largest / code_high).astype(np.float32)
    most = scale.max(initial=0.0)
    return np.where(scale < TINY, most if most >= TINY else np.float32(1.0), scale)


def quantize(
    values: Floats, scale: Floats, zero_point: Codes, axis: int | None, dtype: str
) -> Codes:
    """Round to codes, half to even, saturating.

    Args:
        values: Any shape.
        scale: ``(C,)`` along ``axis``, or one number.
        zero_point: Shaped like ``scale``.
        axis: Channel axis of ``values``, or None.
        dtype: Type of the codes, as in ``CODE_RANGE``.
    """
    kind = code_dtype(dtype)
    step, zero = _spread(scale, values.ndim, axis), _spread(zero_point, values.ndim, axis)
    codes = values.astype(np.float64) / step
    if kind.kind in "iu":
        codes = np.rint(codes) + zero
    return np.clip(codes, *CODE_RANGE[dtype]).astype(kind)


def code_dtype(name: str) -> np.dtype[np.generic]:
    """Return the numpy type of codes, by ONNX's name of it in lower case."""
    return np.dtype(ml_dtypes.float8_e4m3fn if name == "float8e4m3fn" else name)


def rounded_scales(scales: Floats, dtype: str) -> Floats:
    """Return positive scales rounded to the numbers of a type, as float32; none becomes 0.

    A scale below the type's least one that still has 8 digits takes that one. A scale beyond its
    largest number stays as it is: what it belongs to has to stay in float32.

    Args:
        scales: Any shape.
        dtype: float32, float16 or bfloat16.
    """
    if dtype == "float32":
        return scales.astype(np.float32)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    least = 2.0**-17 if dtype == "float16" else TINY
    with np.errstate(over="ignore"):
        rounded = np.maximum(scales, least).astype(kind).astype(np.float32)
    return np.where(np.isfinite(rounded), rounded, scales.astype(np.float32))


def dequantize(codes: Codes, scale: Floats, zero_point: Codes, axis: int | None) -> Floats:
    """Return ``scale * (codes - zero_point)`` in float32."""
    step, zero = _spread(scale, codes.ndim, axis), _spread(zero_point, codes.ndim, axis)
    return ((codes.astype(np.float64) - zero) * step).astype(np.float32)


def _spread(values: npt.NDArray[np.generic], rank: int, axis: int | None) -> Floats:
    wide = np.asarray(values).astype(np.float64)
    if axis is None:
        return wide.reshape(())
    return wide.reshape([-1 if i == axis else 1 for i in range(rank)])
