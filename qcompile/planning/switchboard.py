"""Measured effect: what rounding one node, or any set of nodes, does to the outputs of the model.

The switchboard is the float graph in which every node that the plan computes in int8 sits in an
If: one branch rounds its inputs and weights to their grids, the other leaves them alone. Switches,
scales and zero points are inputs, so one session answers every question; an untaken branch costs
nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant
from qcompile.graph.walk import is_constant, is_op, only_consumer
from qcompile.numerics.grids import Codes, dequantize, quantize
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.plan import FLOATS, Plan
from qcompile.planning.activation_grids import activation_grid
from qcompile.planning.probe import Range, fed_grid
from qcompile.planning.select import Selection
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Samples
from qcompile.targets.target import Placement, Role, Types

JUDGED_BEFORE = ("Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Flatten", "Transpose", "Squeeze")
"""Operators at the end of a model that hide or do not change an error: it is taken before them."""

DECIDING = ("ArgMax", "ArgMin", "TopK", "Cast", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
"""Operators that make integers or truth values of floats: errors are judged on the floats."""


def judged_values(graph: ir.Graph) -> list[ir.Value]:
    """Return the values at which errors are judged: float outputs, before a final Softmax.

    In place of an integer output stands the float value that it was decided from, if there is one.
    """
    found: dict[int, ir.Value] = {}
    for output in graph.outputs:
        value = output
        while (source := _before(value)) is not None:
            value = source
        if value.dtype == ir.DataType.FLOAT and value.producer() is not None:
            found[id(value)] = value
    return list(found.values())


def _before(value: ir.Value) -> ir.Value | None:
    """Return the value to judge in place of this one, where its operator hides errors."""
    real = value.dtype == ir.DataType.FLOAT
    node = value.producer()
    if not is_op(node, *JUDGED_BEFORE, *(() if real else DECIDING)):
        return None
    source = node.inputs[0]
    if source is None or is_constant(source):
        return None
    return source if source.dtype == ir.DataType.FLOAT or not real else None


class Switchboard:
    """Rounds any set of nodes and measures the outputs, on fixed samples.

    Attributes:
        units: Names of the nodes that can be switched, in graph order.
        tensors: Unit to the activations it reads through a grid.
        outputs: What ``run`` calls the values at which errors are judged.
        own: The model's outputs to what ``run`` calls them, where a metric is to score them.
        reference: What ``run`` gives with all switches off.
    """

    def __init__(  # noqa: PLR0913 (all that an answer depends on)
        self,
        model: ir.Model,
        selection: Selection,
        plan: Plan,
        types: Types,
        codes: Mapping[str, Codes],
        samples: Samples,
        jobs: int,
        *,
        scored: bool = False,
    ) -> None:
        """Build the graph and run the samples once with all switches off.

        Args:
            model: The lowered float graph; it is not changed.
            selection: Which nodes and tensors are in question.
            plan: Grids of the weights.
            types: Of the codes.
            codes: Solved codes of weights; others round to the nearest.
            samples: A few samples; each question runs all of them.
            jobs: Samples measured at once.
            scored: Give the model's own outputs too, for a metric.
        """
        self.samples, self.jobs, self.types = samples, jobs, types
        graph = model.clone()
        wiring = _Wiring(graph, selection, plan, types, codes, scored=scored)
        self.units, self.tensors = wiring.units, wiring.tensors
        self.grids = wiring.grids
        self.session = Session(graph, threads=1)
        names = [port.name for port in self.session.outputs]
        self.outputs = names[: wiring.judged]
        self.own = {name: names[place] for name, place in wiring.own.items()}
        self.reference: list[dict[str, Array]] = []
        self.reference = self.run({}, ())

    def noise(self, ranges: Mapping[str, Range], on: Collection[str]) -> float:
        """Return the mean over outputs of noise power over signal power.

        Args:
            ranges: Range of each activation.
            on: The units that round.
        """
        return self.noise_of(self.run(ranges, on))

    def noise_of(self, found: Sequence[Mapping[str, Array]]) -> float:
        """Return the noise of what ``run`` gave."""
        return mean_noise(self.reference, found, self.outputs)

    def scored(self, found: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Return the model's own outputs, by their names, of what ``run`` gave."""
        return [{name: arrays[label] for name, label in self.own.items()} for arrays in found]

    def run(self, ranges: Mapping[str, Range], on: Collection[str]) -> list[dict[str, Array]]:
        """Return what each sample gives.

        Args:
            ranges: Range of each activation.
            on: The units that round.
        """
        feeds: dict[str, Array] = {_switch(unit): np.asarray(unit in on) for unit in self.units}
        for name in self.grids:
            scale, zero = activation_grid(*ranges.get(name, (0.0, 1.0)), self.types)
            feeds[f"{name}|scale"] = np.asarray(scale, np.float32)
            if not self.types.symmetric:
                feeds[f"{name}|zero"] = np.asarray(zero, self.types.activation)

        def one(index: int) -> dict[str, Array]:
            return self.session.run({**self.samples[index], **feeds})

        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(one, range(len(self.samples))))


def mean_noise(
    reference: Sequence[Mapping[str, Array]],
    found: Sequence[Mapping[str, Array]],
    names: Sequence[str],
) -> float:
    """Return the mean over outputs of noise power over signal power, samples taken together.

    Args:
        reference: Arrays of each sample by name.
        found: The same, with errors.
        names: Of those that count; what is zero throughout is left out.
    """
    totals: dict[str, ErrorSums] = {}
    for expected, rounded in zip(reference, found, strict=True):
        for name in names:
            sums = error_sums(expected[name], rounded[name])
            totals[name] = totals.get(name, ErrorSums()) + sums
    shares = [total.relative_l2**2 for total in totals.values() if total.signal > 0]
    return float(np.mean(shares)) if shares else 0.0


def _switch(unit: str) -> str:
    return f"{unit}|on"


class _Wiring:
    """Puts the switches into a graph."""

    def __init__(
        self,
        model: ir.Model,
        selection: Selection,
        plan: Plan,
        types: Types,
        codes: Mapping[str, Codes],
        *,
        scored: bool,
    ) -> None:
        self.graph, self.plan, self.selection = model.graph, plan, selection
        self.types, self.codes = types, codes
        self.names = Names(model)
        self.opsets = model.opset_imports
        self.tensors: dict[str, list[str]] = {}
        self.grids: dict[str, tuple[ir.Value, ir.Value]] = {}
        self.rounded: dict[str, ir.Value] = {}
        self.originals: dict[ir.Value, ir.Value] = {}
        self.units: list[str] = []
        self.own: dict[str, int] = {}
        self.judged = self._judge(scored=scored)
        nodes = [n for n in model.graph if self._is_unit(n)]
        for node in nodes:
            self._flag(node)
        ends = {n.name or "": self._end(n) for n in nodes}
        for node in nodes:
            self._switch_output(node, ends[node.name or ""])
        for node in nodes:
            self._switch_node(node)
        model.graph.sort()

    def _is_unit(self, node: ir.Node) -> bool:
        entry = self.selection.nodes.get(node.name or "")
        if entry is None or entry.precision in FLOATS or is_op(node, "Relu", "Clip"):
            return False
        return entry.reason != Role.CARRIER.value

    def _judge(self, *, scored: bool) -> int:
        """Export the values at which errors are judged; behind them the outputs to be scored.

        Returns:
            How many values errors are judged at.
        """
        found = judged_values(self.graph)
        own = list(dict.fromkeys(self.graph.outputs)) if scored else []
        self.graph.outputs.clear()
        self.graph.outputs.extend(found)
        self.graph.outputs.extend(value for value in own if value not in found)
        self.own = {str(value.name): self.graph.outputs.index(value) for value in own}
        return len(found)

    def _end(self, node: ir.Node) -> ir.Value | None:
        """Return the value behind a unit that its float readers see rounded, if there is one."""
        if self.selection.placement is Placement.INPUTS:
            return None
        value = node.outputs[0]
        reader = only_consumer(value)
        if (value.name or "") not in self.plan.tensors and reader is not None:
            value = reader.outputs[0]
        return value if (value.name or "") in self.plan.tensors else None

    def _switch_output(self, node: ir.Node, end: ir.Value | None) -> None:
        """Let float readers and the model's output see the codes of a switched unit."""
        if end is None:
            return
        readers = [use for use in end.uses() if not self.selection.is_int8(use.node)]
        if not readers and not end.is_graph_output():
            return
        switch = self._flag(node)
        rounding = _Branch(self, end)
        then = rounding.graph([rounding.rounded(end)])
        plain = _Branch(self, end)
        passing = plain.add(ir.node("Identity", [end]))
        result = self._branch(node, end, switch, then, plain.graph([passing]))
        for use in readers:
            use.node.replace_input_with(use.idx, result)
        for index, output in enumerate(self.graph.outputs):
            if output is end:
                self.graph.outputs[index] = result

    def _switch_node(self, node: ir.Node) -> None:
        """Put a unit into an If whose first branch rounds all that goes in."""
        name = node.name or ""
        switch = self._flag(node)
        self.tensors[name] = []
        branches = []
        old = node.outputs[0]
        for rounding in (True, False):
            branch = _Branch(self, old)
            inputs = [self._taken(v, branch, name) if rounding else v for v in node.inputs]
            copy = ir.node(
                node.op_type,
                inputs,
                attributes=dict(node.attributes),
                domain=node.domain,
            )
            branches.append(branch.graph([branch.add(copy)]))
        result = self._branch(node, old, switch, *branches)
        self.originals[result] = old
        if old.is_graph_output():
            for index, output in enumerate(self.graph.outputs):
                if output is old:
                    self.graph.outputs[index] = result
        for use in list(old.uses()):
            if use.node.graph is self.graph or use.node is not node:
                use.node.replace_input_with(use.idx, result)
        self.graph.remove(node)

    def _taken(self, value: ir.Value | None, branch: "_Branch", unit: str) -> ir.Value | None:
        """Return what the rounding branch reads in place of an input."""
        name = self._name(value)
        tensor = self.plan.tensors.get(name)
        source = self.selection.tied.get(name, name)
        if value is None or tensor is None or tensor.kind == "bias":
            return value
        if tensor.kind == "weight":
            if name not in self.rounded:
                grid = tensor.scales(), tensor.zero_points(), tensor.axis
                assert value.const_value is not None  # noqa: S101 - a planned weight
                codes = self.codes.get(name)
                if codes is None:
                    codes = quantize(value.const_value.numpy(), *grid, tensor.type)
                rounded = dequantize(codes, *grid)
                label = self.names.fresh(value, "rounded")
                self.rounded[name] = add_constant(self.graph, label, rounded)
            return self.rounded[name]
        if source not in self.tensors[unit]:
            self.tensors[unit].append(source)
        return branch.rounded(value)

    def _name(self, value: ir.Value | None) -> str:
        """Return the name that the plan has for a value, which a switch may stand for."""
        return (self.originals.get(value, value).name or "") if value is not None else ""

    def _flag(self, node: ir.Node) -> ir.Value:
        name = node.name or ""
        for value in self.graph.inputs:
            if value.name == _switch(name):
                return value
        flag = ir.Value(
            name=_switch(name), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])
        )
        self.graph.inputs.append(flag)
        self.units.append(name)
        return flag

    def grid(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the scale and zero point inputs of a value's grid."""
        name = self._name(value)
        name = self.selection.tied.get(name, name)
        if name not in self.grids:
            self.grids[name] = fed_grid(self.graph, name, self.types)
        return self.grids[name]

    def _branch(
        self, node: ir.Node, like: ir.Value, switch: ir.Value, then: ir.Graph, other: ir.Graph
    ) -> ir.Value:
        chooser = ir.node(
            "If",
            [switch],
            attributes={"then_branch": then, "else_branch": other},
            name=self.names.fresh(node, "switch"),
        )
        result = chooser.outputs[0]
        result.name = self.names.fresh(like, "switched")
        result.type, result.shape = like.type, like.shape
        self.graph.append(chooser)
        return result


class _Branch:
    """The nodes of one branch; values of the graph around it are read directly."""

    def __init__(self, wiring: _Wiring, like: ir.Value) -> None:
        self.wiring, self.like = wiring, like
        self.nodes: list[ir.Node] = []

    def add(self, node: ir.Node) -> ir.Value:
        node.name = self.wiring.names.fresh(self.like, "branch")
        node.outputs[0].name = self.wiring.names.fresh(self.like, "branch.out")
        node.outputs[0].type = self.like.type
        self.nodes.append(node)
        return node.outputs[0]

    def rounded(self, value: ir.Value) -> ir.Value:
        scale, zero = self.wiring.grid(value)
        codes = self.add(ir.node("QuantizeLinear", [value, scale, zero]))
        codes.type = ir.TensorType(zero.dtype or ir.DataType.UINT8)
        return self.add(ir.node("DequantizeLinear", [codes, scale, zero]))

    def graph(self, outputs: Sequence[ir.Value]) -> ir.Graph:
        name = self.wiring.names.fresh(self.like, "graph")
        return ir.Graph(
            [], list(outputs), nodes=self.nodes, name=name, opset_imports=self.wiring.opsets
        )
