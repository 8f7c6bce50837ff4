"""The input scales of weights that were solved with them, folded into what makes the input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.edit import Names, add_constant, add_initializer, lazy_tensor
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, is_constant, only_consumer
from qcompile.numerics.groups import SolvedWeight
from qcompile.passes.insert_qdq import NO_PLAN
from qcompile.passes.weight_places import Load, Place, places, unsolved
from qcompile.plan import Plan

Scale = npt.NDArray[np.float32]
Edit = Callable[[], bool]
"""Divides something; returns whether the graph changed, for solved scales are outside it."""

_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Operator to the inputs that scale and shift what it normalized."""

_HOMOGENEOUS = ("Relu", "LeakyRelu")
"""Operators with f(x / s) = f(x) / s for positive s."""


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

    def _edits(self, finder: "_Finder", group: "_Group") -> list[Edit]:
        """Return what divides the value of a group; a Mul is counted with the reason."""
        try:
            return finder.folds(group)
        except _KeepsBasis as reason:
            self.refuse(f"divided by a Mul of its own: {reason}")
            return [lambda: finder.insert_mul(group)]


class _KeepsBasis(Exception):  # noqa: N818 - a reason
    """A value that cannot be divided by changing constants; the message says why."""


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


class _Finder:
    """Finds the edits that divide a value by a scale ``(K,)`` along its last axis."""

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        everywhere: Sequence[Place],
        divisors: dict[str, Scale],
    ) -> None:
        self.graph = model.graph
        self.names = Names(model)
        self.plan = plan
        self.places = {place.node: place for place in everywhere}
        self.divisors = divisors

    def folds(self, group: _Group) -> list[Edit]:
        """Return the edits of constants that divide the value of a group.

        Raises:
            _KeepsBasis: There are none.
        """
        nodes = {place.node for place in group.places}
        if any(use.node not in nodes or use.idx != 0 for use in group.x.uses()):
            raise _KeepsBasis("others read the same value")
        if group.x.is_graph_output():
            raise _KeepsBasis("the value is an output of the model")
        return self._value(group.x, group.scale)

    def insert_mul(self, group: _Group) -> bool:
        """Divide the value by a node of its own."""
        x, first = group.x, group.places[0]
        inverse = (1 / group.scale.astype(np.float64)).astype(first.dtype.numpy())
        constant = add_constant(self.graph, self.names.fresh(x, "inverse_scale"), inverse)
        node = ir.node("Mul", [x, constant], name=self.names.fresh(x, "Mul"))
        node.outputs[0].name = self.names.fresh(x, "scaled")
        node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
        self.graph.insert_before(first.node, node)
        for place in group.places:
            place.node.replace_input_with(0, node.outputs[0])
        return True

    def _value(self, value: ir.Value, scale: Scale) -> list[Edit]:
        """Return the edits for a value that nobody else reads."""
        node = value.producer()
        if node is None or node.graph is not self.graph or value is not node.outputs[0]:
            raise _KeepsBasis("no node of the graph makes the value")
        if node.domain not in ("", "com.microsoft"):
            raise _KeepsBasis(f"{node.domain}.{node.op_type} makes it")
        if node.op_type in _NORMS:
            shifted = [i for i in _NORMS[node.op_type] if _input(node, i) is not None]
            return [self._constant(node, index, scale) for index in shifted]
        if node.op_type in ("MatMul", "Gemm"):
            return self._linear(node, scale)
        if node.op_type == "Mul":
            return self._factor(node, scale)
        if node.op_type == "Add":
            return self._terms(node, scale)
        if node.op_type in _HOMOGENEOUS:
            return self._operand(node, 0, scale)
        raise _KeepsBasis(f"{node.op_type} makes it")

    def _operand(self, node: ir.Node, index: int, scale: Scale) -> list[Edit]:
        """Return the edits that divide one input of a node, constant or not."""
        value = _input(node, index)
        if value is None or is_constant(value):
            return [self._constant(node, index, scale)]
        if only_consumer(value) is not node:
            raise _KeepsBasis("others read a value before it")
        return self._value(value, scale)

    def _factor(self, node: ir.Node, scale: Scale) -> list[Edit]:
        """Return the edits of the first factor that can be divided."""
        reasons = []
        for index in (1, 0):
            try:
                return self._operand(node, index, scale)
            except _KeepsBasis as reason:
                reasons.append(str(reason))
        raise _KeepsBasis(reasons[0])

    def _terms(self, node: ir.Node, scale: Scale) -> list[Edit]:
        if not any(is_constant(value) for value in node.inputs):
            raise _KeepsBasis("a sum of values makes it")
        return [edit for index in (0, 1) for edit in self._operand(node, index, scale)]

    def _linear(self, node: ir.Node, scale: Scale) -> list[Edit]:
        bias = [self._constant(node, 2, scale)] if _input(node, 2) is not None else []
        place = self.places.get(node)
        if place is None and self.plan.precision(node.name or "") == "weight-only":
            raise _KeepsBasis("the layer before it is planned and was refused")
        return [self._rows(node, scale) if place is None else self._codes(place, scale), *bias]

    def _codes(self, place: Place, scale: Scale) -> Edit:
        """Divide a linear layer that will be stored as codes: in the scales of its rows."""
        if place.plan.scale_type != "float32":
            raise _KeepsBasis("the layer before it has scales in float16")
        if place.rows != len(scale) or len(place.weight.uses()) > 1:
            raise _KeepsBasis("the layer before it shares its weight")

        def edit() -> bool:
            self.divisors[place.name] = scale
            return False

        return edit

    def _rows(self, node: ir.Node, scale: Scale) -> Edit:
        """Divide a linear layer in float: the rows of its weight."""
        weight = node.inputs[1]
        source = None if weight is None or not is_constant(weight) else weight.const_value
        if weight is None or source is None or source.dtype is not ir.DataType.FLOAT:
            raise _KeepsBasis("a product makes it that has no weight in float32")
        shape = source.shape.numpy()
        axis = 0 if node.attributes.get_int("transB", 0) else -1
        if len(shape) != 2 or shape[axis] != len(scale):
            raise _KeepsBasis("a product makes it that has no matrix of weights")
        by_row = scale[:, None] if axis == 0 else scale

        def edit() -> bool:
            name = self.names.fresh(weight, "divided")
            tensor = lazy_tensor(name, source.dtype, shape, lambda: source.numpy() / by_row)
            return _replace(node, 1, add_initializer(self.graph, tensor))

        return edit

    def _constant(self, node: ir.Node, index: int, scale: Scale) -> Edit:
        """Divide a constant that has a number for each element of the last axis."""
        value = _input(node, index)
        array = constant(value, max_elements=len(scale))
        if value is None or array is None or array.shape[-1:] != scale.shape:
            raise _KeepsBasis("what scales it before is no constant with a number a column")
        with np.errstate(over="ignore"):
            divided = (array.astype(np.float64) / scale).astype(array.dtype)
        if not np.isfinite(divided).all():
            raise _KeepsBasis(f"a constant before it would leave {array.dtype}")

        def edit() -> bool:
            name = self.names.fresh(value, "divided")
            return _replace(node, index, add_constant(self.graph, name, divided))

        return edit


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _replace(node: ir.Node, index: int, new: ir.Value) -> bool:
    """Let a node read another constant; the old one goes if nobody reads it."""
    old = node.inputs[index]
    node.replace_input_with(index, new)
    if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
        new.graph.initializers.pop(str(old.name))  # type: ignore[union-attr]
    return True
