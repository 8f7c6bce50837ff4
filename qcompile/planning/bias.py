"""Corrections of biases: measured layer after layer, so that each sees those before it.

The rounded graph runs in stages, each as far as the output of one layer. There the mean over the
samples is compared with the float model's, the correction is found and added, and the next stage
reads the corrected output. So all layers cost one run of each model.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from qcompile.graph.bias_place import BiasPlace, NoBias, bias_place
from qcompile.graph.edit import Names, add_constant
from qcompile.graph.stages import Group, cut
from qcompile.graph.walk import constant, consumers, is_op
from qcompile.numerics.bias_correction import Wide, channel_means, error_change, weight_shift
from qcompile.numerics.grids import dequantize
from qcompile.plan import CALIBRATED, Plan
from qcompile.planning.forms import node_name, value_name
from qcompile.planning.tensors import bias_plan, input_name
from qcompile.progress import Progress
from qcompile.remedies import Correction
from qcompile.runtime.activations import ActivationStore
from qcompile.runtime.ort import Session
from qcompile.runtime.staged import run_stage
from qcompile.samples import Array, Samples
from qcompile.targets.target import Target

STAGE = "plan: biases"


@dataclass(frozen=True)
class BiasCorrection:
    """What is corrected, on what it is measured, and where.

    Attributes:
        model: The lowered graph.
        rounded: The same with the plan written in (``insert-qdq``); nodes keep their names.
        plan: Says which nodes compute on codes.
        samples: Read in order; every fourth judges.
        jobs: Threads inside one operator.
        progress: Hears "plan: biases", and of nodes that cannot be corrected.
        folder: For activations, of this run alone; it is left empty.
        how: empirical measures the shift, analytic derives it from the rounded weights.
    """

    model: ir.Model
    rounded: ir.Model
    plan: Plan
    samples: Samples
    jobs: int
    progress: Progress
    folder: Path
    how: Literal["empirical", "analytic"] = "empirical"

    @cached_property
    def places(self) -> dict[str, BiasPlace]:
        """The place of the bias of each weighted node on codes, in graph order."""
        found: dict[str, BiasPlace] = {}
        left: dict[str, int] = {}
        for node in self.model.graph:
            if is_op(node, "Conv", "Gemm", "MatMul") and self._has_codes(node):
                try:
                    found[node_name(node)] = self._place(node)
                except NoBias as why:
                    left[str(why)] = left.get(str(why), 0) + 1
        for reason, count in left.items():
            self.progress.notice(f"bias correction: {count} nodes are left alone: {reason}")
        return found

    def corrections(self) -> dict[str, Correction]:
        """Return the correction of each node whose error falls on the samples that judge.

        Raises:
            DataError: There are no samples.
            OutputError: The folder cannot be written.
        """
        if not self.places:
            return {}
        exact = self._exact_means()
        run = _RoundedRun(self, self.rounded.clone())
        found: dict[str, Correction] = {}
        for done, (name, place) in enumerate(self.places.items()):
            self.progress.step(STAGE, done, len(self.places))
            shifts = run.means(done, place) - exact[value_name(place.output)]
            correction = self._correction(name, shifts, exact)
            if correction is not None:
                run.correct(name, correction.values())
                found[name] = correction
        self.progress.step(STAGE, len(self.places), len(self.places))
        run.end()
        return found

    def _has_codes(self, node: ir.Node) -> bool:
        weight = self.plan.tensors.get(input_name(node, 1))
        return self.plan.precision(node_name(node)) in CALIBRATED and weight is not None

    def _place(self, node: ir.Node) -> BiasPlace:
        place = bias_place(node)
        tensor = self.plan.tensors.get(value_name(place.bias))
        if tensor is not None and tensor.kind != "bias":
            raise NoBias("the Add behind it reads its constant as 8-bit codes")
        return place

    def _exact_means(self) -> dict[str, Wide]:
        """Return the means ``(samples, C)`` of what the float model makes, and of what is read."""
        axes = {value_name(place.output): place.axis for place in self.places.values()}
        if self.how == "analytic":
            for node in self.model.graph:
                if node_name(node) in self.places:
                    axes.setdefault(input_name(node, 0), 1 if is_op(node, "Conv") else -1)
        inputs = {value_name(v) for v in self.model.graph.inputs}
        tapped = self.model.clone()
        made = {value_name(out): out for node in tapped.graph for out in node.outputs}
        tapped.graph.outputs.clear()
        tapped.graph.outputs.extend(made[name] for name in axes if name not in inputs)
        session = Session(tapped, threads=self.jobs)
        rows: dict[str, list[Wide]] = {name: [] for name in axes}
        for index in range(len(self.samples)):
            feeds = self.samples[index]
            data: dict[str, Array] = {**feeds, **session.run(feeds)}
            for name, axis in axes.items():
                rows[name].append(channel_means(data[name].astype(np.float32, copy=False), axis))
        return {name: np.stack(means) for name, means in rows.items()}

    def _correction(self, name: str, shifts: Wide, exact: dict[str, Wide]) -> Correction | None:
        judges = np.arange(len(shifts)) % 4 == 3
        fitting = shifts[~judges]
        shift = fitting.mean(axis=0)
        if self.how == "analytic":
            node = next(n for n in self.model.graph if n.name == name)
            shift = self._derived(node, exact[input_name(node, 0)][~judges].mean(axis=0))
        judging = shifts[judges] if judges.any() else shifts
        correction = Correction(how=self.how, bias=[float(c) for c in (-shift).astype(np.float32)])
        better = error_change(correction.values().astype(np.float64), judging) < 0
        return correction if better else None

    def _derived(self, source: ir.Node, means: Wide) -> Wide:
        """Return the mean error that follows from the weights and the means of what they read."""
        node = next(n for n in self.rounded.graph if n.name == source.name)
        weight = constant(source.inputs[1])
        codes = node.inputs[1].producer() if node.inputs[1] is not None else None
        assert codes is not None and weight is not None  # noqa: S101, PT018 - insert-qdq made it
        stored, scale, zero = (constant(value) for value in codes.inputs)
        assert stored is not None and scale is not None and zero is not None  # noqa: S101, PT018
        axis = codes.attributes.get_int("axis", 1) if scale.ndim else None
        error = dequantize(stored, scale, zero, axis) - weight
        by_row = is_op(node, "Conv") or bool(node.attributes.get_int("transB", 0))
        groups = node.attributes.get_int("group", 1)
        return weight_shift(error if by_row else error.T, means, groups)


class _RoundedRun:
    """The rounded graph, run stage by stage with the corrections found so far."""

    def __init__(self, asked: BiasCorrection, model: ir.Model) -> None:
        self.asked, self.model = asked, model
        self.store = ActivationStore(asked.folder)
        self.corrections: dict[str, ir.TensorProtocol] = {}
        nodes = {node.name: node for node in model.graph}
        names = Names(model)
        self.outputs = [nodes[place.node.name].outputs[0] for place in asked.places.values()]
        self.constants = dict(self._added(names))
        model.graph.sort()
        self.stages = cut(model, [Group(value, ()) for value in self.outputs])

    def _added(self, names: Names) -> Iterator[tuple[str, str]]:
        """Put an Add of zeros behind each layer; yield the layer and the constant's name."""
        graph = self.model.graph
        for (name, place), value in zip(self.asked.places.items(), self.outputs, strict=True):
            rank = len(value.shape) if value.shape is not None else 2
            shape = [1] * rank
            shape[place.axis] = place.channels
            label = names.fresh(value, "correction")
            zeros = add_constant(graph, label, np.zeros(shape, np.float32))
            add = ir.node("Add", [value, zeros], name=names.fresh(value, "corrected"))
            result = add.outputs[0]
            result.name = names.fresh(value, "moved")
            result.type, result.shape = value.type, value.shape
            uses = list(value.uses())
            graph.insert_after(value.producer(), add)  # type: ignore[arg-type]
            for use in uses:
                if use.node is not add:
                    use.node.replace_input_with(use.idx, result)
            yield name, label

    def means(self, index: int, place: BiasPlace) -> Wide:
        """Run as far as one layer; return the means ``(samples, C)`` of what it makes."""
        rows: list[Wide] = []

        def visit(_: int, values: Array) -> None:
            rows.append(channel_means(values.astype(np.float32, copy=False), place.axis))

        run_stage(
            self.model,
            self.stages[index],
            self.asked.samples,
            self.store,
            threads=self.asked.jobs,
            replacements=self.corrections,
            visit=visit,
        )
        return np.stack(rows)

    def correct(self, name: str, values: Array) -> None:
        """Let all later stages see a correction ``(C,)``."""
        label = self.constants[name]
        zeros = self.model.graph.initializers[label]
        assert zeros.shape is not None  # noqa: S101 - made so
        shaped = values.reshape(zeros.shape.numpy())
        self.corrections[label] = ir.tensor(shaped, name=label)

    def end(self) -> None:
        """Remove what is left on disk."""
        for name in self.store.names:
            self.store.drop(name)


def with_corrected_biases(plan: Plan, model: ir.Model, target: Target) -> Plan:
    """Return a plan with grids for the biases that ``correct-bias`` will make, in place of the old.

    Args:
        plan: Its corrections name the nodes.
        model: The graph before that pass.
        target: Kernels that take biases as codes demand a grid.
    """
    rules, names = target.rules(plan.scheme), Names(model)
    tensors = dict(plan.tensors)
    left = {
        place.bias: len(consumers(place.bias)) for place in _corrected(plan, model) if place.bias
    }
    for place in _corrected(plan, model):
        name, rule = place.fresh_name(names), rules.get(place.node.op_type)
        if place.bias is not None:
            old = plan.tensors.get(value_name(place.bias))
            left[place.bias] -= 1
            if not left[place.bias]:
                tensors.pop(value_name(place.bias), None)
            tensors |= {name: old} if old is not None else {}
        elif rule is not None and rule.bias is not None:
            data, weight = (plan.tensors[input_name(place.node, i)] for i in (0, 1))
            tensors[name] = bias_plan(data, weight)
    return plan.model_copy(update={"tensors": tensors})


def _corrected(plan: Plan, model: ir.Model) -> Iterator[BiasPlace]:
    """Yield the places of the plan's corrections in graph order."""
    for node in model.graph:
        if node_name(node) in plan.remedies.corrected:
            with suppress(NoBias):
                yield bias_place(node)
