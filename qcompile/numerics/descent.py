"""Codes that are settled once more when all of a row are known: coordinate descent.

GPTQ (Frantar et al. 2022, arXiv:2210.17323) rounds each column once and never comes back to it,
though its best code depends on those that were rounded after it. Here each code of a row is moved
to where the row's error ``d H d^T`` is least, all others as they are, until none moves: the error
falls with each move. Grids stay. Behdin et al. 2023 (QuantEase, arXiv:2309.01885) solve the whole
layer so, from plain rounding.
"""

from dataclasses import replace

import numpy as np

from qcompile.numerics.groups import Floats, SolvedWeight
from qcompile.numerics.hessian import Wide
from qcompile.numerics.threads import available, for_each

SWEEPS = 10
"""Times that a row is gone through at most; most of the gain is in the first three."""

_AT_ONCE = 1 << 18
"""Weights that one thread works on together: 2 MB for each matrix of them."""


def settle(
    weights: Floats, solved: SolvedWeight, hessian: Wide, *, damping: float = 0.0
) -> SolvedWeight:
    """Return a solved weight whose codes are each the best for all others.

    Args:
        weights: ``(R, K)``, any floating type.
        solved: The same in codes, columns in the weight's order.
        hessian: ``(K, K)``, ``X^T X`` of the layer's inputs up to a factor.
        damping: Added to its diagonal, as a share of its mean.
    """
    from qcompile.numerics.kernels import Descent, descend

    rows, columns = weights.shape
    added = damping * float(np.diag(hessian).mean())
    search = Descent(solved.format.high, SWEEPS, added)
    group = solved.format.group_of(columns)
    basis = np.ones(columns) if solved.input_scale is None else solved.input_scale
    codes = solved.codes.copy()

    def part_of(part: slice) -> None:
        steps = solved.scales[part].astype(np.float64)[:, group] / basis
        levels = codes[part] - solved.zeros[part].astype(np.float64)[:, group]
        errors = weights[part] - levels * steps
        descend(errors, errors @ hessian, steps, hessian, search, codes[part])

    at_once = max(1, _AT_ONCE // max(1, columns))
    parts = (slice(start, start + at_once) for start in range(0, rows, at_once))
    for_each(parts, part_of, available())
    return replace(solved, codes=codes)
