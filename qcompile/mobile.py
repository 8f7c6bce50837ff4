"""Models for phones: converted to ORT format, read back, placed (predicted) and loaded cold."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from qcompile.emit.ort_mobile import computes_in_halves, write_ort
from qcompile.planning.partition import Partition, predict
from qcompile.report.schema import Delivery
from qcompile.report.text import KEEP, counted, milliseconds, size
from qcompile.runtime.cold_start import cold_start
from qcompile.runtime.ort import replays
from qcompile.targets.execution_provider import Provider
from qcompile.targets.providers import PROVIDERS
from qcompile.written import Written

MANY = 4
"""Pieces beyond which people are told so."""

_FEW_BITS = "MatMulNBits"
_REPLAYED = (
    "what stays on the CPU computes in int8 where the app sets "
    "session.enable_saved_runtime_optimizations=1, else in float between codes"
)
_NOT_REPLAYED = (
    "what stays on the CPU computes in float between codes: leave "
    "session.enable_saved_runtime_optimizations unset, for this version of ONNX Runtime cannot "
    "apply what it saved of MatMul, and would not load the file"
)
_NO_ORT = (
    "no .ort file: where it is made there are no float16 kernels, and it would compute in float32 "
    "between casts; ship model.onnx with the full onnxruntime package"
)


LOADS = 5
"""Processes that load a file, for the median of their times."""


def deliver(written: Written) -> Delivery:
    """Convert the ONNX file beside it; predict its placement and time its load.

    A model in float16 is delivered as the ONNX file itself: the converter would bake in casts
    around each node, for want of float16 kernels on the machine that it runs on.

    Raises:
        QcompileError: The converter refuses the model, or the result does not load.
    """
    source, provider = written.model, PROVIDERS[written.device]
    model = ir.load(source)
    halves = computes_in_halves(model)
    path = source if halves else write_ort(source, source.parent, provider.style).model
    placed = predict(model, provider)
    alone = provider.name == "cpu"
    notes = [*_placement_notes(placed, provider)]
    loads = {
        file.name: cold_start(file, runs=LOADS).median_ms for file in dict.fromkeys((source, path))
    }
    notes.append(_loading(source.parent, loads))
    if halves:
        notes.append(_NO_ORT)
    elif written.recipe.scheme == "int8" and placed.taken < placed.units and not alone:
        notes.append(_REPLAYED if replays(path) else _NOT_REPLAYED)
    kind = "ONNX model in float16" if halves else f"ORT-format model, style {provider.style}"
    for warning in _warnings(model, placed, provider):
        written.log.notice(warning)
    return Delivery(
        kind=f"{kind}, for {provider.registered}",
        state="run",
        path=path.name,
        bytes=path.stat().st_size,
        placed={}
        if alone
        else {provider.registered: placed.taken, "CPU": placed.units - placed.taken},
        fallen={} if alone else dict(Counter(placed.fallbacks.values())),
        loads_ms=loads,
        notes=tuple(note.replace(KEEP, " ") for note in notes),
    )


def _warnings(model: ir.Model, placed: Partition, provider: Provider) -> Iterator[str]:
    """Yield what makes the provider the wrong choice for this model."""
    few_bits = [n for n in model.graph if n.op_type == _FEW_BITS and n.name in placed.fallbacks]
    if few_bits and provider.name != "cpu":
        yield (
            f"{provider.name} has no {_FEW_BITS}: products with weights in few bits "
            f"({len(few_bits)} here) will run on the CPU; --ep cpu is what they are for"
        )
    elif provider.name != "cpu" and not placed.taken:
        yield f"{provider.name} takes nothing of this model: all of it will run on the CPU"
    elif len(placed.pieces) > MANY:
        yield (
            f"{provider.name} takes this model in {len(placed.pieces)} pieces: what is gained in "
            "them may be lost between them; compare with --ep cpu on the phone"
        )


def _placement_notes(placed: Partition, provider: Provider) -> Iterator[str]:
    if provider.name != "cpu":
        pieces = counted(len(placed.pieces), "piece")
        yield (
            f"on the provider in {pieces}; {counted(placed.crossings, 'tensor')} a run to move "
            f"between it and the CPU, each at the cost of {provider.boundary}"
        )
    yield from placed.notes


def _loading(folder: Path, loads: Mapping[str, float]) -> str:
    """Return sizes and times of each form of the model, side by side."""
    each = [
        f"{name} {size((folder / name).stat().st_size)}, loaded in {milliseconds(ms)}"
        for name, ms in loads.items()
    ]
    return f"{'; '.join(each)} (cold start: a new process on this machine, the file in its cache)"
