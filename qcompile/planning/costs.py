"""What solving a model's weights will take: told before it begins."""

import math
import shutil
import time
from collections.abc import Sequence

import numpy as np

from qcompile.errors import OutputError
from qcompile.graph.stages import cut, reader_groups
from qcompile.numerics.adaround import BLOCK
from qcompile.numerics.awq import CHANNELS, NARROWER, STEPS
from qcompile.numerics.grouped import SHARES, WIDEST
from qcompile.numerics.groups import Floats
from qcompile.planning.sequence import POSITIONS, Job
from qcompile.planning.solve import NARROW
from qcompile.planning.weights import Layer, layer_nodes
from qcompile.samples import Array, Samples

_PROBE = 1024
_PROBES = 5
_BASE_BYTES = 300 << 20
"""The process with its libraries."""

_PLAIN = 40e6
"""Weights a second that one core rounds to searched grids."""

_LEARNED = 15e6
"""Weights a second that one step of AdaRound moves on one core, besides its product of matrices."""

_LEARNING = 200
"""Bytes that AdaRound keeps of each weight of a block."""

_HELD = 24
"""Bytes that are held of each weight that is solved: as it is, widened, its codes (20 measured)."""

_STREAMED = 40e6
"""Bytes of weights a second for all around solving: hashed, read, written, run once more (measured
on 8.2 GB)."""

_LAYER = 0.1
"""Seconds that each layer takes, however small: its stage is loaded, its kernel tried."""

_CALL = 0.01
"""Seconds that one step over a layer takes, however small it is: threads are started."""


def estimate(job: Job, samples: Samples | None) -> str:
    """Return time, memory and disk that the build will take, as one line.

    Raises:
        OutputError: The disk has not that much room.
    """
    layers = job.selection.layers
    weights = sum(layer.rows * layer.columns for layer in layers)
    largest = max((layer.rows * layer.columns for layer in layers), default=0)
    disk = float(weights)
    tensors = (layer.weight.const_value for layer in layers)
    stored = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    seconds = weights / _PLAIN + stored / _STREAMED + _LAYER * len(layers)
    memory = float(_BASE_BYTES + 12 * largest)
    if samples is not None:
        tokens = _positions(samples) * len(samples)
        single, double = _rate(np.float32), _rate(np.float64)
        streams = 2 if any(layer.options.compensates for layer in layers) else 1
        seconds += (1 + streams) * weights * tokens / single + _solving(
            layers, tokens, len(samples), single, double
        )
        seconds += job.learned.steps * sum(_step(layer, single) for layer in layers)
        memory = max(memory, _BASE_BYTES + _largest_group(layers))
        disk += streams * _activations(job, tokens)
    room = shutil.disk_usage(job.folder).free
    if disk > room:
        raise OutputError(
            f"{job.folder}: solving needs about {_size(disk)} of disk, {_size(room)} are free; "
            "free some, or name another place in QCOMPILE_CACHE"
        )
    return (
        f"estimate: about {_duration(seconds)}, {_size(memory)} of memory, "
        f"{_size(disk)} of disk for {weights:,} weights"
    )


def _positions(samples: Samples) -> int:
    """Return the positions of a sample: tokens, rows, pixels; at least 1."""
    return max([1, *(_positions_of(array) for array in samples[0].values())])


def _positions_of(array: Array) -> int:
    """Return the positions of tokens ``(N, T)``, of rows ``(..., K)`` or of ``(N, C, D1, ...)``."""
    if array.dtype.kind != "f":
        return math.prod(array.shape[:2])
    channels = 1 if array.ndim > 3 else -1
    return math.prod(array.shape) // max(1, array.shape[channels]) if array.ndim else 1


def _solving(
    layers: Sequence[Layer], tokens: int, samples: int, single: float, double: float
) -> float:
    """Return the seconds of Hessians, searches and sweeps."""
    seen = min(tokens, POSITIONS * samples)
    seconds = 0.0
    for layer in layers:
        asked, rows, columns = layer.options.algorithm, layer.rows, layer.columns
        if layer.options.compensates:
            moved = (2 * columns**3 + 3 * rows * columns**2) / double
            seconds += columns**2 * seen / single + moved
        if asked == "rtn":
            continue
        seconds += columns**2 * seen / single
        # what is tried on a part of the rows for each scale, then done with the best on all
        rounded = rows + 2 * STEPS * min(rows, CHANNELS)
        size = min(layer.options.group_size or columns, columns)
        if asked in ("auto", "gptq"):
            seconds += (2 * columns**3 + rows * columns**2) / double + _CALL
        if asked in ("auto", "awq"):
            clips = len(NARROWER) * (1 if layer.options.asymmetric else 2)
            tried = clips * (1 / _PLAIN + size / single)
            seconds += rounded * columns * (tried + columns / double) + clips * STEPS * _CALL
        if asked in ("auto", "awq+gptq"):
            ways = 1 if size <= NARROW else 2
            tried = rows + (STEPS - 1) * min(rows, CHANNELS)
            swept = len(SHARES) * size / double if size <= WIDEST else 0.0
            each = 2 * columns**3 / double + tried * columns * (swept + 2 * columns / double)
            seconds += ways * (each + rows * columns**2 / double)  # the last: settling the codes
    return seconds


def _step(layer: Layer, single: float) -> float:
    """Return the seconds of one step of AdaRound, where it is asked for."""
    if layer.options.algorithm != "adaround":
        return 0.0
    return layer.rows * layer.columns * (1 / _LEARNED + layer.columns / single)


def _largest_group(layers: Sequence[Layer]) -> int:
    """Return the bytes of the layer that needs most: its Hessian, the inverse, its weights.

    Two more of the Hessian's size where it compensates: what inputs lost, and halves for moments.
    """
    most = 0
    for layer in layers:
        weights = layer.rows * layer.columns
        learns = layer.options.algorithm == "adaround"
        learning = _LEARNING * min(BLOCK, weights) if learns else 0
        squares = 32 if layer.options.compensates else 16
        most = max(most, squares * layer.columns**2 + _HELD * weights + learning)
    return most


def _activations(job: Job, tokens: int) -> float:
    """Return the bytes of the activations that are on disk at once, at the most."""
    groups = reader_groups(list(layer_nodes(job.model, job.selection)))
    widths = {v.name: _width(v.shape) for n in job.model.graph for v in n.outputs}
    live: dict[str, int] = {}
    most = 0
    for stage in cut(job.model, groups)[:-1]:
        live |= {name: widths.get(name, 1) for name in stage.gives}
        most = max(most, sum(live.values()))
        live = {name: width for name, width in live.items() if name not in stage.drops}
    return 4.0 * tokens * most


def _width(shape: object) -> int:
    dims = list(shape) if shape is not None else []  # type: ignore[call-overload]
    return dims[-1] if dims and isinstance(dims[-1], int) else 1


def _rate(dtype: type) -> float:
    """Return the multiply-adds a second of a product of matrices, the best of some."""
    matrix: Floats = np.ones((_PROBE, _PROBE), dtype)
    least = math.inf
    for _ in range(_PROBES):
        started = time.perf_counter()
        matrix @ matrix
        least = min(least, time.perf_counter() - started)
    return _PROBE**3 / least


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
