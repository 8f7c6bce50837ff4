"""Pass: correct bias."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.bias_place import BiasPlace, NoBias, bias_place
from qcompile.graph.edit import Names, add_constant, drop_unread
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant
from qcompile.remedies import Remedies


@dataclass(frozen=True, kw_only=True)
class CorrectBias(GraphPass):
    """Add the plan's corrections to biases, so that rounding does not move mean outputs.

    Nagel et al. 2019, arXiv:1906.04721, section 4.2.

    Before: ``y = Conv(x, W, b)``, or ``y = Add(MatMul(x, W), b)``.
    After:  the same with ``b.corrected``, b + c. A Conv or Gemm without b gets ``<node>.bias``.
    Visits: the main graph. Leaves: nodes without a bias of their own, one number a channel.
    """

    name: ClassVar[str] = "correct-bias"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    remedies: Remedies = field(default_factory=Remedies, repr=False, compare=False)
    done: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Find the places, then change the constants."""
        wanted = {n: c for n, c in self.remedies.corrected.items() if n not in self.done}
        found = []
        for node in model.graph:
            correction = wanted.get(node.name or "")
            place = self._place(node) if correction is not None else None
            if correction is None or place is None:
                continue
            if len(correction.bias) != place.channels:
                raise PlanError(
                    f"plan: remedies: node {node.name} has {place.channels} channels, not "
                    f"{len(correction.bias)}"
                )
            found.append((place, correction.values()))
        names = Names(model)
        for place, values in found:
            _add(model.graph, place, values, place.fresh_name(names))
        self.done.update(wanted)
        return bool(found)

    def _place(self, node: ir.Node) -> BiasPlace | None:
        try:
            return bias_place(node)
        except NoBias as reason:
            self.refuse(str(reason))
            return None


def _add(graph: ir.Graph, place: BiasPlace, values: np.ndarray, name: str) -> None:
    old = constant(place.bias)
    added = values if old is None else old + values.astype(old.dtype).reshape(old.shape)
    bias = add_constant(graph, name, added)
    if len(place.node.inputs) <= place.index:
        place.node.resize_inputs(place.index + 1)
    place.node.replace_input_with(place.index, bias)
    if place.bias is not None:
        drop_unread(place.bias)
