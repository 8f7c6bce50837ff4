"""What each node was to compute in, against what the engine's builder made of it."""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from qcompile.frozen import Frozen
from qcompile.graph.walk import all_nodes, consumers, is_op

UNKNOWN = "unknown"

EXPLAINING = frozenset(
    {"L14", "L18", "L19", "L20", "L21", "L26", "L27", "L31", "L33", "L36", "L40", "L41"}
)
"""Rules of ``qcompile check`` that cost a node its precision; others do not explain a miss."""

_TRANSPARENT = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Cast",
    "Identity",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Transpose",
}

_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_WORDS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.INT4: "int4",
    ir.DataType.FLOAT4E2M1: "fp4",
}

Findings = Mapping[str, Sequence[tuple[str, str]]]
"""Node or tensor to the rules it breaks, each with the sentence that says how."""


class EngineType(Frozen):
    """The precision of one node.

    Attributes:
        node: Its name.
        op: Its operator.
        wanted: Of the plan, in the words of ``qcompile.runtime.obtained``.
        obtained: Of the engine.
        rule: For a miss, the rule of the lint that likely caused it, or ``UNKNOWN``; else empty.
        why: What breaks that rule, one sentence.
    """

    node: str
    op: str
    wanted: str
    obtained: str
    rule: str = ""
    why: str = ""

    @property
    def is_miss(self) -> bool:
        """Return whether the engine computes the node in something else than was wanted."""
        return self.wanted != self.obtained


def graph_types(
    model: ir.Model, operators: Sequence[str] = (*_WEIGHTED, "MaxPool")
) -> dict[str, str]:
    """Return the precision that a QDQ graph asks for, for each named node of these operators.

    A weighted node whose two operands are dequantized computes in their codes; where only its
    weight is, it has ``int8 weights`` or the like. All else computes in the type of its output;
    nodes whose output has none (infer shapes first) are left out. So are MaxPools that do not stand
    between codes: builders like to move a QuantizeLinear from behind a MaxPool to before it.
    """
    found = {}
    for node, _ in all_nodes(model):
        if not node.domain and node.op_type in operators and node.name:
            precision = _asked(node)
            if precision is not None:
                found[node.name] = precision
    return found


def _asked(node: ir.Node) -> str | None:
    codes = [_codes(value) for value in node.inputs[:2]]
    if node.op_type in _WEIGHTED and len(codes) == 2 and codes[1]:
        return codes[1] if codes[0] == codes[1] else f"{codes[1]} weights"
    behind = [use for use, _ in consumers(node.outputs[0])]
    quantized = bool(behind) and all(is_op(use, "QuantizeLinear") for use in behind)
    if node.op_type == "MaxPool":
        return codes[0] if quantized else None
    dtype = node.outputs[0].dtype
    return None if dtype is None else _WORDS.get(dtype, dtype.name.lower())


def _codes(value: ir.Value | None) -> str | None:
    """Return the type of the codes that a value comes from through moves and casts, or None."""
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type == "DequantizeLinear":
            dtype = maker.inputs[0].dtype if maker.inputs[0] is not None else None
            return None if dtype is None else _WORDS.get(dtype, dtype.name.lower())
        if maker.op_type not in _TRANSPARENT or maker.op_type == "QuantizeLinear":
            return None
        value = maker.inputs[0]
    return None


def compare_types(
    model: ir.Model,
    wanted: Mapping[str, str],
    obtained: Mapping[str, str],
    findings: Findings,
) -> list[EngineType]:
    """Return one row for each node that something was wanted of, in the graph's order.

    Args:
        model: The graph that the engine was built from.
        wanted: Node name to precision.
        obtained: Node name to precision; a node that is missing counts as not found.
        findings: What the lint found in ``model``. A miss is laid to the first finding of an
            ``EXPLAINING`` rule at the node, else at what its inputs come from (the nodes that
            quantize, cast or reshape them, and their tensors).
    """
    rows = []
    for node, _ in all_nodes(model):
        name = node.name or ""
        if name not in wanted:
            continue
        got = obtained.get(name, "not found")
        missed = got != wanted[name]
        rule, why = _cause(node, findings) if missed else ("", "")
        rows.append(
            EngineType(
                node=name, op=node.op_type, wanted=wanted[name], obtained=got, rule=rule, why=why
            )
        )
    return rows


def _cause(node: ir.Node, findings: Findings) -> tuple[str, str]:
    for place in _neighbourhood(node):
        for rule, sentence in findings.get(place, ()):
            if rule in EXPLAINING:
                return rule, sentence
    return UNKNOWN, ""


def _neighbourhood(node: ir.Node) -> Iterator[str]:
    """Yield the names of the node and of what its inputs come from, nearest first."""
    waiting, seen = [node], {node}
    while waiting:
        here = waiting.pop(0)
        yield here.name or ""
        for value in here.inputs:
            if value is None:
                continue
            yield value.name or ""
            maker = value.producer()
            if maker is not None and maker.op_type in _TRANSPARENT and maker not in seen:
                seen.add(maker)
                waiting.append(maker)
