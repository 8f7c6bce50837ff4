"""Layer by layer: the error of each quantized tensor, worst first.

Both graphs run with ONNX Runtime's optimizations off, so that every value exists under its own
name. Values become outputs of clones, a group at a time: memory holds one group of one sample.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import onnx_ir as ir

from qcompile.chunks import chunks
from qcompile.compare.outputs import is_real
from qcompile.compare.results import finite
from qcompile.frozen import Frozen
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.progress import Progress
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Feeds, Samples

GROUP_BYTES = 256 << 20
"""Activations of one group and sample, in one model; one larger tensor is a group by itself."""


class LayerError(Frozen):
    """The error of one tensor.

    Attributes:
        name: The tensor in the FP graph.
        kind: What it is.
        op: Operator that makes the activation, or uses the weight; empty for a graph input.
        sqnr_db: In dB; None where identical or broken.
        cosine: Cosine of the angle, -1 to 1.
        max_abs_error: In the tensor's own unit.
        identical: No element differs.
        broken: Elements that are NaN or infinite in one graph only.
    """

    name: str
    kind: Literal["activation", "weight"]
    op: str = ""
    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float
    identical: bool
    broken: int


def compare_layers(
    float_model: ir.Model,
    quantized_model: ir.Model,
    pairs: Mapping[str, str],
    samples: Samples,
    *,
    limit_samples: int = 16,
    threads: int = 1,
    progress: Progress,
) -> list[LayerError]:
    """Return the error of each activation, worst SQNR first.

    Args:
        float_model: The canonical graph.
        quantized_model: The QDQ graph; like the other, it is left as it is.
        pairs: Value of the first graph to the value of the second that stands for it.
        samples: What to feed; the first ``limit_samples`` are used.
        limit_samples: Each group of values costs a run of both graphs for each sample.
        threads: Threads of each session.
        progress: Told of each group, and of values that cannot be compared.

    Raises:
        EngineError: ONNX Runtime refuses a graph.
        DataError: A sample cannot be read.
    """
    indices = range(min(limit_samples, len(samples)))
    if not indices:
        return []
    sides = _values(float_model), _values(quantized_model)
    known = {a: b for a, b in pairs.items() if a in sides[0] and b in sides[1]}
    if len(known) < len(pairs):
        missing = sorted(set(pairs) - set(known))
        progress.notice(
            f"layer comparison leaves out {len(missing)} value(s) that a graph lacks, such as "
            f"{missing[0]!r}"
        )
    sizes = _named_dimensions(sides[0], samples[0])
    groups = list(chunks(known, lambda n: _size_bytes(sides[0][n], sizes), GROUP_BYTES))
    errors: list[LayerError] = []
    progress.step("compare layers", 0, len(groups))
    for number, group in enumerate(groups, 1):
        sums = _group_sums(
            Session(_with_outputs(float_model, group), optimize=False, threads=threads),
            Session(
                _with_outputs(quantized_model, [known[name] for name in group]),
                optimize=False,
                threads=threads,
            ),
            {name: known[name] for name in group},
            (samples[index] for index in indices),
        )
        errors += [
            _layer_error(name, "activation", _maker(sides[0][name]), sums[name]) for name in sums
        ]
        progress.step("compare layers", number, len(groups))
    if len(errors) < len(known):
        progress.notice(
            f"layer comparison leaves out {len(known) - len(errors)} value(s) that are no floats "
            "or differ in shape"
        )
    return worst_first(errors)


def compare_weights(weights: Iterable[tuple[str, str, Array, Array]]) -> list[LayerError]:
    """Return the error of each weight, worst SQNR first.

    Args:
        weights: Name, operator that uses it, original array, and what its codes stand for
            (``scale * (codes - zero_point)``), of the same shape. Taken one at a time.
    """
    return worst_first(
        _layer_error(name, "weight", op, error_sums(original, dequantized))
        for name, op, original, dequantized in weights
    )


def worst_first(errors: Iterable[LayerError]) -> list[LayerError]:
    """Sort by SQNR: broken tensors first, identical ones last, equals by name."""

    def key(error: LayerError) -> tuple[float, str]:
        if error.identical:
            return math.inf, error.name
        return -math.inf if error.sqnr_db is None else error.sqnr_db, error.name

    return sorted(errors, key=key)


def _layer_error(
    name: str, kind: Literal["activation", "weight"], op: str, sums: ErrorSums
) -> LayerError:
    return LayerError(
        name=name,
        kind=kind,
        op=op,
        sqnr_db=finite(sums.sqnr_db),
        cosine=finite(sums.cosine),
        max_abs_error=sums.max_abs,
        identical=sums.identical,
        broken=sums.broken,
    )


def _group_sums(
    reference: Session, test: Session, pairs: Mapping[str, str], samples: Iterable[Feeds]
) -> dict[str, ErrorSums]:
    sums: dict[str, ErrorSums] = {}
    for feeds in samples:
        expected = reference.run(feeds, list(pairs))
        found = test.run(feeds, list(dict.fromkeys(pairs.values())))
        for name, other in pairs.items():
            a, b = expected[name], found[other]
            if is_real(a) and is_real(b) and a.shape == b.shape:
                sums[name] = sums.get(name, ErrorSums()) + error_sums(a, b)
    return sums


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the values of the main graph that a run can hand out, by name."""
    made = (value for node in model.graph for value in node.outputs)
    return {value.name: value for value in (*model.graph.inputs, *made) if value.name}


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return node.op_type if node else ""


def _with_outputs(model: ir.Model, names: list[str]) -> ir.Model:
    """Return a clone (weights shared) whose outputs are the named values, each once."""
    clone = model.clone()
    values = _values(clone)
    clone.graph.outputs[:] = [values[name] for name in dict.fromkeys(names)]
    return clone


def _named_dimensions(values: Mapping[str, ir.Value], feeds: Feeds) -> dict[str, int]:
    """Return what the sample says of the inputs' symbolic dimensions."""
    sizes = {}
    for name, array in feeds.items():
        shape = values[name].shape if name in values else None
        for dim, size in zip(shape or (), array.shape, strict=False):
            if not isinstance(dim, int):
                sizes[str(dim)] = size
    return sizes


def _size_bytes(value: ir.Value, sizes: Mapping[str, int]) -> int:
    """Estimate a value's size; without a shape it counts as an eighth of a group."""
    if value.shape is None:
        return GROUP_BYTES // 8
    dims = [dim if isinstance(dim, int) else sizes.get(str(dim), 1) for dim in value.shape]
    return 4 * math.prod(dims)
