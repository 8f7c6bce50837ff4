"""Whether a batch may be cut into single samples: only the model can tell."""

from collections.abc import Mapping, Sequence

import numpy as np

from qcompile.errors import EngineError
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Feeds, Port

TOLERANCE = 1e-4
"""Relative L2 between a batch's outputs and its rows' outputs."""

_ROWS = 4


def batch_size(shapes: Mapping[str, Sequence[int]], inputs: Sequence[Port]) -> int:
    """Return the number of rows that a file's arrays share, 1 where they cannot be cut.

    All inputs but scalars must share a first dimension that the model leaves open or fixes to 1.

    Args:
        shapes: Input name to the shape in the file; inputs that are missing count as no batch.
        inputs: The model's inputs.
    """
    sizes = set()
    for port in inputs:
        shape = shapes.get(port.name, ())
        if not shape:
            if port.shape:
                return 1
            continue
        first = port.shape[0] if port.shape else None
        known = port.shape is None or len(port.shape) == len(shape)
        if not known or (isinstance(first, int) and first != 1):
            return 1
        sizes.add(shape[0])
    return sizes.pop() if len(sizes) == 1 else 1


def rows(feeds: Feeds, start: int, stop: int) -> dict[str, Array]:
    """Return the rows of a batch; scalars stay as they are."""
    return {name: array[start:stop] if array.ndim else array for name, array in feeds.items()}


def rows_are_independent(session: Session, feeds: Feeds) -> bool:
    """Return whether a batch gives what its rows give one by one, within ``TOLERANCE``.

    Time-major inputs, batch statistics and anything else that mixes rows give False, and so does
    a model that cannot run the batch or one row. At most four rows are tried.
    """
    count = min(_ROWS, max(array.shape[0] for array in feeds.values() if array.ndim))
    try:
        whole = session.run(rows(feeds, 0, count))
        single = [session.run(rows(feeds, row, row + 1)) for row in range(count)]
    except EngineError:
        return False
    return all(_agree(whole[name], [outputs[name] for outputs in single]) for name in whole)


def _agree(whole: Array, single: Sequence[Array]) -> bool:
    if not all(part.ndim and part.shape[0] == 1 for part in single):
        return False
    if len({part.shape for part in single}) > 1:
        return False
    joined = np.concatenate(single)
    if joined.shape != whole.shape:
        return False
    if whole.dtype.kind != "f":
        return bool(np.array_equal(joined, whole))
    reference = whole.astype(np.float64)
    distance = np.linalg.norm(joined.astype(np.float64) - reference)
    return bool(distance <= TOLERANCE * np.linalg.norm(reference))
