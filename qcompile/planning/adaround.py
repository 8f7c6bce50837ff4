"""AdaRound layer by layer: codes learned on the output error behind the activation function.

Asymmetric reconstruction (arXiv:2004.10568, equation 25): a layer reads what the rounded layers
before it leave, and is to make what the float model makes.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.graph.stages import reader_groups
from qcompile.graph.walk import constant, is_op, only_consumer, scalar
from qcompile.numerics.adaround import Floats, LayerData, Schedule, learn_layer
from qcompile.planning.int8_layers import Int8Layer
from qcompile.planning.layer_inputs import input_rows
from qcompile.planning.learning import Learned, Learning, learn_in_order
from qcompile.planning.rounding import Rounded

ROWS = 8192
"""Most rows that a layer learns from, and a quarter of it to judge."""

NUMBERS = 1 << 25
"""Most numbers in the rows of one layer: 128 MB."""

POSITIONS = 1999
"""Rows of a sample from which those are drawn; no multiple of the usual widths of pictures."""

BATCH = 512
"""Rows of a step."""


def adarounded(work: Learning) -> dict[str, Rounded]:
    """Learn how to round weights, layer by layer; return those that plain rounding does worse.

    Args:
        work: What is learned, from what, and where it is kept.

    Raises:
        RuntimeMissingError: torch is not installed.
        OutputError: The folder cannot be written, or codes of an earlier run are damaged.
    """
    groups = reader_groups([layer.node for layer in work.layers.values()])
    return learn_in_order(work, groups, learned_layer)


def learned_layer(work: Learning, layer: Int8Layer) -> Learned:
    """Learn the codes of one layer whose input is in the stores."""
    rows, grid = layer.rows(), work.grid(layer)
    fitting = _data(work, layer, work.fitting, ROWS)
    schedule = Schedule(work.steps, work.seed, BATCH)
    codes, plain = learn_layer(rows, grid, fitting, schedule), grid.nearest(rows)
    judging = _data(work, layer, work.judging, ROWS // 4)
    power = judging.power() or 1.0
    errors = [judging.error(grid.values(some)) / power for some in (plain, codes)]
    return Learned(codes if errors[1] < errors[0] else plain, errors[0], errors[1])


def _data(work: Learning, layer: Int8Layer, indices: Sequence[int], limit: int) -> LayerData:
    """Return rows of some samples, drawn by chance, and what the float layer makes of them."""
    limit = min(limit, max(1, NUMBERS // (layer.groups * layer.columns)))
    each = max(1, limit // len(indices))
    exact: list[Floats] = []
    inputs: list[Floats] = []
    for index in indices:
        before, now = (
            input_rows(
                layer.node, work.activation(store, layer.x, index).astype(np.float32), POSITIONS
            )
            for store in (work.exact, work.rounded)
        )
        count = before.shape[1]
        chance = np.random.default_rng((work.seed, index))
        some = np.sort(chance.choice(count, min(each, count), replace=False))
        exact.append(before[:, some])
        inputs.append(now[:, some])
    bias = _bias(layer)
    low, high = (-np.inf, np.inf) if bias is None else _clip(layer.node)
    if bias is None:  # it would only matter before an activation function
        bias = np.zeros(layer.scales().shape, np.float32)
    targets = np.matmul(np.concatenate(exact, axis=1), layer.rows().transpose(0, 2, 1))
    targets = np.clip(targets + bias[:, None], low, high).astype(np.float32)
    return LayerData(np.concatenate(inputs, axis=1), targets, bias, low, high)


def _bias(layer: Int8Layer) -> Floats | None:
    """Return the bias of each row, float32 ``(groups, R)``; None where it is not known."""
    groups, rows = layer.scales().shape
    value = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    array = np.zeros(1) if value is None else constant(value)
    if array is None or array.size not in (1, groups * rows):
        return None
    whole = np.broadcast_to(array.reshape(-1), (groups * rows,))
    return whole.reshape(groups, rows).astype(np.float32)


def _clip(node: ir.Node) -> tuple[float, float]:
    """Return the bounds of the activation function right behind a node; infinite without one."""
    reader = only_consumer(node.outputs[0])
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if is_op(reader, "Relu") and not scaled:
        return 0.0, np.inf
    if not is_op(reader, "Clip") or scaled:
        return -np.inf, np.inf
    low, high = (scalar(reader.inputs[i]) if len(reader.inputs) > i else None for i in (1, 2))
    return -np.inf if low is None else low, np.inf if high is None else high
