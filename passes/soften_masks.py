"""Masks of attention that half precision can hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant, drop_unread
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, consumers, is_constant, is_op

FILL = -3e4
"""Far enough below any score that exp() gives 0, and half of float16's range is left for scores."""

LARGEST = 1 << 24
"""Elements of a mask that are looked at, at most."""

_CARRYING = ("Add", "Where", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice")
_CARRYING_MORE = ("Concat", "Identity", "Tile", "Cast", "Trilu", "Gather")


@dataclass(frozen=True, kw_only=True)
class SoftenMasks(GraphPass):
    """Let masks end at -3e4, which float16 has, instead of float32's lowest number.

    Before: ``Softmax(Add(scores, Where(allowed, 0, -3.4e38)))``.
    After:  the same with -3e4.

    What is masked gets the weight exp(-3e4 - highest score) = 0 as before; only rows in which all
    is masked change: they spread their weight by the scores, not evenly. Infinite fills stay:
    float16 has them. With such a fill in float32, the Add and the Softmax would have to stay there,
    too, and attention would lose its fused kernel.
    Visits: the main graph. Leaves: constants that something else than a Softmax reads, behind
    whatever adds, chooses or moves.
    """

    name: ClassVar[str] = "soften-masks"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    def rewrite(self, model: ir.Model) -> bool:
        """Find the fills of masks, then give their readers softer ones."""
        values = [*model.graph.initializers.values(), *_constants(model.graph)]
        found = [value for value in values if self._is_fill(value)]
        names = Names(model)
        for value in found:
            array = constant(value)
            assert array is not None  # noqa: S101 - _is_fill saw it
            soft = np.where(np.isfinite(array), np.maximum(array, np.float32(FILL)), array)
            name = names.fresh(value, "soft")
            value.replace_all_uses_with(add_constant(model.graph, name, soft.astype(np.float32)))
            drop_unread(value)
        return bool(found)

    def _is_fill(self, value: ir.Value) -> bool:
        if value.dtype != ir.DataType.FLOAT or not is_constant(value):
            return False
        array = constant(value, max_elements=LARGEST)
        if array is None or not bool((np.isfinite(array) & (array < FILL)).any()):
            return False
        if value.is_graph_output() or not _ends_in_softmax(value, set()):
            self.refuse("something else than a Softmax reads a constant below -3e4")
            return False
        return True


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        if is_op(node, "Constant"):
            yield node.outputs[0]


def _ends_in_softmax(value: ir.Value, seen: set[ir.Value]) -> bool:
    """Say whether all that reads a value adds, chooses or moves it, until a Softmax reads it."""
    if value in seen:
        return True
    seen.add(value)
    readers = consumers(value)
    if value.is_graph_output() or not readers:
        return False
    for node, index in readers:
        if is_op(node, "Softmax"):
            continue
        chooses = is_op(node, "Where") and index == 0
        if chooses or not is_op(node, *_CARRYING, *_CARRYING_MORE):
            return False
        if is_op(node, "Cast") and node.outputs[0].dtype != ir.DataType.FLOAT:
            return False
        if not _ends_in_softmax(node.outputs[0], seen):
            return False
    return True
