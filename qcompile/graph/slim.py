"""A model as protobuf without its large weights, for the C++ library of onnx (limit: 2 GiB)."""

import onnx
import onnx_ir as ir

LARGE_BYTES = 1 << 16


def slim_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the model as protobuf; initializers over 64 KiB become graph inputs, at the end.

    No large weight is read, and the model is as before afterwards. Initializers of subgraphs
    stay as they are.
    """
    graph = model.graph
    inputs, initializers = list(graph.inputs), list(graph.initializers.values())
    for value in initializers:
        if not value.is_graph_input() and _is_large(value.const_value):
            graph.initializers.pop(str(value.name))
            graph.inputs.append(value)
    try:
        return ir.to_proto(model)
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        graph.initializers.clear()
        for value in initializers:
            graph.register_initializer(value)


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.nbytes > LARGE_BYTES
