"""Bias correction: rounding moves the mean of a layer's output; the bias takes that back.

Nagel et al. 2019, arXiv:1906.04721, section 4.2. With y the float output and y' the rounded one,
``E[y' - y]`` for each output channel is subtracted from the bias. It is measured (their appendix
D), or follows from the rounded weights alone: ``E[y' - y] = (W' - W) E[x]``.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Wide = npt.NDArray[np.float64]


def channel_means(values: Floats, axis: int) -> Wide:
    """Return the mean of each channel, float64 ``(C,)``.

    Args:
        values: Any shape.
        axis: Of the channels.
    """
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    means: Wide = values.mean(axis=others, dtype=np.float64)
    return means


def weight_shift(error: Floats, means: Floats, groups: int) -> Wide:
    """Return ``(W' - W) E[x]`` of each output channel, float64 ``(M,)``.

    A convolution's input is taken to have one mean in all places: the zeros around a picture are
    not counted.

    Args:
        error: ``(M, C / groups, k1, ...)``, the rounded weight minus the weight.
        means: ``(C,)``, of the input.
        groups: Of the convolution; 1 for a matrix.
    """
    by_input = error.astype(np.float64).reshape(groups, -1, error.shape[1], *error.shape[2:])
    summed = by_input.sum(axis=tuple(range(3, by_input.ndim)))
    shifts: Wide = np.einsum("gmc,gc->gm", summed, means.reshape(groups, -1))
    return shifts.reshape(-1)


def error_change(correction: Floats, shifts: Floats) -> float:
    """Return what a correction adds to the squared error at a layer's output, for each place.

    For errors e of mean d the sum of ``(e + c)^2 - e^2`` over n places is ``n (2 c d + c^2)``.

    Args:
        correction: c, ``(C,)``.
        shifts: d, ``(samples, C)``: the mean error of each channel in each sample.
    """
    return float((2 * correction * shifts + correction**2).mean(axis=0).sum())
