"""What rounding to halves does to the outputs of a whole model, and which nodes are to blame.

Errors that are small in each node can add up: E[x^2] - E[x]^2 after two rounded means. Only the
model's outputs show that.
"""

import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names
from qcompile.graph.halves import Half, Slots, is_float32, newest_slots
from qcompile.graph.walk import constant, is_constant
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.planning.switchboard import judged_values
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Samples

RUNS = 32
"""Questions that a search may ask at most."""

SEARCHED = 2
"""Samples that a question is asked on."""

Run = Callable[[int], dict[str, Array]]


class HalfSwitches:
    """The float graph in which each node computes in half or in float32, as an input says.

    In half it rounds what it reads and what it makes. Constants that only such nodes read are
    always rounded.

    Attributes:
        units: Names of the nodes that can be switched, in graph order.
    """

    def __init__(
        self, model: ir.Model, half: Half, kept: Collection[str], samples: Samples, jobs: int
    ) -> None:
        """Build the graph and run the float one on the same samples.

        Args:
            model: The float graph, typed and named; it is not changed.
            half: The type asked for.
            kept: Nodes that stay in float32 anyway.
            samples: A few samples; each question runs some of them.
            jobs: Samples run at once.
        """
        self.samples, self.jobs = samples, jobs
        graph = model.clone()
        _judge(graph)
        plain = Session(graph, threads=1)
        self.reference = self._each(range(len(samples)), lambda i: plain.run(samples[i]))
        self.units = _Wiring(graph, half, kept).units
        self.session = Session(graph, threads=1)

    def error(self, off: Collection[str], count: int | None = None) -> float:
        """Return the relative L2 error of the worst output, the first ``count`` samples together.

        An output whose shape rounding changes cannot be compared, and is left out.

        Args:
            off: Units that compute in float32.
            count: None takes all samples.
        """
        switches = {_switch(unit): np.asarray(unit not in off) for unit in self.units}
        indices = range(min(count or len(self.samples), len(self.samples)))
        found = self._each(indices, lambda i: self.session.run({**self.samples[i], **switches}))
        totals = [ErrorSums()] * len(self.reference[0])
        for expected, rounded in zip(self.reference, found, strict=False):
            for index, (exact, other) in enumerate(zip(expected, rounded, strict=True)):
                if exact.shape == other.shape and exact.dtype == np.float32:
                    totals[index] += error_sums(exact, other)
        errors = (math.inf if t.broken else t.relative_l2 for t in totals if t.signal > 0)
        return max(errors, default=0.0)

    def _each(self, indices: Sequence[int], run: Run) -> list[list[Array]]:
        """Return the outputs of each sample, in the graph's order."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return [list(found.values()) for found in pool.map(run, indices)]


def to_blame(switches: HalfSwitches, limit: float) -> list[str] | None:
    """Return a smallest set of nodes that must compute in float32 for the outputs to be right.

    Smallest means that none can be left out, not that no other set is smaller: QuickXplain (Junker
    2004, "QUICKXPLAIN: Preferred Explanations and Relaxations for Over-Constrained Problems",
    algorithm 1), which asks O(k log(n / k)) questions for k of n nodes.

    Args:
        switches: Of the model.
        limit: Relative L2 that the worst output may lose.

    Returns:
        None where the questions ran out: too many nodes share the blame.
    """
    search = _Search(switches, limit)
    try:
        return search.explain([], switches.units, asked=False)
    except _RunsOut:
        return None


class _RunsOut(Exception):  # noqa: N818
    """All questions were asked."""


class _Search:
    def __init__(self, switches: HalfSwitches, limit: float) -> None:
        self.switches, self.limit, self.left = switches, limit, RUNS

    def explain(self, off: list[str], units: list[str], *, asked: bool) -> list[str]:
        """Return what of the units must be off, too; ``asked`` is whether ``off`` has grown."""
        if asked and self._right(off):
            return []
        if len(units) == 1:
            return units
        first, second = units[: len(units) // 2], units[len(units) // 2 :]
        later = self.explain([*off, *first], second, asked=True)
        sooner = self.explain([*off, *later], first, asked=bool(later))
        return [*sooner, *later]

    def _right(self, off: list[str]) -> bool:
        if not self.left:
            raise _RunsOut
        self.left -= 1
        return self.switches.error(off, SEARCHED) <= self.limit


def _switch(unit: str) -> str:
    return f"{unit}|half"


def _judge(model: ir.Model) -> None:
    """Export the values at which errors are judged, where there are any."""
    found = judged_values(model.graph)
    if found:
        model.graph.outputs.clear()
        model.graph.outputs.extend(found)


class _Wiring:
    """Puts the switches into a graph.

    Attributes:
        units: Names of the nodes that have one.
    """

    def __init__(self, model: ir.Model, half: Half, kept: Collection[str]) -> None:
        self.graph, self.half, self.names = model.graph, half, Names(model)
        self.rounded: dict[ir.Value, ir.Value] = {}
        slots = {n: newest_slots(n, half) for n in model.graph if n.name not in kept}
        units = {node: found for node, found in slots.items() if found}
        for value in self.graph.initializers.values():
            if all(n in units and i in units[n].inputs for n, i in value.uses()):
                self._round_constant(value)
        self.units = [str(node.name) for node in units]
        for node, found in units.items():
            self._put_switch(node, found)
        self.graph.sort()

    def _round_constant(self, value: ir.Value) -> None:
        array = constant(value) if is_float32(value) and is_constant(value) else None
        if array is not None:
            value.const_value = ir.tensor(self.half.cast(array).astype(np.float32), name=value.name)

    def _put_switch(self, node: ir.Node, slots: Slots) -> None:
        """Let a node round what it reads and what it makes, where its switch is on."""
        kind, shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
        flag = ir.Value(name=_switch(str(node.name)), type=kind, shape=shape)
        self.graph.inputs.append(flag)
        for index in slots.inputs:
            value = node.inputs[index]
            if value is not None and not is_constant(value):
                node.replace_input_with(index, self._chosen(value, flag))
        for value in (node.outputs[index] for index in slots.outputs):
            readers = list(value.uses())
            if not readers and value not in self.graph.outputs:  # it may have no name
                continue
            made = self._chosen(value, flag)
            for reader, index in readers:
                reader.replace_input_with(index, made)
            self.graph.outputs[:] = [made if v is value else v for v in self.graph.outputs]

    def _chosen(self, value: ir.Value, flag: ir.Value) -> ir.Value:
        if value not in self.rounded:
            half = self._op("Cast", [value], value, to=int(self.half.dtype))
            half.type = ir.TensorType(self.half.dtype)
            self.rounded[value] = self._op("Cast", [half], value, to=int(ir.DataType.FLOAT))
        return self._op("Where", [flag, self.rounded[value], value], value)

    def _op(self, op: str, inputs: Sequence[ir.Value], like: ir.Value, **given: int) -> ir.Value:
        node = ir.node(op, inputs, attributes=given, name=self.names.fresh(like, op))
        result = node.outputs[0]
        result.name = self.names.fresh(like, f"{op}.out")
        result.type, result.shape = like.type, like.shape
        self.graph.append(node)
        return result
