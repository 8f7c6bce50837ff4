"""Which channels behind a Relu lose how much of their mean to the layers behind them."""

from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qcompile.graph.bias_shift import KeepsMean, Shift, find_shift
from qcompile.graph.channels import expanded_prelu
from qcompile.graph.edit import add_constant
from qcompile.graph.walk import is_op
from qcompile.numerics.moments import Moments, absorbed_bias
from qcompile.planning.extra_nodes import ExtraNodes
from qcompile.progress import Progress
from qcompile.remedies import Shifted
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Samples

RECTIFIERS = ("Relu", "Clip", "LeakyRelu", "PRelu")
"""Activation functions whose values are looked at; all but the first are refused."""

LEAST = 0.01
"""Share of a channel's deviation below which its shift is not worth moving: it counts as 0."""


def absorbed(
    model: ir.Model,
    nodes: Collection[str],
    samples: Samples,
    jobs: int,
    progress: Progress,
) -> tuple[dict[str, Shifted], Counter[str]]:
    """Choose the shifts of high-bias absorption (arXiv:1906.04721, section 4.1.3).

    Args:
        model: The lowered graph, equalized already if it shall be.
        nodes: The nodes that compute in int8; what they read is shifted.
        samples: Mean and deviation before each Relu are measured on all of them.
        jobs: Samples run at once.
        progress: Hears "plan: biases".

    Returns:
        Value to shift, and how many values behind a Relu or its like were left alone, by reason.
    """
    refused: Counter[str] = Counter()
    shifts: list[Shift] = []
    for value in _activated(model, nodes):
        try:
            shifts.append(find_shift(value))
        except KeepsMean as reason:
            refused[str(reason)] += 1
    found = {}
    for shift, moments in zip(
        shifts, _moments(model, shifts, samples, jobs, progress), strict=True
    ):
        deviation = moments.deviation
        amounts = absorbed_bias(moments.mean, deviation)
        amounts[amounts < LEAST * deviation] = 0.0
        if np.isfinite(amounts).all() and amounts.any():
            narrow = amounts.astype(np.float32)
            found[str(shift.value.name)] = Shifted(shift=[float(c) for c in narrow])
    return found, refused


def _activated(model: ir.Model, nodes: Collection[str]) -> list[ir.Value]:
    read = [n.inputs[0] for n in model.graph if n.name in nodes and n.inputs]
    return [v for v in dict.fromkeys(read) if v is not None and _is_activated(v.producer())]


def _is_activated(node: ir.Node | None) -> bool:
    return node is not None and (is_op(node, *RECTIFIERS) or expanded_prelu(node) is not None)


def _moments(
    model: ir.Model, shifts: Sequence[Shift], samples: Samples, jobs: int, progress: Progress
) -> list[Moments]:
    """Return the moments of what each Relu reads; only means and variances leave the runtime."""
    if not shifts:
        return []
    session = Session(_measured(model, shifts), threads=1)
    found = [Moments.nothing(shift.channels) for shift in shifts]
    with ThreadPoolExecutor(jobs) as pool:
        runs = pool.map(lambda index: session.run(samples[index]), range(len(samples)))
        for done, results in enumerate(runs, 1):
            progress.step("plan: biases", done, len(samples))
            arrays: list[Array] = list(results.values())
            for number, shift in enumerate(shifts):
                mean, variance = (a.astype(np.float64) for a in arrays[3 * number :][:2])
                count = float(arrays[3 * number + 2]) / shift.channels
                found[number] = found[number].merged(count, mean, variance)
    return found


def _measured(model: ir.Model, shifts: Sequence[Shift]) -> ir.Model:
    """Return a copy with three outputs for each shift: mean and variance by channel, elements."""
    copy = model.clone()
    graph, extra = copy.graph, ExtraNodes(copy)
    values = {v.name: v for node in graph for v in node.outputs}
    outputs = []
    for shift in shifts:
        value = values[str(_before(shift).name)]
        rank = len(shift.value.shape or ())
        others = np.array([axis for axis in range(rank) if axis != 1])
        axes = add_constant(graph, extra.names.fresh(value, "other_axes"), others)
        mean = extra.op("ReduceMean", [value, axes], keepdims=1)
        away = extra.op("Sub", [value, mean])
        variance = extra.op("ReduceMean", [extra.op("Mul", [away, away]), axes], keepdims=0)
        flat = extra.op("Squeeze", [mean, axes])
        size = extra.op("Size", [value])
        for result in (flat, variance):
            result.type, result.shape = value.type, ir.Shape([shift.channels])
        size.type, size.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
        outputs += [flat, variance, size]
    graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(copy)
    return copy


def _before(shift: Shift) -> ir.Value:
    """Return what the Relu reads."""
    return shift.first.outputs[0]
