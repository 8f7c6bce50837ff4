"""The inputs of a layer as rows: what each weight of an output channel is multiplied with."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def patches(
    data: Floats,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    limit: int,
) -> Floats:
    """Return the receptive fields of a convolution (im2col), some of them where there are many.

    Args:
        data: ``(N, C, D1, ..., Dn)``.
        kernel: ``(k1, ..., kn)``.
        strides: One an axis.
        pads: Zeros before each axis, then behind each, as ONNX has them.
        dilations: One an axis.
        limit: Most positions to return, evenly spread.

    Returns:
        ``(P, C, k1 * ... * kn)``, P at most ``limit``.
    """
    rank = len(kernel)
    widths = [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))]
    padded = np.pad(data, widths)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    places = tuple(slice(None, None, s) for s in strides)
    steps = tuple(slice(None, None, d) for d in dilations)
    windows = windows[(slice(None), slice(None), *places, *steps)]
    order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
    moved = windows.transpose(order)
    count = int(np.prod(moved.shape[: 1 + rank]))
    chosen = np.unravel_index(spread(count, limit), moved.shape[: 1 + rank])
    return moved[chosen].reshape(len(chosen[0]), data.shape[1], -1)


def spread(count: int, limit: int) -> npt.NDArray[np.int64]:
    """Return at most ``limit`` of the indices below ``count``, evenly spread."""
    if count <= limit:
        return np.arange(count)
    return (np.arange(limit) * count) // limit


def same_pads(
    auto_pad: str,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Return the explicit pads of ONNX's ``auto_pad`` SAME_UPPER or SAME_LOWER."""
    before, behind = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        behind.append(large if auto_pad == "SAME_UPPER" else small)
    return before + behind
