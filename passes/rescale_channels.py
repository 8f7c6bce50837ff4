"""Channels of activations divided by a number each, which the weights that read them take on."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.channels import ChannelDivider, channel_scale, channels_of, is_layer
from qcompile.graph.division import KeepsBasis, Scale
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import consumers
from qcompile.remedies import Remedies, Rescaled


@dataclass(frozen=True, kw_only=True)
class RescaleChannels(GraphPass):
    """Divide a value by s along its channels, and multiply the weights that read it by s.

    SmoothQuant (arXiv:2211.10438, eq. 3) and cross-layer equalization (arXiv:1906.04721, eq. 8):
    ``x W^T = (x / s) (W s)^T``. What makes x takes the division where constants can.

    Before: ``x = LayerNormalization(a, g, b)``, ``q = MatMul(x, Wq)``, ``k = MatMul(x, Wk)``.
    After:  ``x = LayerNormalization(a, g.rescaled, b.rescaled)``, ``q = MatMul(x, Wq.rescaled)``,
    ``k = MatMul(x, Wk.rescaled)``.

    Before: ``x = Relu(Conv(a, W1, b1))``, ``y = Conv(x, W2, b2)``.
    After:  ``x = Relu(Conv(a, W1.rescaled, b1.rescaled))``, ``y = Conv(x, W2.rescaled, b2)``.

    ``qcompile.graph.channels`` knows what takes a division and what takes a factor. All readers of
    x take it. Where one cannot, or nothing before x can be divided, a value of SmoothQuant gets

    After:  ``y = MatMul(Mul(x, x.inverse_scale), W.rescaled)``

    for those of its readers that are layers, which is counted with the reason; a value to equalize
    is left, with the reason. A Clip (Relu6) is such a reason: its bound would have to differ by
    channel, and a Min with such a constant behind a Conv no longer vanishes into its rounding.

    New weights are computed while they are written. Visits: the main graph.
    """

    name: ClassVar[str] = "rescale-channels"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    remedies: Remedies = field(default=Remedies(), repr=False, compare=False)
    done: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    multiplied: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Value that a Mul divides to the reason why no constant takes the division."""

    def rewrite(self, model: ir.Model) -> bool:
        """Rescale one value after another: a weight may be divided by one and multiplied by two."""
        wanted = {n: r for n, r in self.remedies.rescaled.items() if n not in self.done}
        values = {out.name: out for node in model.graph for out in node.outputs}
        values |= {value.name: value for value in model.graph.inputs}
        divider = ChannelDivider(model)
        changed = False
        for name, rescaled in wanted.items():
            if name not in values:
                raise PlanError(f"plan: remedies: value {name} is not in the model")
            changed |= self._rescale(divider, values[name], rescaled)
            self.done.add(name)
        return changed

    def _rescale(self, divider: ChannelDivider, value: ir.Value, rescaled: Rescaled) -> bool:
        scale = _scale(value, rescaled)
        try:
            edits = divider.rescale(value, scale)
        except KeepsBasis as reason:
            if rescaled.remedy == "smoothquant":
                return self._insert_mul(divider, value, scale, str(reason))
            self.refuse(f"not equalized: {reason}")
            return False
        changed = [edit.change() for edit in edits]
        return any(changed)

    def _insert_mul(
        self, divider: ChannelDivider, value: ir.Value, scale: Scale, reason: str
    ) -> bool:
        layers = [node for node, index in consumers(value) if index == 0 and is_layer(node)]
        try:
            edits = [divider.columns(node, scale) for node in layers if node.graph is divider.graph]
        except KeepsBasis as obstacle:
            self.refuse(f"not smoothed: {obstacle}")
            return False
        if not edits:
            self.refuse("not smoothed: no layer of the main graph reads the value")
            return False
        self.refuse(f"divided by a Mul of its own: {reason}")
        self.multiplied[str(value.name)] = reason
        for edit in edits:
            edit.change()
        return divider.insert_mul(value, scale, [edit.node for edit in edits])


def _scale(value: ir.Value, rescaled: Rescaled) -> Scale:
    """Return the scale as the value's shape wants it.

    Raises:
        PlanError: It is not one positive float32 number for each channel.
    """
    numbers = rescaled.scales()
    if channels_of(value, rescaled.axis) not in (None, len(numbers)) or value.shape is None:
        raise PlanError(
            f"plan: remedies: value {value.name} has not {len(numbers)} channels on axis "
            f"{rescaled.axis}"
        )
    with np.errstate(divide="ignore", over="ignore"):
        usable = (numbers > 0) & np.isfinite(numbers) & np.isfinite(1 / numbers)
    if not usable.all():
        raise PlanError(f"plan: remedies: a scale of value {value.name} is no float32 number")
    return channel_scale(value, numbers, rescaled.axis)
