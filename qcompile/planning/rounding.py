"""Codes of 8-bit weights that keep the layer's output: GPTQ on a few samples, judged on others.

Plain rounding moves each weight to the nearest code. Where inputs are alike (all positive behind a
Relu, smooth pictures) the small errors of a channel add up instead of cancelling: a picture's
brightness shifts. GPTQ spreads each error over the weights that are still to be rounded. A weight
keeps its plain codes unless the solved ones give a smaller output error on samples that the
solution did not see.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.chunks import chunks
from qcompile.numerics.gptq import round_columns
from qcompile.numerics.grids import Codes
from qcompile.numerics.hessian import output_error
from qcompile.plan import TensorPlan
from qcompile.planning.int8_layers import Int8Layer, int8_layers
from qcompile.planning.layer_inputs import input_rows
from qcompile.progress import Progress
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Samples, first

Floats = npt.NDArray[np.float64]

SAMPLES = 8
"""Samples that are read. With 64 the weights alone are 2 to 4 dB quieter, which is not heard behind
rounded activations: whole W8A8 models gain 0.05 to 0.3 dB, for eight times the runs."""

ROWS = 16384
"""Most rows of all samples together that go into a layer's Hessian, as many of each."""

COLUMNS = 2500
"""Layers with more weights to an output channel are rounded plainly: their Hessian is too large."""

HESSIAN_BYTES = 1 << 29
"""Hessians held at once; beyond it the samples run again."""

WORK = 2e11
"""Most multiply-adds for all layers together, some minutes; the rest is rounded plainly."""


@dataclass(frozen=True)
class Rounded:
    """The solved codes of one weight.

    Attributes:
        codes: Shaped like the weight.
        plain: Squared output error of plain rounding over that of no weights at all.
        solved: The same of the solved codes.
    """

    codes: Codes
    plain: float
    solved: float


def solve_codes(
    model: ir.Model,
    tensors: Mapping[str, TensorPlan],
    nodes: Sequence[str],
    samples: Samples,
    jobs: int,
    progress: Progress,
) -> dict[str, Rounded]:
    """Round the weights of the named nodes; return those that plain rounding does worse.

    Args:
        model: The lowered graph.
        tensors: Grids of the weights.
        nodes: The weighted nodes that compute in int8.
        samples: Read in order, the first ``SAMPLES``; every fourth judges.
        jobs: Layers solved at once.
        progress: Hears "plan: weights", and of layers that are too large.
    """
    samples = first(samples, SAMPLES)
    layers = _affordable(list(int8_layers(model, tensors, set(nodes))), progress)
    found: dict[str, Rounded] = {}
    done = 0
    for group in chunks(layers, _hessian_bytes, HESSIAN_BYTES):
        fitting, judging = _hessians(model, group, samples)

        with ThreadPoolExecutor(jobs) as pool:
            results = pool.map(_solved, group, fitting, judging)
            for layer, rounded in zip(group, results, strict=True):
                done += 1
                progress.step("plan: weights", done, len(layers))
                if rounded is not None:
                    found[layer.weight] = rounded
    return found


def _affordable(layers: list[Int8Layer], progress: Progress) -> list[Int8Layer]:
    kept, work = [], 0.0
    for layer in sorted(layers, key=lambda layer: layer.columns):
        size = len(layer.tensor.scale) * layer.columns**2 / 2
        if layer.columns <= COLUMNS and work + size <= WORK:
            kept.append(layer)
            work += size
    if len(kept) < len(layers):
        progress.notice(
            f"{len(layers) - len(kept)} large layers were rounded plainly: solving for their "
            "codes would take too long"
        )
    return kept


def _hessian_bytes(layer: Int8Layer) -> int:
    return 16 * layer.groups * layer.columns**2


def _hessians(
    model: ir.Model, layers: list[Int8Layer], samples: Samples
) -> tuple[list[Floats], list[Floats]]:
    """Return ``X^T X`` of each layer over the samples that fit and over those that judge."""
    tapped = model.clone()
    values = {v.name: v for v in tapped.graph.inputs}
    values |= {out.name: out for node in tapped.graph for out in node.outputs}
    names = list(dict.fromkeys(layer.x for layer in layers))
    inputs = {v.name for v in tapped.graph.inputs}
    tapped.graph.outputs.clear()
    tapped.graph.outputs.extend(values[name] for name in names if name not in inputs)
    session = Session(tapped, threads=1) if tapped.graph.outputs else None
    shapes = [(layer.groups, layer.columns, layer.columns) for layer in layers]
    fitting, judging = ([np.zeros(shape) for shape in shapes] for _ in range(2))
    for index in range(len(samples)):
        feeds = samples[index]
        data: dict[str, Array] = {**feeds, **(session.run(feeds) if session else {})}
        judges = index % 4 == 3
        for number, layer in enumerate(layers):
            x = data[layer.x].astype(np.float64)
            rows = input_rows(layer.node, x, max(1, ROWS // len(samples)))
            product = np.matmul(rows.transpose(0, 2, 1), rows)
            (judging if judges else fitting)[number] += product
    return fitting, judging if len(samples) >= 4 else fitting


def _solved(layer: Int8Layer, fitting: Floats, judging: Floats) -> Rounded | None:
    """Solve one layer; None where plain rounding is as good."""
    rows, scales, high = layer.rows(), layer.scales(), layer.high
    plain = np.clip(np.rint(rows / scales[..., None]), -high, high)
    solved = np.stack(
        [round_columns(rows[g], scales[g], fitting[g], high) for g in range(layer.groups)]
    )
    power, *errors = (
        sum(output_error(d[g], judging[g]) for g in range(layer.groups))
        for d in (rows, rows - plain * scales[..., None], rows - solved * scales[..., None])
    )
    if power <= 0 or errors[1] >= errors[0]:
        return None
    return Rounded(layer.shaped(solved), errors[0] / power, errors[1] / power)
