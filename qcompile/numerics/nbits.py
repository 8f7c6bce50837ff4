"""Codes, scales and zero points in the bytes that ``com.microsoft::MatMulNBits`` reads.

Each row (output channel) is cut into blocks of ``block_size`` columns, a power of two from 16 to
256; a block has one scale and one zero point. Codes of 2 and 4 bits lie several to a byte, the
first in the lowest bits; so do the zero points of a row. Without zero points the operator takes
``2**(bits - 1)``. It has no 3-bit form: 3-bit codes are stored in 4 bits.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.errors import PlanError
from qcompile.numerics.groups import SolvedWeight, WeightFormat

Bytes = npt.NDArray[np.uint8]

BLOCK_SIZES = (256, 128, 64, 32, 16)

_WHOLE_ROW = 128
"""Block size for rows that are one group: half the scales of 64, and activations that are rounded
block by block (accuracy level 4) keep more than with 256."""


@dataclass(frozen=True)
class PackedWeight:
    """The constants of one MatMulNBits node.

    Attributes:
        bits: 2, 4 or 8: the node's ``bits``.
        block_size: The node's ``block_size``.
        columns: The node's ``K``.
        codes: uint8 ``(N, blocks, block_size * bits / 8)``: its input B.
        scales: ``(N, blocks)`` of the format's scale type.
        zeros: uint8 ``(N, ceil(blocks * bits / 8))``; None: the operator's default.
    """

    bits: int
    block_size: int
    columns: int
    codes: Bytes
    scales: npt.NDArray[np.floating]
    zeros: Bytes | None

    def values(self) -> npt.NDArray[np.float32]:
        """Return what the bytes stand for, ``(N, K)``, computed in float32."""
        codes = _unpacked(self.codes.reshape(len(self.codes), -1), self.bits)[:, : self.columns]
        found = codes.astype(np.float32)
        block = np.arange(self.columns) // self.block_size
        if self.zeros is None:
            found -= np.float32(1 << (self.bits - 1))
        else:
            found -= _unpacked(self.zeros, self.bits)[:, block]
        found *= self.scales[:, block]
        return found


def block_size(format: WeightFormat, columns: int) -> int:  # noqa: A002 - as SolvedWeight
    """Return the size of the operator's blocks: the largest that divides the groups.

    Args:
        format: The format; where its groups are larger than blocks their scale is repeated.
        columns: K.

    Raises:
        PlanError: For groups that are no multiple of 16.
    """
    if not format.group_size:
        return next((size for size in (16, 32, 64) if size >= columns), _WHOLE_ROW)
    for size in BLOCK_SIZES:
        if format.group_size % size == 0:
            return size
    raise PlanError(
        f"groups of {format.group_size} do not fit MatMulNBits: use a multiple of 16, or 0"
    )


def storage_bits(format: WeightFormat) -> int:  # noqa: A002
    """Return the bits that a code takes in the operator's bytes."""
    return 4 if format.bits == 3 else format.bits


def pack(weight: SolvedWeight) -> PackedWeight:
    """Pack a weight, columns in stored order.

    Raises:
        PlanError: For groups that are no multiple of 16.
    """
    rows, columns = weight.codes.shape
    size, bits = block_size(weight.format, columns), storage_bits(weight.format)
    blocks = -(-columns // size)
    group = np.arange(blocks) * size // (weight.format.group_size or columns)
    lifted = (1 << (bits - 1)) - weight.format.middle if weight.format.symmetric else 0
    zeros = weight.zeros[:, group] + np.uint8(lifted)
    codes = np.empty((rows, blocks * size), np.uint8)
    np.add(weight.codes, np.uint8(lifted), out=codes[:, :columns])
    codes[:, columns:] = zeros[:, -1:]  # stands for 0
    return PackedWeight(
        bits,
        size,
        columns,
        _packed(codes, bits).reshape(rows, blocks, -1),
        weight.scales[:, group],
        None if weight.format.symmetric else _packed(zeros, bits),
    )


def _packed(codes: Bytes, bits: int) -> Bytes:
    """Pack each row of codes into bytes, the first in the lowest bits."""
    each = 8 // bits
    short = -codes.shape[1] % each
    if short:
        codes = np.pad(codes, ((0, 0), (0, short)))
    packed = codes[:, ::each].copy()
    for place in range(1, each):
        packed |= codes[:, place::each] << np.uint8(bits * place)
    return packed


def _unpacked(packed: Bytes, bits: int) -> Bytes:
    """Return the codes of each row of bytes, one to a byte."""
    each = 8 // bits
    codes = np.empty((len(packed), packed.shape[1] * each), np.uint8)
    for place in range(each):
        codes[:, place::each] = (packed >> np.uint8(bits * place)) & np.uint8((1 << bits) - 1)
    return codes
