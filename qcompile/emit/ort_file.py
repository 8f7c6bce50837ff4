"""Writes a graph as an ONNX file that ONNX Runtime loads, the same bytes every time."""

from pathlib import Path

import onnx_ir as ir

from qcompile.errors import OutputError
from qcompile.graph.walk import weight_bytes
from qcompile.runtime.ort import save_optimized

EXTERNAL_BYTES = 1 << 29
"""Beyond this many bytes of weights they go to a file beside the model: protobuf ends at 2 GiB."""


def write_engine(model: ir.Model, path: Path) -> None:
    """Write the engine; new weights are computed while they are written.

    Args:
        model: The rewritten graph.
        path: The ``.onnx`` file; large weights go to a file beside it, ``.onnx.data``.

    Raises:
        OutputError: The disk refuses.
    """
    try:
        if weight_bytes(model) > EXTERNAL_BYTES:
            ir.save(model, path, external_data=f"{path.name}.data")
        else:
            # small ones hold all weights themselves, also those still shared with their source
            ir.save(ir.external_data.load_to_model(model), path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def write_optimized(path: Path) -> Path:
    """Write ONNX Runtime's own optimized form of the engine, good for this kind of host only."""
    out = path.with_name("model.optimized.onnx")
    save_optimized(path, out)
    return out
