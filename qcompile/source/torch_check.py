"""Whether the ONNX file computes what the torch module does: run both on the same inputs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import EngineError, ModelError
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.progress import Progress
from qcompile.runtime.ort import Session
from qcompile.samples import Array
from qcompile.source.torch_export import TorchModel, Traced, float_types, run_module
from qcompile.source.torch_inputs import Inputs, Tensors, redrawn

LIMIT, HALF_LIMIT = 1e-4, 1e-2
"""Relative L2 that an output may be off, in float32, and with any weight in float16."""

TIPPED = 0.01
"""Share of the integers of an output, decided from floats, that float rounding may change."""


@dataclass(frozen=True)
class Agreement:
    """How far the ONNX file is from the torch module.

    Attributes:
        relative_l2: The largest of any floating-point output and input.
        limit: Above which it would have failed.
        shapes: Of the first input, in each run.
    """

    relative_l2: float
    limit: float
    shapes: tuple[tuple[int, ...], ...]


def check_agreement(
    source: TorchModel, traced: Traced, path: Path, threads: int, progress: Progress
) -> Agreement:
    """Run module and file on the example inputs and on random ones within the dynamic ranges.

    Of each dynamic axis the least and the largest size are tried, and one between. Without bounds
    these are 1 and twice the example's size and 1 more.

    Args:
        source: The module.
        traced: What tracing said of its axes.
        path: The ONNX file.
        threads: Of ONNX Runtime.
        progress: Hears of sizes that the module itself refuses.

    Raises:
        ModelError: An output is off by more than the limit, or ONNX Runtime cannot run the file.
    """
    limit = HALF_LIMIT if "float16" in float_types(source.module) else LIMIT
    try:
        session = Session(path, threads=threads)
    except EngineError as error:
        raise ModelError(f"{source.name}: ONNX Runtime cannot load the export: {error}") from error
    worst, shapes = 0.0, []
    for inputs, told in _cases(source, traced):
        try:
            expected = run_module(source, inputs)
        except Exception as error:  # noqa: BLE001 (user code; its own limits are not the export's)
            reason = " ".join(str(error).split())[:120]
            progress.notice(f"{source.name}: the module itself fails with {told}: {reason}")
            continue
        arrays = {name: _array(tensor) for name, tensor in inputs.tensors().items()}
        try:
            found = session.run(arrays)
        except EngineError as error:
            raise ModelError(
                f"{source.name}: the exported model fails with {told}: {error}"
            ) from error
        worst = max(worst, _distance(source.name, expected, found, limit, told))
        shapes.append(next(iter(arrays.values())).shape)
    return Agreement(worst, limit, tuple(shapes))


def _cases(source: TorchModel, traced: Traced) -> Iterator[tuple[Inputs, str]]:
    """Yield inputs and what is told of them."""
    yield source.inputs, "the example inputs"
    rng = np.random.default_rng(0)
    tensors = source.inputs.tensors()
    ranges = _ranges(source, traced, tensors)
    wanted = [{}, *_corners(ranges, rng)] if ranges else [{}]
    for sizes in wanted:
        values = {s: sizes[label] for s, (label, _, _) in traced.axes.items() if label in sizes}
        drawn = {
            name: redrawn(tensor, _shape(traced.sizes[name], tensor, values), rng)
            for name, tensor in tensors.items()
        }
        told = ", ".join(f"{label}={size}" for label, size in sizes.items())
        yield source.inputs.replaced(drawn), told or "random values"


def _corners(
    ranges: Mapping[str, tuple[int, int]], rng: np.random.Generator
) -> list[dict[str, int]]:
    """Return all axes at their least size, at their largest, and anywhere between."""
    least = {label: low for label, (low, _) in ranges.items()}
    most = {label: high for label, (_, high) in ranges.items()}
    between = {label: int(rng.integers(low, high + 1)) for label, (low, high) in ranges.items()}
    return [least, most, between]


def _ranges(source: TorchModel, traced: Traced, tensors: Tensors) -> dict[str, tuple[int, int]]:
    """Return the sizes of each axis that are tried."""
    found: dict[str, tuple[int, int]] = {}
    for symbol, (label, low, high) in traced.axes.items():
        seen = [
            tensors[name].shape[axis]
            for name, sizes in traced.sizes.items()
            for axis, size in enumerate(sizes)
            if size == symbol
        ]
        least, most = source.ranges.get(label, (low, 2 * max(seen, default=2) + 1))
        most = most if high is None else min(most, high)
        if label in found:
            least, most = max(least, found[label][0]), min(most, found[label][1])
        found[label] = least, max(least, most)
    return found


def _shape(sizes: tuple[Any, ...], tensor: Any, values: Mapping[Any, int]) -> tuple[int, ...]:  # noqa: ANN401
    """Return an input's shape where its axes have some sizes; without any, the example's."""
    if not values:
        return tuple(tensor.shape)
    return tuple(size if isinstance(size, int) else int(size.subs(values)) for size in sizes)


def _array(tensor: Any) -> Array:  # noqa: ANN401
    return tensor.detach().numpy()  # type: ignore[no-any-return]


def _distance(
    name: str,
    expected: list[tuple[str, Any]],
    found: Mapping[str, Array],
    limit: float,
    told: str,
) -> float:
    """Return the largest relative L2 over the outputs.

    Raises:
        ModelError: One has another shape, is off by more than the limit, or has other integers.
    """
    worst = 0.0
    for (_, tensor), (output, array) in zip(expected, found.items(), strict=True):
        reference = _array(tensor)
        if reference.shape != array.shape:
            raise ModelError(
                f"{name}: with {told}, output {output} of the exported model has shape "
                f"{list(array.shape)}, of the module {list(reference.shape)}"
            )
        off = _off(reference, array)
        if off > (limit if reference.dtype.kind not in "iub" else TIPPED):
            raise ModelError(
                f"{name}: with {told}, output {output} of the exported model is off by {off:.2g} "
                f"(relative L2; limit {limit:g}): the traced code took a branch or kept a size of "
                "the example inputs; make that axis fixed, or give other example inputs"
            )
        worst = worst if reference.dtype.kind in "iub" else max(worst, off)
    return worst


def _off(reference: Array, array: Array) -> float:
    """Return the relative L2, of integers and booleans the share that differs."""
    if reference.dtype.kind in "iub":
        return float((reference != array).mean()) if reference.size else 0.0
    sums: ErrorSums = error_sums(reference, array)
    off = sums.relative_l2
    # against a reference of zeros, any noise is infinitely far: then its own size counts
    return sums.max_abs if math.isinf(off) and not sums.broken else off
