"""ORT-format models for phones: converted, read back, placed (predicted) and loaded cold."""

from collections import Counter

import onnx_ir as ir

from qcompile.emit.ort_mobile import write_ort
from qcompile.planning.partition import predict
from qcompile.report.schema import Delivery
from qcompile.runtime.cold_start import cold_start
from qcompile.targets.providers import PROVIDERS
from qcompile.written import Written


def deliver(written: Written) -> Delivery:
    """Convert the ONNX file beside it; predict its placement and time its load.

    Raises:
        QcompileError: The converter refuses the model, or the result does not load.
    """
    model, provider = written.model, PROVIDERS[written.device]
    files = write_ort(model, model.parent, provider.style)
    placed = predict(ir.load(model), provider)
    alone = provider.name == "cpu"
    starts = {path.name: cold_start(path).median_ms for path in (model, files.model)}
    sizes = files.sizes()
    fallen = Counter(placed.fallbacks.values())
    pieces = (
        f"{len(placed.pieces)} piece(s) on the provider, {placed.crossings} tensor(s) cross; a "
        "prediction: no device was asked"
    )
    return Delivery(
        kind=f"ORT-format model, style {provider.style}, for {provider.registered}",
        state="run",
        path=files.model.name,
        bytes=sizes[files.model.name],
        placed={}
        if alone
        else {provider.registered: placed.taken, "CPU": placed.units - placed.taken},
        fallen={} if alone else dict(fallen),
        loads_ms=starts,
        notes=(
            *([] if alone else [pieces]),
            "cold start: in a new process on this machine, the file in its cache",
            *placed.notes,
        ),
    )
