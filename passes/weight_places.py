"""Where the plan stores weights in few bits: what the passes that write them in agree on."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.edit import Names, add_constant
from qcompile.graph.walk import all_nodes, is_constant, is_op
from qcompile.numerics.groups import SolvedWeight
from qcompile.plan import Plan, WeightForm, WeightPlan

Load = Callable[[str], SolvedWeight]
Refuse = Callable[[str], None]

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def unsolved(name: str) -> SolvedWeight:
    """Stand for the solved weights where there are none.

    Raises:
        PlanError: Always.
    """
    raise PlanError(f"plan: weight {name} has not been solved")


@dataclass(frozen=True)
class Place:
    """A node whose weight is stored in few bits, as rows ``(R, K)``: ``y = x @ rows.T + bias``.

    Attributes:
        node: A MatMul, Gemm or Conv.
        weight: MatMul ``(K, R)``, Gemm ``(K, R)`` or ``(R, K)``, Conv ``(R, I, kh, kw)``.
        plan: The plan's entry of the weight.
        by_rows: The weight lies in memory as its rows.
    """

    node: ir.Node
    weight: ir.Value
    plan: WeightPlan
    by_rows: bool

    @property
    def x(self) -> ir.Value:
        """What the node reads now."""
        value = self.node.inputs[0]
        assert value is not None  # noqa: S101 - these operators have it
        return value

    @property
    def name(self) -> str:
        """The weight's name."""
        return str(self.weight.name)

    @property
    def shape(self) -> list[int]:
        """The weight's shape in the graph."""
        assert self.weight.const_value is not None  # noqa: S101 - a constant
        return list(self.weight.const_value.shape.numpy())

    @property
    def dtype(self) -> ir.DataType:
        """What the node computes in."""
        assert self.weight.const_value is not None  # noqa: S101
        return self.weight.const_value.dtype

    @property
    def rows(self) -> int:
        """R, the output channels."""
        return self.shape[0 if self.by_rows else 1]

    @property
    def columns(self) -> int:
        """K, the weights that each output sums over."""
        return math.prod(self.shape) // self.rows

    def load(self, solved: Load) -> SolvedWeight:
        """Return the solved weight.

        Raises:
            PlanError: It is not in the plan's format, or not of the weight's shape.
        """
        weight = solved(self.name)
        if weight.format != self.plan.format() or weight.codes.shape != (self.rows, self.columns):
            raise PlanError(
                f"plan: the codes of weight {self.name} are not in the planned format: solve again"
            )
        if (weight.order is not None) != self.plan.permuted:
            raise PlanError(f"plan: weight {self.name}: permuted does not fit its codes")
        return weight

    def load_scaled(self, solved: Load) -> SolvedWeight:
        """Return the solved weight, whose input carries the input scale.

        Raises:
            PlanError: As ``load``, or the input scale has not been folded.
        """
        weight = self.load(solved)
        if weight.input_scale is not None:
            raise PlanError(f"weight {self.name} has an input scale that was not folded")
        return weight


def places(
    model: ir.Model, plan: Plan, refuse: Refuse, form: WeightForm | None = None
) -> list[Place]:
    """Return the places in graph order; a planned node that cannot be one is refused.

    Args:
        model: The graph.
        plan: The plan.
        refuse: Hears why a node is none.
        form: Leave out, unrefused, weights of another form.

    Raises:
        PlanError: A node's weight has no entry in the plan.
    """
    found: list[Place] = []
    layout: dict[ir.Value, bool] = {}
    for node, owner in all_nodes(model):
        if plan.precision(node.name or "") != "weight-only" or _is_other(node, plan, form):
            continue
        reason = "it is in a subgraph" if owner is not None else _node_refusal(node)
        if not reason:
            place = _place(node, plan)
            by_rows = layout.setdefault(place.weight, place.by_rows)
            mixed = "its weight is read by rows and by columns"
            reason = _format_refusal(place) or mixed * (by_rows != place.by_rows)
            if not reason:
                found.append(place)
        if reason:
            refuse(reason)
    return found


def _is_other(node: ir.Node, plan: Plan, form: WeightForm | None) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    entry = None if weight is None else plan.weights.get(weight.name or "")
    return form is not None and entry is not None and entry.form != form


def _place(node: ir.Node, plan: Plan) -> Place:
    weight = node.inputs[1]
    assert weight is not None  # noqa: S101 - it is a constant
    entry = plan.weights.get(weight.name or "")
    if entry is None:
        raise PlanError(f"plan: weight {weight.name} of node {node.name} has no entry")
    by_rows = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
    return Place(node, weight, entry, by_rows)


def _node_refusal(node: ir.Node) -> str:
    if not is_op(node, "MatMul", "Gemm", "Conv"):
        return f"{node.op_type} has no form with few bits"
    weight = node.inputs[1]
    tensor = weight.const_value if weight is not None and is_constant(weight) else None
    if weight is None or tensor is None or not weight.is_initializer() or not tensor.size:
        return "its weight is not a constant"
    if tensor.dtype not in FLOATS:
        return f"no runtime takes few bits in a graph of {str(tensor.dtype).lower()}"
    if node.op_type != "Conv" and len(tensor.shape) != 2:
        return "its weight is not a matrix"
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return "" if plain and not node.attributes.get_int("transA", 0) else "Gemm with a factor"


def _format_refusal(place: Place) -> str:
    plan = place.plan
    if place.dtype is ir.DataType.FLOAT16 and plan.scale_type == "float32":
        return "scales in float32 would be rounded in a float16 graph"
    if place.node.op_type != "Conv":
        return ""
    if plan.form == "nbits":
        return "Conv has no operator with few bits"
    if plan.group_size:
        return "groups of a convolution's weight do not lie along one axis"
    if plan.permuted or plan.input_scaled:
        return "a convolution cannot reorder or scale the columns that it sums over"
    return ""


@dataclass(frozen=True)
class Permuted:
    """Values with their last axis in the order of stored columns, made once for each order."""

    graph: ir.Graph
    names: Names
    _made: dict[tuple[ir.Value, bytes], ir.Value] = field(default_factory=dict)

    def value(self, place: Place, solved: Load) -> ir.Value:
        """Return what the node shall read, ``(..., K)``."""
        if not place.plan.permuted:
            return place.x
        order = place.load(solved).order
        assert order is not None  # noqa: S101 - load has checked it
        key = (place.x, order.tobytes())
        if key not in self._made:
            self._made[key] = self._gather(place, order)
        return self._made[key]

    def _gather(self, place: Place, order: np.ndarray) -> ir.Value:
        x = place.x
        indices = add_constant(self.graph, self.names.fresh(x, "order"), order.astype(np.int64))
        node = ir.node(
            "Gather", [x, indices], attributes={"axis": -1}, name=self.names.fresh(x, "Gather")
        )
        result = node.outputs[0]
        result.name = self.names.fresh(x, "permuted")
        result.type, result.shape = x.type, x.shape
        self.graph.insert_before(place.node, node)
        return result
