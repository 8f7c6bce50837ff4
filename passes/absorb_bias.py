"""Large biases moved through a Relu into the layers behind it."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.bias_shift import KeepsMean, Shift, bias_of, find_shift, returned
from qcompile.graph.division import input_of, replace_constant
from qcompile.graph.edit import Names, add_constant
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.remedies import Remedies


@dataclass(frozen=True, kw_only=True)
class AbsorbBias(GraphPass):
    """Take a number c for each channel off what a Relu makes (arXiv:1906.04721, section 4.1.3).

    ``Relu(p) - c = Relu(p - c)`` wherever p is at least c, as it nearly always is for c three
    deviations below p's mean. The value's range shrinks by c; the next layer adds ``W c``.

    Before: ``x = Relu(Conv(a, W1, b1))``, ``y = Conv(x, W2, b2)``.
    After:  ``x = Relu(Conv(a, W1, b1 - c))``, ``y = Conv(x, W2, b2 + sum(W2 c))``.

    The same with Gemm. A layer without a bias gets one. Visits: the main graph. Leaves, with the
    reason: values that others read, or a Conv that pads them with zeros, for a padded zero stands
    for 0 and not for -c.
    """

    name: ClassVar[str] = "absorb-bias"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    remedies: Remedies = field(default=Remedies(), repr=False, compare=False)
    done: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Find every shift, then move the biases."""
        wanted = {n: s for n, s in self.remedies.shifted.items() if n not in self.done}
        values = {out.name: out for node in model.graph for out in node.outputs}
        found = []
        for name, shifted in wanted.items():
            if name not in values:
                raise PlanError(f"plan: remedies: no node of the graph makes value {name}")
            try:
                found.append((find_shift(values[name]), shifted.shifts()))
            except KeepsMean as reason:
                self.refuse(str(reason))
        for shift, amounts in found:
            if len(amounts) != shift.channels:
                raise PlanError(
                    f"plan: remedies: value {shift.value.name} has {shift.channels} channels, not "
                    f"{len(amounts)}"
                )
        names = Names(model)
        for shift, amounts in found:
            _absorb(model.graph, names, shift, amounts.astype(np.float64))
        self.done.update(wanted)
        return bool(found)


def _absorb(graph: ir.Graph, names: Names, shift: Shift, amounts: np.ndarray) -> None:
    _add_to_bias(graph, names, shift.first, -amounts)
    for node in shift.readers:
        _add_to_bias(graph, names, node, returned(node, amounts))


def _add_to_bias(graph: ir.Graph, names: Names, node: ir.Node, amounts: np.ndarray) -> None:
    weight = node.inputs[1]
    assert weight is not None and weight.dtype is not None  # noqa: S101, PT018 - a layer's
    bias = (bias_of(node) + amounts).astype(weight.dtype.numpy())
    old = input_of(node, 2)
    name = names.fresh(weight, "bias") if old is None else names.fresh(old, "absorbed")
    node.resize_inputs(3)
    replace_constant(node, 2, add_constant(graph, name, bias))
