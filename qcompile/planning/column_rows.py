"""Some rows of what linear layers read, and the range of each column, sample by sample."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qcompile.graph.edit import add_constant
from qcompile.planning.extra_nodes import ExtraNodes
from qcompile.progress import Progress
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Samples

Narrow = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ColumnRows:
    """What S samples of a value ``(..., K)`` looked like.

    Attributes:
        rows: P rows of each sample, evenly spread, ``(S, P, K)``.
        low: Least value of each column over all rows, ``(S, K)``.
        high: Largest, ``(S, K)``.
    """

    rows: Narrow
    low: Narrow
    high: Narrow

    def magnitude(self) -> Narrow:
        """Return the largest magnitude of each column, ``(K,)``."""
        largest: Narrow = np.maximum(-self.low, self.high).max(axis=0)
        return largest


def column_rows(
    model: ir.Model,
    columns: Mapping[str, int],
    samples: Samples,
    count: int,
    jobs: int,
    progress: Progress,
) -> dict[str, ColumnRows]:
    """Run the samples; of each value only the rows and ranges that are kept leave the runtime.

    Args:
        model: The float graph; it is not changed.
        columns: Value of the main graph to the size of its last axis, which is fixed.
        samples: All of them run.
        count: Rows of each sample; one that has fewer repeats some.
        jobs: Samples run at once.
        progress: Hears "plan: rows".
    """
    session = Session(_tapped(model, columns, count), threads=1)
    kept: list[list[Array]] = []
    with ThreadPoolExecutor(jobs) as pool:
        for results in pool.map(lambda index: session.run(samples[index]), range(len(samples))):
            kept.append(list(results.values()))
            progress.step("plan: rows", len(kept), len(samples))
    return {
        name: ColumnRows(*(_stacked(kept, 3 * number + part) for part in range(3)))
        for number, name in enumerate(columns)
    }


def _stacked(kept: Sequence[Sequence[Array]], place: int) -> Narrow:
    return np.stack([arrays[place].astype(np.float32) for arrays in kept])


def _tapped(model: ir.Model, columns: Mapping[str, int], count: int) -> ir.Model:
    """Return a copy whose outputs are rows, low and high of each value."""
    copy = model.clone()
    graph, extra = copy.graph, ExtraNodes(copy)
    values = {v.name: v for v in graph.inputs} | {v.name: v for n in graph for v in n.outputs}
    outputs = []
    for name, size in columns.items():
        value = values[name]

        def whole(what: str, *numbers: int, near: ir.Value = value) -> ir.Value:
            return add_constant(graph, extra.names.fresh(near, what), np.array(numbers, np.int64))

        rows = extra.op("Reshape", [value, whole("as_rows", -1, size)])
        there = extra.op("Shape", [rows], start=0, end=1)
        places = extra.op("Mul", [whole("steps", *range(count)), there])
        chosen = extra.op("Gather", [rows, extra.op("Div", [places, whole("count", count)])])
        axis = whole("over_rows", 0)
        low = extra.op("ReduceMin", [rows, axis], keepdims=0)
        high = extra.op("ReduceMax", [rows, axis], keepdims=0)
        for result, shape in ((chosen, [count, size]), (low, [size]), (high, [size])):
            result.type, result.shape = value.type, ir.Shape(shape)
        outputs += [chosen, low, high]
    graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(copy)
    return copy
