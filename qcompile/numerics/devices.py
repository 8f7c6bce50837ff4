"""Where the GPTQ solver computes: numpy and compiled loops, or torch on a GPU.

Both work in float64 on matrices of their own kind, which share slicing, ``@``, ``.T`` and ``-=``;
a ``Device`` has the few operations for which the two differ.
"""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qcompile.numerics.threads import available, for_each

Matrix = Any
"""A float64 ndarray or a float64 tensor."""


@dataclass(frozen=True)
class Block:
    """Neighbouring columns that are rounded together.

    Attributes:
        work: ``(R, B)`` weights; rounding leaves ``(weight - rounded) / factor[c, c]`` in place.
        factor: ``(B, B)``, their part of the upper factor of the inverse Hessian.
        scales: ``(R, G)``.
        zeros: ``(R, G)``.
        group: int64 ``(B,)``, the group of each column.
        high: Largest code; the lowest is 0.
    """

    work: Matrix
    factor: Matrix
    scales: Matrix
    zeros: Matrix
    group: npt.NDArray[np.int64]
    high: int


class Device(Protocol):
    """Float64 arithmetic somewhere."""

    def load(self, array: npt.NDArray[Any]) -> Matrix:
        """Return the array as float64; it may be the array itself, which is then written to."""

    def invert_small(self, matrix: Matrix) -> Matrix | None:
        """Return the upper triangular U with ``U^T U = matrix^-1``.

        None for a matrix that is not positive definite.
        """

    def round_block(self, block: Block) -> npt.NDArray[np.uint8]:
        """Round one column after another; return the codes ``(R, B)``, leave the errors."""

    def host(self, matrix: Matrix) -> npt.NDArray[np.float64]:
        """Return the numbers as an ndarray."""


@dataclass(frozen=True)
class Cpu:
    """Numpy, and compiled loops on some threads."""

    threads: int

    def load(self, array: npt.NDArray[Any]) -> Matrix:
        """Return the array itself if it is float64, else a copy that is."""
        return np.ascontiguousarray(array, np.float64)

    def invert_small(self, matrix: Matrix) -> Matrix | None:
        """Return the upper triangular U with ``U^T U = matrix^-1``, if there is one."""
        try:
            upper = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            return None
        return np.triu(np.linalg.inv(upper))

    def round_block(self, block: Block) -> npt.NDArray[np.uint8]:
        """Round one column after another; return the codes ``(R, B)``, leave the errors."""
        from qcompile.numerics.kernels import round_columns

        codes = np.empty(block.work.shape, np.uint8)
        factor = np.ascontiguousarray(block.factor)

        def part(some: slice) -> None:
            grids = block.scales[some], block.zeros[some], block.group, block.high
            round_columns(block.work[some], factor, *grids, codes[some])

        ends = np.linspace(0, len(codes), self.threads + 1, dtype=int)
        for_each([slice(*pair) for pair in pairwise(ends)], part, self.threads)
        return codes

    def host(self, matrix: Matrix) -> npt.NDArray[np.float64]:
        """Return the matrix itself."""
        found: npt.NDArray[np.float64] = matrix
        return found


class Torch:
    """Torch tensors on one device; torch is imported when one is made."""

    def __init__(self, name: str) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.name = name

    def load(self, array: npt.NDArray[Any]) -> Matrix:
        """Return a tensor; on the processor it may be the array itself."""
        return self.torch.from_numpy(np.ascontiguousarray(array, np.float64)).to(self.name)

    def invert_small(self, matrix: Matrix) -> Matrix | None:
        """Return the upper triangular U with ``U^T U = matrix^-1``, if there is one."""
        linalg = self.torch.linalg
        lower, failed = linalg.cholesky_ex(matrix.flip(0, 1))
        if failed:
            return None
        upper = lower.flip(0, 1)
        return linalg.solve_triangular(upper, self.torch.eye(len(upper)).to(upper), upper=True)

    def round_block(self, block: Block) -> npt.NDArray[np.uint8]:
        """Round one column after another; return the codes ``(R, B)``, leave the errors."""
        work, factor = block.work, block.factor
        group = self.torch.from_numpy(block.group).to(self.name)
        scales, zeros = block.scales[:, group], block.zeros[:, group]
        codes = self.torch.empty_like(work)
        for column in range(work.shape[1]):
            scale, zero, left = scales[:, column], zeros[:, column], work[:, column]
            code = (self.torch.round(left / scale) + zero).clamp(0, block.high)
            error = (left - (code - zero) * scale) / factor[column, column]
            work[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
            work[:, column] = error
            codes[:, column] = code
        found: npt.NDArray[np.uint8] = codes.to(self.torch.uint8).cpu().numpy()
        return found

    def host(self, matrix: Matrix) -> npt.NDArray[np.float64]:
        """Return the numbers as an ndarray."""
        found: npt.NDArray[np.float64] = matrix.cpu().numpy()
        return found


def best_device() -> Device:
    """Return the GPU if torch is installed and sees one, else all threads of the processor.

    A build of torch for processors alone is not imported to ask: that takes seconds and 200 MB.
    """
    if importlib.util.find_spec("torch") is not None and not _torch_version().endswith("+cpu"):
        torch: Any = importlib.import_module("torch")
        if torch.cuda.is_available():
            return Torch("cuda")
    return Cpu(available())


def _torch_version() -> str:
    """Return what the installed package says; nothing where it came without that."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""
