"""Rounding a layer's weights one column after another, each error taken up by the next columns.

GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1) for a grid that is given: per-channel
scales, no zero point. With X the inputs ``(n, K)`` and ``H = X^T X``, a row w of the weights is
rounded to ``q`` so that ``(w - q) H (w - q)^T`` is small. Columns go by falling ``diag(H)``.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]

BLOCK = 128
"""Columns that are solved together; their errors reach all later columns in one matrix product."""

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: what the samples did not excite."""


def round_columns(weights: Floats, scale: Floats, hessian: Floats, code_high: int) -> Codes:
    """Round the weights of one layer to codes.

    Args:
        weights: ``(R, K)``, one row for each output channel.
        scale: ``(R,)``, the step of each row's symmetric grid.
        hessian: ``(K, K)``, ``X^T X`` up to a factor.
        code_high: Largest code; the lowest is ``-code_high``.

    Returns:
        Codes ``(R, K)``.
    """
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = inverse_factor(hessian[np.ix_(order, order)])
    work = np.ascontiguousarray(weights[:, order], np.float64)
    codes = np.empty(work.shape, np.int8)
    for start in range(0, work.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        columns = np.ascontiguousarray(work[:, block].T)
        errors, found = _solve(columns, scale, factor[block, block], code_high)
        codes[:, block] = found.T
        work[:, start + BLOCK :] -= errors.T @ factor[block, start + BLOCK :]
    restored = np.empty_like(codes)
    restored[:, order] = codes
    return restored


def inverse_factor(hessian: Floats) -> Floats:
    """Return the upper triangular U with ``U^T U = (H + damping)^-1``.

    From one Cholesky factor of the reversed matrix: with ``H = R R^T``, R upper, U is ``R^-1``.

    Args:
        hessian: ``(K, K)``, symmetric, positive semidefinite.
    """
    damped = hessian.copy()
    diagonal = np.diag(hessian)
    mean = float(diagonal.mean())
    damped[np.diag_indices_from(damped)] += DAMPING * mean if mean > 0 else 1.0
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return _triangular_inverse(np.ascontiguousarray(upper))


def _triangular_inverse(upper: Floats) -> Floats:
    """Invert an upper triangular matrix by halves: nearly all of it is matrix products."""
    size = len(upper)
    if size <= BLOCK:
        return np.triu(np.linalg.inv(upper))
    half = size // 2
    inverse = np.zeros_like(upper)
    inverse[:half, :half] = _triangular_inverse(upper[:half, :half])
    inverse[half:, half:] = _triangular_inverse(upper[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ upper[:half, half:] @ inverse[half:, half:]
    return inverse


def output_error(difference: Floats, hessian: Floats) -> float:
    """Return ``sum_r d_r H d_r^T``: the squared error at the layer's output.

    Args:
        difference: ``(R, K)``, weights minus what their codes stand for.
        hessian: ``(K, K)``.
    """
    return float(np.einsum("rk,rk->", difference @ hessian, difference))


def _solve(work: Floats, scale: Floats, factor: Floats, code_high: int) -> tuple[Floats, Codes]:
    """Round one block of columns, in place; return the errors and the codes.

    Args:
        work: ``(B, R)``: a row for each column of the weights.
        scale: ``(R,)``.
        factor: ``(B, B)``, the part of ``inverse_factor`` that belongs to the block.
        code_high: Largest code.

    Returns:
        Two arrays ``(B, R)``.
    """
    errors, codes = np.empty_like(work), np.empty(work.shape, np.int8)
    for column, left in enumerate(work):
        code = np.clip(np.rint(left / scale), -code_high, code_high)
        codes[column] = code
        errors[column] = (left - code * scale) / factor[column, column]
        work[column + 1 :] -= factor[column, column + 1 :, None] * errors[column]
    return errors, codes
