"""Rounding that passes gradients on: what prepared models hold in place of Q and DQ.

Forward: ``x' = s (clip(round(x / s) + z, low, high) - z)``. Backward: the rounding is passed
straight through, what was clipped gets no gradient (Jacob et al. 2018, arXiv:1712.05877). A learned
scale gets the gradient of Esser et al. 2020 (LSQ, arXiv:1902.08153, equations 3 and 5, section
2.2): ``g * (round(x / s) - x / s)`` inside the range and ``g`` times the outermost code, less the
zero point, beyond, with ``g = 1 / sqrt(N * Q)``; N is the weights that share the scale, or the
features of an activation, Q the largest code.
"""

from typing import Any, Literal

import torch
from torch import nn
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from qcompile.numerics.grids import CODE_RANGE, TINY

ScaleType = Literal["float32", "float16", "bfloat16"]
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_LEAST = {"float16": 2.0**-17}

RATIOS = tuple(0.98**k for k in range(50))
"""Shares of the largest weight that the search for the least squared error tries: 1 to 0.37."""


class FakeQuant(FakeQuantizeBase):
    """One grid for all that goes through; the base of what rounds activations and weights.

    Attributes:
        scale: float32 ``(1,)``, or ``(C,)`` along ``ch_axis``; a parameter where it is learned.
        zero_point: int32, shaped like the scale; never learned.
        quant_min: Lowest code.
        quant_max: Highest code.
        dtype: Of the codes: torch.uint8 or torch.int8.
    """

    def __init__(
        self,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        codes: tuple[int, int],
        *,
        learned: bool,
        scale_type: ScaleType,
    ) -> None:
        super().__init__()
        self.quant_min, self.quant_max = codes
        self.dtype = torch.int8 if codes[0] < 0 else torch.uint8
        self.learned, self.scale_type = learned, scale_type
        if learned:
            self.scale = nn.Parameter(scale.clone())
        else:
            self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.to(torch.int32))
        self.is_dynamic = False

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point as they are stored: positive, in the type of scales."""
        return stored(self.scale.detach(), self.scale_type), self.zero_point

    def _usable_scale(self) -> torch.Tensor:
        """Return the scale as it is stored; its rounding to a half is passed straight through."""
        with torch.no_grad():
            self.scale.abs_().clamp_(min=TINY)
        return self.scale + (stored(self.scale.detach(), self.scale_type) - self.scale.detach())


class ActivationFakeQuant(FakeQuant):
    """Rounds activations to one grid, which was calibrated, and is learned from there if asked."""

    qscheme = torch.per_tensor_affine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round a tensor of any shape; its first axis is the batch."""
        if not self.fake_quant_enabled[0]:
            return x
        zero = int(self.zero_point)
        ends = self.quant_min - zero, self.quant_max - zero
        if not self.learned:
            return rounding(x, stored(self.scale, self.scale_type), *ends)
        features = max(x.numel() // max(x.shape[0], 1), 1) if x.dim() else 1
        factor = gradient_scale(features, self.quant_max)
        return rounding(x, self._usable_scale(), *ends, factor)


class WeightFakeQuant(FakeQuant):
    """Rounds weights symmetrically, one scale a channel.

    Without learning, the scale follows the weights: a fixed share of the largest of each channel,
    that is all of it at 8 bits, and the share of least squared error at 4.

    Attributes:
        bias: Rounds the bias that goes with the weight, where the target has codes for it.
    """

    qscheme = torch.per_channel_symmetric

    def __init__(
        self,
        weight: torch.Tensor,
        axis: int,
        code_max: int,
        *,
        learned: bool,
        scale_type: ScaleType,
    ) -> None:
        weight = weight.detach()
        share = best_share(weight, axis, code_max) if code_max < 63 else torch.ones(())
        share = share.expand(weight.shape[axis]).clone()
        scale = channel_scale(weight, axis, code_max, share)
        zero = torch.zeros_like(scale)
        super().__init__(scale, zero, (-code_max, code_max), learned=learned, scale_type=scale_type)
        self.register_buffer("share", share)
        self.ch_axis = axis
        self.bias: BiasFakeQuant | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round a weight of the shape that the module was made for."""
        if not self.fake_quant_enabled[0]:
            return x
        ends = self.quant_min, self.quant_max
        if self.learned:
            factor = gradient_scale(x.numel() // x.shape[self.ch_axis], self.quant_max)
            shape = [-1 if axis == self.ch_axis else 1 for axis in range(x.dim())]
            scale = self._usable_scale().reshape(shape)
            return rounding(x, scale, *ends, factor)
        self.scale.copy_(channel_scale(x.detach(), self.ch_axis, self.quant_max, self.share))
        scale = stored(self.scale, self.scale_type)
        return torch.fake_quantize_per_channel_affine(
            x, scale, self.zero_point, self.ch_axis, *ends
        )


class BiasFakeQuant(FakeQuantizeBase):
    """Rounds a bias to int32 codes whose step is that of the products that it is added to.

    With codes of 4 bits these steps are coarse enough to matter.
    """

    qscheme = torch.per_channel_symmetric
    dtype = torch.int32
    quant_min, quant_max = CODE_RANGE["int32"]
    ch_axis = 0
    is_dynamic = False

    def __init__(self, data: FakeQuant, weight: FakeQuant) -> None:
        super().__init__()
        self.__dict__["sources"] = data, weight  # they have their own place in the model

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scale of the input times those of the weight, and zeros."""
        data, weight = (source.calculate_qparams()[0] for source in self.__dict__["sources"])
        return data * weight, torch.zeros_like(weight, dtype=torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round a bias ``(C,)``; gradients pass straight through."""
        if not self.fake_quant_enabled[0]:
            return x
        scale, _ = self.calculate_qparams()
        return x + ((x.detach() / scale).round() * scale - x.detach())


class _Rounding(torch.autograd.Function):
    """Rounds to multiples of a scale; gradients as in equations 3 and 5 of the paper.

    torch's own operator takes several times as long on CPUs, and multiplies by the inverse of the
    scale, by which the engine divides.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch names no type)
        x: torch.Tensor,
        scale: torch.Tensor,
        low: int,
        high: int,
        factor: float,
    ) -> torch.Tensor:
        ratio = x / scale
        ctx.save_for_backward(ratio)
        ctx.low, ctx.high, ctx.factor, ctx.shape = low, high, factor, scale.shape
        return ratio.clamp(low, high).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        (ratio,), low, high = ctx.saved_tensors, ctx.low, ctx.high
        inside = ((ratio > low) & (ratio < high)).to(ratio.dtype)
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = ratio.clamp(low, high).round_().addcmul_(ratio, inside, value=-1)
            of_scale = slope.mul_(gradient).sum_to_size(ctx.shape) * ctx.factor
        return inside.mul_(gradient), of_scale, None, None, None


def rounding(
    x: torch.Tensor, scale: torch.Tensor, low: int, high: int, factor: float = 1.0
) -> torch.Tensor:
    """Round to multiples of a scale, which may be learned.

    Args:
        x: Any shape.
        scale: One, or one a channel; broadcast against ``x``.
        low: Lowest multiple.
        high: Highest.
        factor: On the gradient of the scale.
    """
    return _Rounding.apply(x, scale, low, high, factor)


def gradient_scale(count: int, code_max: int) -> float:
    """Return LSQ's factor on the gradient of a scale: ``1 / sqrt(N * Q)``."""
    return float((max(count, 1) * code_max) ** -0.5)


def stored(scale: torch.Tensor, scale_type: ScaleType) -> torch.Tensor:
    """Return scales as the engine stores them, as float32: ``numerics.grids.rounded_scales``."""
    if scale_type == "float32":
        return scale
    half = _HALVES[scale_type]
    rounded = scale.clamp(min=_LEAST.get(scale_type, TINY)).to(half).float()
    return torch.where(torch.isfinite(rounded), rounded, scale)


def channel_scale(
    weight: torch.Tensor, axis: int, code_max: int, share: torch.Tensor
) -> torch.Tensor:
    """Return the step of each channel's grid, as ``numerics.grids.symmetric_scales`` has it.

    Args:
        weight: Any shape.
        axis: Of the channels.
        code_max: Largest code.
        share: float32 ``(C,)``: of the largest weight of a channel that its grid reaches to.
    """
    largest = weight.abs().movedim(axis, 0).flatten(1).amax(1) * share
    scale = largest / code_max
    most = scale.max()
    spare = most if most >= TINY else torch.ones_like(most)
    return torch.where(scale < TINY, spare, scale)


def best_share(weight: torch.Tensor, axis: int, code_max: int) -> torch.Tensor:
    """Return, for each channel, the share of its largest weight with the least squared error."""
    rows = weight.movedim(axis, 0).flatten(1)
    largest = rows.abs().amax(1, keepdim=True).clamp(min=TINY)
    best = torch.ones(rows.shape[0])
    least = torch.full((rows.shape[0],), float("inf"))
    for ratio in RATIOS:
        step = largest * ratio / code_max
        codes = (rows / step).round().clamp(-code_max, code_max)
        error = (codes * step - rows).square().sum(1)
        better = error < least
        best, least = best.where(~better, torch.tensor(ratio)), torch.minimum(error, least)
    return best
