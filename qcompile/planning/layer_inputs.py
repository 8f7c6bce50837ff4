"""What a layer multiplies its weights with, as rows, and what is kept of it."""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.graph.walk import is_op
from qcompile.numerics.compensation import LostSum
from qcompile.numerics.hessian import HessianSum
from qcompile.numerics.patches import Floats, patches, same_pads, spread

SEARCHED = 512
"""Rows that are kept of the samples that do not judge."""

JUDGES = 6
"""One sample in so many judges, if there are so many."""

JUDGING = 1024
"""Rows that judge."""


def input_rows(node: ir.Node, data: Floats, limit: int) -> Floats:
    """Return some positions of a layer's input, evenly spread.

    Args:
        node: A MatMul, a Gemm, or a Conv with a constant weight.
        data: One sample of the layer's input: ``(..., K)``, or ``(N, C, D1, ...)`` for Conv.
        limit: Most positions.

    Returns:
        ``(groups, P, K)`` in the type of ``data``; for Conv K is ``C / groups * k1 * ...``.
    """
    if not is_op(node, "Conv"):
        rows = data.reshape(-1, data.shape[-1])
        return rows[spread(len(rows), limit)][None]
    weight = node.inputs[1]
    assert weight is not None  # noqa: S101 - the caller chose such nodes
    assert weight.const_value is not None  # noqa: S101
    kernel = weight.const_value.shape.numpy()[2:]
    rank = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad.startswith("SAME"):
        pads = same_pads(auto_pad, data.shape[2:], kernel, strides, dilations)
    found = patches(data, kernel, strides, pads, dilations, limit)
    groups = node.attributes.get_int("group", 1)
    return found.reshape(len(found), groups, -1).transpose(1, 0, 2)


class LayerInputs:
    """What is kept of the inputs that layers share: bounded, whatever the number of samples."""

    def __init__(self, columns: int, samples: int, *, compensated: bool = False) -> None:
        """Begin.

        Args:
            columns: K.
            samples: How many will be added.
            compensated: What the float model has in place of the inputs will be added, too.
        """
        self.hessian = HessianSum(columns)
        self.lost = LostSum(columns) if compensated else None
        self.judging: list[Floats] = []
        self.searched: list[Floats] = []
        self._exact_judging: list[Floats] = []
        self._exact_searched: list[Floats] = []
        self._magnitude = np.zeros(columns)
        self._judges = samples // JUDGES
        self._fits = samples - self._judges

    def add(self, index: int, rows: Floats, exact: Floats | None = None) -> None:
        """Add the rows ``(n, K)`` of one sample; one sample in ``JUDGES`` judges.

        Args:
            index: Of the sample.
            rows: What the layers read.
            exact: What they read in the float model, where that is to be compensated.
        """
        if index % JUDGES == JUDGES - 1:
            kept, beside = self.judging, self._exact_judging
            limit, each = JUDGING, JUDGING // max(1, self._judges)
        else:
            kept, beside = self.searched, self._exact_searched
            limit, each = SEARCHED, SEARCHED // self._fits
            self.hessian.add(rows)
            self._magnitude += np.abs(rows).sum(axis=0, dtype=np.float64)
            if self.lost is not None and exact is not None:
                self.lost.add(rows, exact)
        if len(kept) < limit:
            kept.append(_some(rows, each))
            if exact is not None:
                beside.append(_some(exact, each))

    def magnitude(self) -> npt.NDArray[np.float64]:
        """Return the mean magnitude of each column, ``(K,)``."""
        found: npt.NDArray[np.float64] = self._magnitude / max(1, self.hessian.count)
        return found

    def rows(self) -> tuple[Floats, Floats]:
        """Return rows that were solved on and rows to judge on; the same if too few judge."""
        searched = np.concatenate(self.searched)
        return searched, np.concatenate(self.judging) if self.judging else searched

    def exact(self) -> Floats:
        """Return what the float model has in place of the rows to judge on."""
        return np.concatenate(self._exact_judging or self._exact_searched)


def _some(rows: Floats, limit: int) -> Floats:
    """Return a float32 copy of some rows, at least one, evenly spread."""
    return np.asarray(rows[spread(len(rows), max(1, limit))], np.float32)
