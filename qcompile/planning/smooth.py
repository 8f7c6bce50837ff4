"""SmoothQuant: how much of each activation's range moves to the weights that read it."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.chunks import chunks
from qcompile.graph.channels import ChannelDivider, channel_scale, channels_of, is_layer
from qcompile.graph.division import KeepsBasis
from qcompile.graph.walk import consumers
from qcompile.numerics.grids import CODE_RANGE
from qcompile.numerics.patches import spread
from qcompile.numerics.smoothing import Grid, product_error, rounded_weight, smoothing_scale
from qcompile.planning.activation_grids import activation_grid
from qcompile.planning.column_rows import ColumnRows, column_rows
from qcompile.progress import Progress
from qcompile.remedies import Rescaled
from qcompile.samples import Samples, Subset
from qcompile.targets.target import Types

Narrow = npt.NDArray[np.float32]
Activations = Literal["static", "run", "row"]

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""First those; then 0.05 to either side of the best."""

SAMPLES = 32
"""Most samples that are run."""

ROWS = 256
"""Most rows of an input, over all samples, on which errors are compared."""

CHANNELS = 256
"""Most output channels of a weight on which errors are compared."""

RANGES = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Shares of the whole range that a static grid may cover: calibration clips, too."""

BETTER = 0.98
"""The squared error must fall below this share of what it is without smoothing."""

PAYS = 0.5
"""The same where a Mul has to do it, which costs a pass over the activation."""

HELD = 1 << 28
"""Bytes of rows and ranges held at once; beyond it the samples run again."""


@dataclass(frozen=True)
class _Group:
    """Layers that read one value, of which K is the last axis; some compute in int8."""

    value: ir.Value
    columns: int
    layers: tuple[ir.Node, ...]
    foldable: bool


def smoothed(  # noqa: PLR0913 (a search has many inputs)
    model: ir.Model,
    nodes: Collection[str],
    samples: Samples,
    types: Types,
    jobs: int,
    progress: Progress,
    *,
    strength: float | None,
    activations: Activations = "static",
) -> dict[str, Rescaled]:
    """Choose SmoothQuant's scales (arXiv:2211.10438, eq. 4), one for all layers with one input.

    For each strength, the layers' outputs are computed with inputs and weights rounded as they will
    be, on some rows; the strength with the least squared error wins, if it is better than none.

    Args:
        model: The lowered graph.
        nodes: The nodes that compute in int8.
        samples: At most ``SAMPLES`` of them, evenly spread.
        types: Of the codes.
        jobs: Samples run, and groups searched, at once.
        progress: Hears "plan: rows" and "plan: smoothing".
        strength: alpha, for all groups; None searches it for each. Where a constant can take the
            division a given strength is not questioned; 0 leaves all as it is.
        activations: Their scale is fixed (static), that of each run, or that of each row.

    Returns:
        Value to scale; values that smoothing does not help are not in it.
    """
    groups = _groups(model, set(nodes))
    if not groups or not len(samples) or strength == 0:
        return {}
    used = Subset(samples, spread(len(samples), SAMPLES).tolist())
    per_sample = max(1, ROWS // len(used))
    found: dict[str, Rescaled] = {}
    done = 0
    rows = len(used) * (per_sample + 2)
    for chunk in chunks(groups, lambda group: 4 * rows * group.columns, HELD):
        columns = {str(group.value.name): group.columns for group in chunk}
        seen = column_rows(model, columns, used, per_sample, jobs, progress)

        def search(group: _Group, seen: dict[str, ColumnRows] = seen) -> Rescaled | None:
            rows = seen[str(group.value.name)]
            return _Search(group, rows, types, activations).best(strength)

        with ThreadPoolExecutor(jobs) as pool:
            for group, rescaled in zip(chunk, pool.map(search, chunk), strict=True):
                done += 1
                progress.step("plan: smoothing", done, len(groups))
                if rescaled is not None:
                    found[str(group.value.name)] = rescaled
    return found


def _groups(model: ir.Model, nodes: set[str]) -> list[_Group]:
    """Return the values that the named layers read, in graph order."""
    divider = ChannelDivider(model)
    values = [n.inputs[0] for n in model.graph if n.name in nodes and is_layer(n)]
    found = []
    for value in dict.fromkeys(values):
        columns = None if value is None else channels_of(value, -1)
        if value is None or columns is None:
            continue
        layers = [n for n, i in consumers(value) if i == 0 and n.name in nodes and is_layer(n)]
        try:
            divider.rescale(value, channel_scale(value, np.ones(columns), -1))
            foldable = True
        except KeepsBasis:
            foldable = False
        found.append(_Group(value, columns, tuple(layers), foldable))
    return found


class _Search:
    """The strengths of one group, compared."""

    def __init__(
        self, group: _Group, seen: ColumnRows, types: Types, activations: Activations
    ) -> None:
        self.group, self.seen, self.types, self.activations = group, seen, types, activations
        weights = [_rows_of(node) for node in group.layers]
        self.weight = np.max([np.abs(w).max(axis=0) for w in weights], axis=0).astype(np.float64)
        self.parts = [w[spread(len(w), CHANNELS)].astype(np.float32) for w in weights]
        self.rows = seen.rows.reshape(-1, group.columns)

    def best(self, strength: float | None) -> Rescaled | None:
        """Return the scale of the best strength, or of the one that is given."""
        if not np.isfinite(self.seen.low).all() or not np.isfinite(self.seen.high).all():
            return None
        if strength is not None and self.group.foldable:
            return self._rescaled(strength)
        plain = self._error(np.ones(self.group.columns, np.float32))
        errors = {a: self._error(self._scale(a)) for a in ([strength] if strength else STRENGTHS)}
        best = min(errors, key=lambda a: errors[a])
        if strength is None:
            near = [round(best + step, 2) for step in (-0.05, 0.05) if best + step <= 1]
            errors |= {a: self._error(self._scale(a)) for a in near}
            best = min(errors, key=lambda a: errors[a])
        limit = BETTER if self.group.foldable else PAYS
        return self._rescaled(best) if errors[best] < limit * plain else None

    def _scale(self, strength: float) -> Narrow:
        magnitude = self.seen.magnitude().astype(np.float64)
        return smoothing_scale(magnitude, self.weight, strength)

    def _rescaled(self, strength: float) -> Rescaled:
        scale = [float(s) for s in self._scale(strength)]
        return Rescaled(remedy="smoothquant", axis=-1, scale=scale, strength=strength)

    def _error(self, scale: Narrow) -> float:
        """Return the squared error at the layers' outputs, with the best range of a static grid."""
        high = 63 if self.types.reduce_range else CODE_RANGE[self.types.weight][1]
        basis = [part * scale for part in self.parts]
        weights = [(w, rounded_weight(w, self.types.weight, high)) for w in basis]
        rows = self.rows / scale
        shares = RANGES if self.activations == "static" else RANGES[:1]
        errors = []
        for share in shares:
            rounded = self._grid(scale, share).rounded(rows)
            errors.append(sum(product_error(rows, rounded, *pair) for pair in weights))
        return float(min(errors))

    def _grid(self, scale: Narrow, share: float) -> Grid:
        """Return the grid of the divided rows: one, one a sample, or one a row."""
        if self.activations == "row":
            rows = self.rows / scale
            lows, highs = rows.min(axis=1), rows.max(axis=1)
        else:
            lows, highs = (self.seen.low / scale).min(axis=1), (self.seen.high / scale).max(axis=1)
        if self.activations == "static":
            lows, highs = lows.min(keepdims=True), highs.max(keepdims=True)
        grids = [
            activation_grid(share * float(low), share * float(high), self.types)
            for low, high in zip(lows, highs, strict=True)
        ]
        numbers = np.asarray(grids, np.float32)
        repeated = np.repeat(numbers, len(self.rows) // len(numbers), axis=0)
        return Grid(repeated[:, :1], repeated[:, 1:], self.types.activation)


def _rows_of(node: ir.Node) -> npt.NDArray[np.floating]:
    """Return a layer's weight as rows, ``(R, K)``."""
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None  # noqa: S101, PT018 - a layer
    values = weight.const_value.numpy()
    return values if node.attributes.get_int("transB", 0) else values.T
