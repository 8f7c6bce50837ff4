"""Which files a model is made of."""

from pathlib import Path

import onnx

from qcompile.source.tensors import all_tensors


def model_files(path: Path) -> list[Path]:
    """Return the file of a model that was loaded before, and the files its external data is in.

    Args:
        path: Checked by ``load_model``: all locations are inside its folder, links resolved.
    """
    proto = onnx.load(path, load_external_data=False)
    locations = {
        entry.value
        for tensor in all_tensors(proto)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.resolve().parent
    return [path, *(folder / location for location in sorted(locations))]
