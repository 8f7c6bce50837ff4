"""Checks of the tensors in a model file, before anything is allocated or mapped for them."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from qcompile.errors import ModelError
from qcompile.graph.walk import release

_CHUNK_ELEMENTS = 1 << 22
# Elements that one entry of a typed field holds, where it is not one (onnx.proto, TensorProto).
_ENTRIES_AN_ELEMENT = {ir.DataType.COMPLEX64: 2, ir.DataType.COMPLEX128: 2}


def tensors_in(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield initializers and attribute tensors of a graph and its subgraphs."""
    yield from graph.initializer
    yield from _attribute_tensors(graph.node)


def _attribute_tensors(nodes: list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from tensors_in(attribute.g)
            for graph in attribute.graphs:
                yield from tensors_in(graph)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that the model file stores, functions included."""
    yield from tensors_in(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(list(function.node))


def check_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    """Refuse a tensor whose dims, type and stored bytes do not fit together.

    Args:
        tensor: As parsed; its data is not touched, except for being measured.
        folder: Where the model is; external data must be inside.

    Raises:
        ModelError: Names the tensor and what is wrong with it.
    """
    name = tensor.name or "(unnamed constant)"
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {name} has a negative dimension: {list(tensor.dims)}")
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise ModelError(f"tensor {name} has the unknown data type {tensor.data_type}") from None
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"tensor {name} has no data type")
    elements = math.prod(tensor.dims)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if dtype == ir.DataType.STRING and (external or tensor.HasField("raw_data")):
        raise ModelError(f"tensor {name} holds strings as bytes; ONNX stores them in string_data")
    if external:
        _check_external(tensor, name, _bytes(elements, dtype), folder)
    elif tensor.HasField("raw_data"):
        _expect(name, list(tensor.dims), _bytes(elements, dtype), len(tensor.raw_data))
    else:
        _check_typed_field(tensor, name, dtype, elements)


def _bytes(elements: int, dtype: ir.DataType) -> int:
    """Return what so many packed elements take; whole numbers, for a file may claim any size."""
    return -(-elements * dtype.bitwidth // 8)


def _expect(name: str, dims: list[int], wanted: int, found: int, unit: str = "bytes") -> None:
    if wanted != found:
        raise ModelError(f"tensor {name} {dims} needs {wanted} {unit}, but the file holds {found}")


def _check_typed_field(
    tensor: onnx.TensorProto, name: str, dtype: ir.DataType, elements: int
) -> None:
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    found = len(getattr(tensor, field))
    wanted = elements * _ENTRIES_AN_ELEMENT.get(dtype, 1)
    if dtype.bitwidth < 8:
        # Narrow integers are packed into int32 entries, one byte each, or one entry an element.
        packed = _bytes(elements, dtype)
        wanted = wanted if found == wanted else packed
    _expect(name, list(tensor.dims), wanted, found, "elements")


def _check_external(tensor: onnx.TensorProto, name: str, wanted: int, folder: Path) -> None:
    info = {entry.key: entry.value for entry in tensor.external_data}
    path = external_path(info.get("location", ""), name, folder)
    try:
        size = path.stat().st_size
    except OSError:
        raise ModelError(f"external data of tensor {name} is missing: no file {path}") from None
    if not path.is_file():
        raise ModelError(f"external data of tensor {name} is not a file: {path}")
    offset = _entry(info, "offset", 0, name)
    length = _entry(info, "length", wanted, name)
    _expect(name, list(tensor.dims), wanted, length)
    if offset + length > size:
        raise ModelError(
            f"tensor {name} claims bytes {offset} to {offset + length} of {path.name}, "
            f"which has only {size}; the file is cut short or belongs to another model"
        )


def _entry(info: dict[str, str], key: str, default: int, name: str) -> int:
    text = info.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ModelError(f"external data of tensor {name} has a bad {key}: {text!r}")
    return int(text)


def external_path(location: str, name: str, folder: Path) -> Path:
    """Return the file of an external tensor; it must be below the model's folder, links resolved.

    Raises:
        ModelError: The location is empty, absolute, climbs out with ``..`` or follows a link out.
    """
    if not location or "\0" in location:
        raise ModelError(f"external data of tensor {name} has no valid location: {location!r}")
    root = folder.resolve()
    path = (root / location).resolve()
    if Path(location).is_absolute() or ".." in Path(location).parts or root not in path.parents:
        raise ModelError(
            f"external data of tensor {name} points outside the model's folder: {location!r}; "
            "refused, put the file beside the model"
        )
    return path


def first_bad_value(tensor: ir.TensorProtocol) -> str | None:
    """Return "NaN" or "Inf" if the tensor holds one (NaN first), else None.

    Reads in pieces of a few MiB and closes mappings, so a tensor may be larger than memory.
    """
    if not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
        return None
    try:
        return _first_bad(tensor.numpy().reshape(-1))
    finally:
        release(tensor)


def _first_bad(flat: np.ndarray) -> str | None:
    found = None
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        piece = flat[start : start + _CHUNK_ELEMENTS]
        if not np.isfinite(piece).all():
            if np.isnan(piece).any():
                return "NaN"
            found = "Inf"
    return found
