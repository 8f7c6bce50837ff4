"""A hash of what a model computes: structure and weights, not file names or metadata."""

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompile.graph.dump import dump
from qcompile.graph.walk import all_graphs, all_nodes, release

_CHUNK_BYTES = 1 << 24


def model_digest(model: ir.Model) -> str:
    """Return the SHA-256 of the graph's text, its tensor attributes and its initializers' bytes.

    The same model gives the same digest wherever its file is, whatever the file is called, and
    however its weights are stored. Weights are read in pieces and mappings closed afterwards, so
    memory does not grow with the model.
    """
    state = hashlib.sha256(dump(model).encode())
    for piece in _pieces(model):
        state.update(piece)
        del piece  # a view that is left would keep its file mapped
    return state.hexdigest()


def _pieces(model: ir.Model) -> Iterator[bytes | memoryview]:
    for graph in all_graphs(model):
        for name, value in sorted(graph.initializers.items()):
            if value.const_value is not None:
                yield f"\0{name}\0".encode()
                yield from _tensor_pieces(value.const_value)
    nodes = [node for node, _ in all_nodes(model)]
    nodes += [node for function in model.functions.values() for node in function]
    for node in nodes:
        for name, attribute in sorted(node.attributes.items()):
            yield from _attribute_pieces(name, attribute)


def _attribute_pieces(name: str, attribute: ir.Attr) -> Iterator[bytes | memoryview]:
    if attribute.is_ref():
        return
    yield f"\0{name}\0".encode()
    if attribute.type == ir.AttributeType.TENSOR:
        yield from _tensor_pieces(attribute.as_tensor())
    elif attribute.type in {ir.AttributeType.FLOAT, ir.AttributeType.FLOATS}:
        # The text has 6 digits of a float; the hash must see all of them.
        yield np.asarray(attribute.value, np.float32).tobytes()


def _tensor_pieces(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    yield f"{tensor.dtype}{list(tensor.shape.numpy())}".encode()
    if tensor.dtype == ir.DataType.STRING:
        for text in tensor.numpy().reshape(-1):
            yield repr(text).encode()
    elif tensor.dtype.bitwidth < 8:
        yield tensor.tobytes()
    else:
        flat = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK_BYTES):
            yield flat[start : start + _CHUNK_BYTES].data
        del flat
    release(tensor)
