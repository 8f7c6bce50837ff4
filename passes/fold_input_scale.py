"""The input scales of weights that were solved with them, folded into what makes the input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.division import Divider, Edit, KeepsBasis, Scale
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.numerics.groups import SolvedWeight
from qcompile.passes.insert_qdq import NO_PLAN
from qcompile.passes.weight_places import Load, Place, places, unsolved
from qcompile.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FoldInputScale(GraphPass):
    """Divide what weight-only nodes read by the input scale s of their weights (AWQ).

    AWQ (arXiv:2306.00978, section 3.2) stores ``W * s``, so that ``x / s`` must be multiplied with
    it. The division costs nothing where a constant before it can take it:

    Before: ``x = Mul(n, gamma)``, ``y = MatMul(x, W)``.
    After:  ``x = Mul(n, gamma.divided)``; ``W`` is replaced by its codes afterwards.

    The same for the scale and shift of a normalization, and for the rows and the bias of the linear
    layer that makes x, or a factor of x (the up projection of SwiGLU), also through Relu. The rows
    of a layer that is stored as codes itself are divided in its scales: ``folded`` gives the solved
    weights as the graph needs them after this pass. Where no constant can take it:

    After:  ``y = MatMul(Mul(x, x.input_scale), W)``.

    A constant is divided in its own type: one rounding. It may take the division only if all
    readers of the values between read x in the same basis. Scales in float16 are not divided: those
    solved for are the ones stored; neither is a float16 weight.

    The pass changes results alone, and keeps them together with the insertion of the codes.
    Visits: the main graph. Its places are those of the passes that insert codes.
    """

    name: ClassVar[str] = "fold-input-scale"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INPUTS_SCALED})
    effect: ClassVar[Effect] = Effect.LOSSY

    plan: Plan = field(default=NO_PLAN, repr=False, compare=False)
    solved: Load = field(default=unsolved, repr=False, compare=False)
    done: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    divisors: dict[str, Scale] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Find what can take each division, then divide."""
        everywhere = places(model, self.plan, lambda _: None)
        groups = self._groups(everywhere)
        finder = _Finder(model, self.plan, everywhere, self.divisors)
        edits = [edit for group in groups for edit in self._edits(finder, group)]
        changed = [edit() for edit in edits]
        self.done.update(place.name for group in groups for place in group.places)
        return any(changed)

    def folded(self, name: str) -> SolvedWeight:
        """Return a solved weight as the graph needs it: rows divided, the input scale taken off."""
        weight = self.solved(name)
        if name in self.divisors:
            scales = weight.scales / self.divisors[name][:, None]
            weight = replace(weight, scales=scales.astype(np.float32))
        return replace(weight, input_scale=None) if name in self.done else weight

    def _groups(self, everywhere: Sequence[Place]) -> list["_Group"]:
        """Return the places that read one value in one basis, in graph order."""
        groups: dict[tuple[ir.Value, bytes], _Group] = {}
        for place in everywhere:
            if place.plan.input_scaled and place.name not in self.done:
                scale = _input_scale(place, self.solved)
                key = (place.x, scale.tobytes())
                groups.setdefault(key, _Group(place.x, scale, [])).places.append(place)
        return list(groups.values())

    def _edits(self, finder: "_Finder", group: "_Group") -> list[Callable[[], bool]]:
        """Return what divides the value of a group; a Mul is counted with the reason."""
        try:
            return [edit.change for edit in finder.folds(group)]
        except KeepsBasis as reason:
            self.refuse(f"divided by a Mul of its own: {reason}")
            readers = [place.node for place in group.places]
            return [lambda: finder.insert_mul(group.x, group.scale, readers)]


@dataclass(frozen=True)
class _Group:
    """Places that read one value in one basis; ``scale`` is float32 ``(K,)``."""

    x: ir.Value
    scale: Scale
    places: list[Place]


def _input_scale(place: Place, solved: Load) -> Scale:
    """Return the input scale of a weight that is planned with one, ``(K,)``, positive."""
    scale = place.load(solved).input_scale
    limit = np.finfo(place.dtype.numpy()).max
    if (
        scale is None
        or scale.shape != (place.columns,)
        or not ((scale > 1 / limit) & (scale < limit)).all()
    ):
        raise PlanError(f"plan: weight {place.name}: the input scale of its codes is unusable")
    return scale


class _Finder(Divider):
    """Finds the edits that divide a value by a scale ``(K,)`` along its last axis."""

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        everywhere: Sequence[Place],
        divisors: dict[str, Scale],
    ) -> None:
        super().__init__(model)
        self.plan = plan
        self.places = {place.node: place for place in everywhere}
        self.divisors = divisors

    def folds(self, group: _Group) -> list[Edit]:
        """Return the edits of constants that divide the value of a group.

        Raises:
            KeepsBasis: There are none.
        """
        nodes = {place.node for place in group.places}
        if any(use.node not in nodes or use.idx != 0 for use in group.x.uses()):
            raise KeepsBasis("others read the same value")
        if group.x.is_graph_output():
            raise KeepsBasis("the value is an output of the model")
        return self.divide(group.x, group.scale)

    def linear(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Return the edits of a MatMul or Gemm, which may be stored as codes itself."""
        place = self.places.get(node)
        if place is None and self.plan.precision(node.name or "") != "weight-only":
            return super().linear(node, scale)
        bias = self.bias(node, scale)
        if place is None:
            raise KeepsBasis("the layer before it is planned and was refused")
        return [self._codes(place, scale), *bias]

    def _codes(self, place: Place, scale: Scale) -> Edit:
        """Divide a linear layer that will be stored as codes: in the scales of its rows."""
        if place.plan.scale_type != "float32":
            raise KeepsBasis("the layer before it has scales in float16")
        if place.rows != len(scale) or len(place.weight.uses()) > 1:
            raise KeepsBasis("the layer before it shares its weight")

        def edit() -> bool:
            self.divisors[place.name] = scale
            return False  # solved scales are outside the graph

        return Edit(place.node, 1, edit)
