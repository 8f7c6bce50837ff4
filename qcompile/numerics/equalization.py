"""Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1.1).

Dividing an output channel of one layer by s and multiplying the input channel of the next one by s
changes nothing in float. A weight that is rounded with one scale loses least where its channels
have equal ranges: equation 11 gives both layers the geometric mean of their ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.float64]

ITERATIONS = 200
"""Most rounds over all pairs; chains of depth n take some n rounds."""

CONVERGED = 1e-3
"""A round ends the search when no scale changes by more than this share."""

DEAD = 1e-5
"""A channel with less than this share of its layer's largest range is left: it hardly counts, and
to equalize it would blow up its bias."""

SPAN = 1e4
"""Scales stay within this factor of 1."""


@dataclass(frozen=True)
class LayerRanges:
    """The largest magnitudes of a layer's weight, float64 ``(M, C / groups)``.

    Attributes:
        magnitudes: By output channel, and input channel of the group that it is in.
        biases: Magnitude of the bias of each output channel, ``(M,)``, in the unit of weights. A
            channel that is nearly constant has small weights and a bias that counts: divided by a
            small scale it would be loud, and every error of what reads it with it.
        groups: Of a convolution; M and C if it is depthwise.
    """

    magnitudes: Wide
    biases: Wide
    groups: int = 1

    def outputs(self) -> Wide:
        """Return the range of each output channel, ``(M,)``."""
        largest: Wide = np.maximum(self.magnitudes.max(axis=1, initial=0.0), self.biases)
        return largest

    def inputs(self) -> Wide:
        """Return the range of each input channel, ``(C,)``."""
        by_group = self.magnitudes.reshape(self.groups, -1, self.magnitudes.shape[1])
        largest: Wide = by_group.max(axis=1, initial=0.0).reshape(-1)
        return largest

    def divided(self, scale: Wide) -> "LayerRanges":
        """Return those of the weight whose output channels are divided by a scale ``(M,)``."""
        return LayerRanges(self.magnitudes / scale[:, None], self.biases / scale, self.groups)

    def multiplied(self, scale: Wide) -> "LayerRanges":
        """Return those of the weight whose input channels are multiplied by a scale ``(C,)``."""
        by_group = self.magnitudes.reshape(self.groups, -1, self.magnitudes.shape[1])
        scaled = by_group * scale.reshape(self.groups, 1, -1)
        return LayerRanges(scaled.reshape(self.magnitudes.shape), self.biases, self.groups)


@dataclass(frozen=True)
class Pair:
    """A layer and those that read what it makes; ``first`` and ``readers`` are indices."""

    first: int
    readers: tuple[int, ...]


def pair_scale(first: Wide, second: Wide) -> Wide:
    """Return what each channel between two layers is divided by (equation 11).

    Args:
        first: Range of each output channel of the layer before, ``(C,)``.
        second: Range of each input channel of the layers behind, ``(C,)``.

    Returns:
        ``sqrt(first * second) / second``, with a geometric mean of 1, for a factor of all channels
        changes no rounding; 1 for dead channels.
    """
    alive = (first > DEAD * first.max(initial=0.0)) & (second > DEAD * second.max(initial=0.0))
    ratio = np.divide(first, second, where=alive, out=np.ones_like(first))
    scale: Wide = np.sqrt(ratio)
    if alive.any():
        scale[alive] /= np.exp(np.log(scale[alive]).mean())
    return scale


def equalization(layers: Sequence[LayerRanges], pairs: Sequence[Pair]) -> list[Wide]:
    """Return the scale of each pair's channels, ``(C,)``, when all pairs agree.

    Args:
        layers: The layers' ranges.
        pairs: In graph order; a layer may be first in one pair and a reader in another.
    """
    now = list(layers)
    totals = [np.ones(len(now[pair.first].magnitudes)) for pair in pairs]
    for _ in range(ITERATIONS):
        moved = 0.0
        for number, pair in enumerate(pairs):
            behind = np.max([now[reader].inputs() for reader in pair.readers], axis=0)
            step = pair_scale(now[pair.first].outputs(), behind)
            wanted = np.clip(totals[number] * step, 1 / SPAN, SPAN)
            step, totals[number] = wanted / totals[number], wanted
            now[pair.first] = now[pair.first].divided(step)
            for reader in pair.readers:
                now[reader] = now[reader].multiplied(step)
            moved = max(moved, float(np.abs(step - 1).max(initial=0.0)))
        if moved < CONVERGED:
            break
    return totals
