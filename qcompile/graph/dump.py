"""The graph as stable text: for golden tests, ``--dump-passes``, and to see what a pass changed.

Float values of initializers are left out, since they differ in the last bit between CPUs; what is
structure is in: names, types, shapes, attributes, and small int64 constants (axes, pads, shapes).
"""

from collections.abc import Iterator

import onnx_ir as ir

_SHOWN_ELEMENTS = 8


def dump(model: ir.Model) -> str:
    """Return the model's text: opsets, then inputs, initializers, nodes and outputs of each graph.

    Initializers and attributes are sorted by name, floats have 6 digits, subgraphs are indented
    below their node, functions follow the graph.
    """
    lines = [f"opset {_domain(d)} {v}" for d, v in sorted(model.opset_imports.items())]
    lines += _graph_lines(model.graph, "")
    for function in model.functions.values():
        lines.append(f"function {function.domain}.{function.name}")
        lines += _body_lines(function, "  ")
    return "\n".join(lines) + "\n"


def _domain(domain: str) -> str:
    return domain or "ai.onnx"


def _graph_lines(graph: ir.Graph, indent: str) -> Iterator[str]:
    for value in sorted(graph.initializers.values(), key=lambda v: v.name or ""):
        yield f"{indent}initializer {_typed(value)}{_small_integers(value)}"
    yield from _body_lines(graph, indent)


def _body_lines(graph: ir.Graph | ir.Function, indent: str) -> Iterator[str]:
    for value in graph.inputs:
        yield f"{indent}input {_typed(value)}"
    for node in graph:
        yield from _node_lines(node, indent)
    for value in graph.outputs:
        yield f"{indent}output {_typed(value)}"


def _node_lines(node: ir.Node, indent: str) -> Iterator[str]:
    plain, graphs = [], []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref():
            plain.append(f"{name}=@{attribute.ref_attr_name}")
        elif attribute.type == ir.AttributeType.GRAPH:
            graphs.append((name, attribute.as_graph()))
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += [(f"{name}[{i}]", g) for i, g in enumerate(attribute.as_graphs())]
        else:
            plain.append(f"{name}={_text(attribute)}")
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    outputs = ", ".join(_typed(v) for v in node.outputs)
    inputs = ", ".join("-" if v is None else str(v.name) for v in node.inputs)
    attributes = f"<{', '.join(plain)}>" if plain else ""
    yield f"{indent}{outputs} = {operator}{attributes}({inputs})  # {node.name}"
    for name, graph in graphs:
        yield f"{indent}  {name}:"
        yield from _graph_lines(graph, indent + "    ")


def _typed(value: ir.Value) -> str:
    if value.shape is None:
        return f"{value.name}: {_type(value.type)}"
    dims = ", ".join("?" if _is_unknown(d) else str(d) for d in value.shape)
    return f"{value.name}: {_type(value.type)}[{dims}]"


def _is_unknown(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and dim.value is None


def _type(type_: ir.TypeProtocol | None) -> str:
    if type_ is None:
        return "?"
    if isinstance(type_, ir.TensorType):
        return str(type_.dtype).lower()
    return str(type_)


def _small_integers(value: ir.Value) -> str:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > _SHOWN_ELEMENTS:
        return ""
    return f" = {tensor.numpy().tolist()}"


def _text(attribute: ir.Attr) -> str:
    value = attribute.value
    if attribute.type == ir.AttributeType.FLOAT:
        return f"{value:.6g}"
    if attribute.type == ir.AttributeType.FLOATS:
        return f"[{', '.join(f'{number:.6g}' for number in value)}]"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{str(tensor.dtype).lower()}{list(tensor.shape.numpy())}"
    if attribute.type == ir.AttributeType.INTS:
        return str(list(value))
    return str(value)
