"""A plan again, with more nodes in float: every grid and every solved code stays as it was."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from qcompile.numerics.grids import Codes
from qcompile.plan import FLOATS, Plan, TensorPlan
from qcompile.planning.plan import Planner, activations_of
from qcompile.planning.ranges import Choice
from qcompile.planning.select import Selection
from qcompile.planning.tensors import bias_plan, input_name
from qcompile.planning.wishes import Wishes

Planned = tuple[Plan, dict[str, Codes]]
Select = Callable[[Wishes], Selection]


@dataclass(frozen=True)
class Replan:
    """Makes plans that differ from a first one by the nodes that are left in float.

    Attributes:
        planner: Made the first plan, or its parts.
        wishes: What was to stay in float anyway.
        first: The plan, and the codes of solved weights.
        select: Selects nodes for wishes: the planner's way, or that of a quantized source.
    """

    planner: Planner
    wishes: Wishes
    first: Planned
    select: Select

    def keeping(self, nodes: Mapping[str, str]) -> Planned:
        """Return the plan with these nodes in float, and the codes that it still needs.

        Args:
            nodes: Node to the reason. What cannot be on codes without them is in float, too.
        """
        first, codes = self.first
        selection = self._selected(nodes)
        plan = self._with_grids(selection, first)
        kept = {name: found for name, found in codes.items() if name in plan.tensors}
        return plan.model_copy(update={"remedies": first.remedies}), kept

    def _selected(self, nodes: Mapping[str, str]) -> Selection:
        kept = {**self.wishes.nodes, **self._protected, **nodes}
        return self.select(replace(self.wishes, nodes=kept))

    @cached_property
    def _tied(self) -> dict[str, str]:
        """What was tied to what in the first plan."""
        return self._selected({}).tied

    @cached_property
    def _protected(self) -> dict[str, str]:
        """What the first plan leaves in float for accuracy's sake, with its reasons."""
        everything = self.select(self.wishes).nodes
        return {
            name: entry.reason
            for name, entry in self.first[0].nodes.items()
            if entry.precision in FLOATS and everything[name].precision not in FLOATS
        }

    def _with_grids(self, selection: Selection, first: Plan) -> Plan:
        ranges = {
            name: Choice(*first.tensors[name].bounds(), "", {})
            for name in activations_of(selection)
            if name in first.tensors
        }
        plan = self.planner.plan(selection, ranges)
        tensors = {
            name: self._grid(name, tensor, selection, first)
            for name, tensor in plan.tensors.items()
        }
        nodes = {node.name: node for node in self.planner.model.graph}
        for name, owner in selection.biases.items():
            data, weight = (tensors[input_name(nodes[owner], i)] for i in (0, 1))
            tensors[name] = bias_plan(data, weight)
        return plan.model_copy(update={"tensors": tensors})

    def _grid(self, name: str, tensor: TensorPlan, selection: Selection, first: Plan) -> TensorPlan:
        """Return the grid of the first plan; that of a value is its source's, where it is tied."""
        source = selection.tied.get(name, name)
        known = first.tensors.get(self._tied.get(source, source))
        if known is None or (known.kind, known.type) != (tensor.kind, tensor.type):
            return tensor
        tied = {"method": "tied", "errors": {}}
        return known.model_copy(update=tied) if name in selection.tied else known
