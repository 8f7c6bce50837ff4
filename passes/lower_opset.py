"""Pass: lower opset."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx.defs
import onnx_ir as ir

from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_nodes

_CHANGED: Mapping[str, int] = {"DFT": 20, "GridSample": 20, "GroupNormalization": 21}
"""Operators that mean something else since an opset, though their form may fit both."""


@dataclass(frozen=True, kw_only=True)
class LowerOpset(GraphPass):
    """Call the default domain an older opset, for runtimes that know no newer one.

    Nothing but the number changes, so every node must mean the same there: a schema of that opset
    that has its inputs, attributes (with the same defaults) and types. Where one does not, the
    oldest newer opset is taken at which all do.

    Before: ``opset 21``, ``QuantizeLinear(x, scale, zero_point)``.
    After:  ``opset 19``, the same.
    Visits: the main graph and subgraphs. Leaves: operators of other domains, opsets that are old.
    """

    name: ClassVar[str] = "lower-opset"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED, Fact.TYPED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.WORKING_OPSET})
    effect: ClassVar[Effect] = Effect.EXACT

    opset: int = 19

    def rewrite(self, model: ir.Model) -> bool:
        """Take the oldest opset that does; refuse with the operators that forbid an older one."""
        found = model.opset_imports[""]
        nodes = [node for node, _ in all_nodes(model) if node.domain == ""]
        for opset in range(self.opset, found):
            faults = {fault: None for node in nodes if (fault := _fault(node, found, opset))}
            if not faults:
                _relabel(model, opset)
                return True
            for fault in faults:
                self.refuse(f"opset {opset}: {fault}")
        return False


def _relabel(model: ir.Model, opset: int) -> None:
    for graph in model.graphs():
        if "" in graph.opset_imports:  # a subgraph says it or leaves it to the model
            graph.opset_imports[""] = opset


def _fault(node: ir.Node, found: int, opset: int) -> str:
    """Return why a node does not mean the same at an older opset, or nothing."""
    op = node.op_type
    if opset < _CHANGED.get(op, 0) <= found:
        return f"{op} meant something else"
    new, old = _schema(op, found), _schema(op, opset)
    if old is None or new is None or old.deprecated:
        return f"{op} is not there yet" if new is not None else f"{op} is unknown"
    if new.since_version == old.since_version:
        return ""
    return _other_form(node, new, old) or _other_types(node, old)


def _other_form(node: ir.Node, new: onnx.defs.OpSchema, old: onnx.defs.OpSchema) -> str:
    op = node.op_type
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        return f"{op} has fewer inputs or outputs"
    for name in node.attributes:
        if name not in old.attributes:
            return f"{op} has no attribute {name}"
    for name, attribute in old.attributes.items():
        if name not in node.attributes and _default(attribute) != _default(
            new.attributes.get(name)
        ):
            return f"{op} has another default of {name}"
    return ""


def _other_types(node: ir.Node, old: onnx.defs.OpSchema) -> str:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in old.type_constraints}
    for values, formals in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        for index, value in enumerate(values):
            if value is None or not value.name:
                continue
            formal = formals[min(index, len(formals) - 1)]
            kinds = allowed.get(formal.type_str, {formal.type_str})
            if value.type is None:
                return f"{node.op_type} has values of unknown type"
            if _type_text(value.type) not in kinds:
                return f"{node.op_type} takes no {_type_text(value.type)}"
    return ""


def _type_text(kind: ir.TypeProtocol) -> str:
    """Return a type as schemas write it: ``tensor(float)``, ``seq(tensor(int64))``."""
    if isinstance(kind, ir.SequenceType):
        return f"seq({_type_text(kind.elem_type)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({_type_text(kind.elem_type)})"
    return f"tensor({kind.dtype.name.lower()})"


def _default(attribute: onnx.defs.OpSchema.Attribute | None) -> bytes:
    return b"" if attribute is None else attribute.default_value.SerializeToString()


@functools.cache
def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return None
