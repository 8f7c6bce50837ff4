"""Inputs for a run that only has to happen: a load check, a timing. Never for calibration."""

from collections.abc import Sequence

import numpy as np

from qcompile.runtime.prefill import completed, tokens_input
from qcompile.samples import Array, Port

DYNAMIC = 1
"""Size taken for a dynamic dimension."""


def made_up_feeds(inputs: Sequence[Port]) -> dict[str, Array]:
    """Return feeds of the right types and shapes.

    Floats are standard normal (seeded); integers and booleans are zero, which every embedding has.
    What follows from the tokens of a language model does so here too: a mask of ones, an empty
    past.
    """
    rng = np.random.default_rng(0)
    tokens = tokens_input(inputs)
    given = completed({tokens.name: _made_up(tokens, rng)}, inputs) if tokens else {}
    return {
        port.name: given[port.name] if port.name in given else _made_up(port, rng)
        for port in inputs
    }


def _made_up(port: Port, rng: "np.random.Generator") -> Array:
    shape = tuple(dim if isinstance(dim, int) else DYNAMIC for dim in port.shape or ())
    if port.dtype == np.dtype(object):
        return np.full(shape, "", dtype=object)
    if np.issubdtype(port.dtype, np.floating):
        return rng.standard_normal(shape).astype(port.dtype)
    return np.zeros(shape, port.dtype)
