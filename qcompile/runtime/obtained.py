"""Joins ONNX nodes with an engine's kernels: which precision did each node's math get?

A matrix kernel computes in int8 where its activations and its other operand both are int8 codes.
That alone is not enough for a fused kernel: TensorRT for RTX 1.7.1 has ``CastMulCastCastMulFc``,
which reads int8 activations and int8 weights, turns both into floats and multiplies these. Its name
tells: it lists what is done, and there is a ``Cast`` before the ``Fc``.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.graph.walk import all_nodes
from qcompile.runtime.layer_dump import EngineLayer, EngineTensor

NOT_FOUND = "not found"
"""No kernel names the node: it was folded, merged or removed."""

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")
OPERATORS = (*WEIGHTED, *POOLS, "Add", "Attention")
"""What is looked at unless told otherwise."""

_FLOATS = ("fp32", "fp16", "bf16")
_CODES = ("int8", "fp8", "int4", "fp4")
_MULTIPLY = re.compile("Fc|Corr|Gemm|Deco")
_GENERATED = "kgen"
_PLUMBING = ("shape_call", "copy", "memset", "jmp", "cjmp", "signal", "wait")
_FUSED_GEMM = "_gemm"
"""Attention's fused kernel is a generated one by kind; its name begins so."""


@dataclass(frozen=True)
class Obtained:
    """What a node computes in.

    Attributes:
        op: The node's operator.
        precision: ``int8`` and ``fp8`` where both operands are codes, ``int4 weights``,
            ``int8 weights`` and so on where weights are codes that the kernel turns into floats
            itself, ``fp32``, ``fp16``, ``bf16``, or ``NOT_FOUND``.
        kernel: The engine's name of the layer; empty where there is none.
    """

    op: str
    precision: str
    kernel: str = ""


def obtained(
    model: ir.Model, layers: Iterable[EngineLayer], operators: Sequence[str] = OPERATORS
) -> dict[str, Obtained]:
    """Return the precision of each node of these operators, subgraphs included.

    Args:
        model: What the engine was built from. Names of nodes should be unique: nodes that share one
            share the precision of the least quantized of them.
        layers: The engine's kernels.
        operators: Of the default domain.

    Returns:
        Node name to precision, in the graph's order; a node without a name goes by the parser's,
        ``node_of_<first output>``.
    """
    of_node = _by_node(layers)
    return {
        name: _of(node.op_type, of_node.get(name, []))
        for node, _ in all_nodes(model)
        if not node.domain and node.op_type in operators
        for name in [parser_name(node)]
    }


def parser_name(node: ir.Node) -> str:
    """Return the name that TensorRT's parser gives to a node's layer."""
    return node.name or f"node_of_{node.outputs[0].name}"


def _by_node(layers: Iterable[EngineLayer]) -> dict[str, list[EngineLayer]]:
    found: dict[str, list[EngineLayer]] = defaultdict(list)
    for layer in layers:
        for entry in layer.nodes:
            name = entry.partition(" | ")[0]  # what follows names the subgraph it is in
            if layer.kind not in _PLUMBING and layer not in found[name]:
                found[name].append(layer)
    return found


def _of(op: str, layers: list[EngineLayer]) -> Obtained:
    """Choose among the kernels that name a node: scaling and adding its bias may be others."""
    if op in WEIGHTED:
        layers = [layer for layer in layers if _multiplies(layer)] or layers
    elif op in POOLS:
        layers = [layer for layer in layers if "pool" in layer.kind.lower()] or layers
    if not layers:
        return Obtained(op, NOT_FOUND)
    found = [Obtained(op, _precision(layer), layer.name) for layer in layers]
    floats = [one for one in found if one.precision in _FLOATS]
    return (floats or found)[0]


def _multiplies(layer: EngineLayer) -> bool:
    return layer.kind != _GENERATED or layer.name.startswith(_FUSED_GEMM)


def _precision(layer: EngineLayer) -> str:
    if not _multiplies(layer):
        return _moved_codes(layer) or _float(layer)
    if "pool" in layer.kind.lower() and layer.inputs:
        return layer.inputs[0].dtype
    data = layer.inputs[0].dtype if layer.inputs else ""
    others = {tensor.dtype for tensor in (*layer.inputs[1:], *layer.constants)}
    if data in _CODES:
        return data if data in others and not _casts_first(layer) else _float(layer)
    for code in _CODES:
        if any(tensor.dtype == code for tensor in layer.constants):
            return f"{code} weights"
    return data if data in _FLOATS else _float(layer)


def _casts_first(layer: EngineLayer) -> bool:
    """Return whether a fused kernel turns its operands into floats before it multiplies them."""
    return layer.kind == "runtime_fusion" and "Cast" in _MULTIPLY.split(layer.name, 1)[0]


def _moved_codes(layer: EngineLayer) -> str | None:
    """Return the type of a kernel that only moves codes, or None."""
    types = {tensor.dtype for tensor in (*layer.inputs, *layer.constants, *layer.outputs)}
    return types.pop() if len(types) == 1 and types <= set(_CODES) else None


def _float(layer: EngineLayer) -> str:
    """Return the float type nearest to what the kernel computes in."""
    tensors: tuple[EngineTensor, ...] = (*layer.outputs, *layer.inputs, *layer.constants)
    for tensor in tensors:
        if tensor.dtype in _FLOATS:
            return tensor.dtype
    return tensors[0].dtype if tensors else NOT_FOUND
