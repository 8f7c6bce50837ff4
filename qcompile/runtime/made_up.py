"""Inputs for a run that only has to happen: a load check, a timing. Never for calibration."""

import numpy as np

from qcompile.samples import Array, Port

DYNAMIC = 1
"""Size taken for a dynamic dimension."""


def made_up_feeds(inputs: tuple[Port, ...]) -> dict[str, Array]:
    """Return feeds of the right types and shapes.

    Floats are standard normal (seeded); integers and booleans are zero, which every embedding has.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for port in inputs:
        shape = tuple(dim if isinstance(dim, int) else DYNAMIC for dim in port.shape or ())
        if port.dtype == np.dtype(object):
            feeds[port.name] = np.full(shape, "", dtype=object)
        elif np.issubdtype(port.dtype, np.floating):
            feeds[port.name] = rng.standard_normal(shape).astype(port.dtype)
        else:
            feeds[port.name] = np.zeros(shape, port.dtype)
    return feeds
