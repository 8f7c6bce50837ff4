"""Pass: widen halves."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.graph.edit import Names, add_cast
from qcompile.graph.halves import BFLOAT16, FLOAT16
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_graphs, all_nodes, is_op
from qcompile.passes.round_floats import TYPE_ATTRIBUTES, widen_attributes, widen_constant

HALF_TYPES = (FLOAT16.dtype, BFLOAT16.dtype)


@dataclass(frozen=True, kw_only=True)
class WidenHalves(GraphPass):
    """Let what computes in float16 or bfloat16 compute in float32.

    Before: ``y = DQ(Q(Conv(x, w)))``, all of it float16, scales too.
    After:  ``x.float32 = Cast(x)``, the same nodes on float32, ``y = Cast(y.float32)``.

    Weights and scales are the same numbers; results are no longer rounded to 11 or 8 bits. A Cast
    to a half type becomes one to float32, which ``remove-identities`` removes where it then does
    nothing: codes and the layer that reads them stand side by side again. Inputs and outputs of
    the model keep their types; values keep their names, except that an output's name goes to its
    Cast.
    Visits: the main graph and subgraphs. Leaves: models in which a half is in a sequence, or is
    read or made by an operator of a domain that is not known here.
    """

    name: ClassVar[str] = "widen-halves"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED, Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    def rewrite(self, model: ir.Model) -> bool:
        """Change types everywhere, then cast at the ports of the model."""
        values = [value for value in _values(model) if value.dtype in HALF_TYPES]
        reason = _problem(model, values)
        if reason:
            self.refuse(reason)
            return False
        graph, names = model.graph, Names(model)
        ports = {*graph.inputs, *graph.outputs}
        cast = {value for value in values if value in ports and _is_cast(value)}
        for node, _ in all_nodes(model):
            if not cast.intersection(node.outputs):
                widen_attributes(node, HALF_TYPES)
        found = [value for value in values if value not in cast]
        return any([_widen(graph, value, names, ports) for value in found])  # noqa: C419 - all


def holds_halves(model: ir.Model) -> bool:
    """Say whether a model, as it was read, computes with halves."""
    if any(value.dtype in HALF_TYPES for value in _values(model)):
        return True
    inner = (node for function in model.functions.values() for node in function)
    nodes = (*(node for node, _ in all_nodes(model)), *inner)
    named = (node.attributes.get(name) for node in nodes for name in TYPE_ATTRIBUTES)
    return any(a is not None and not a.is_ref() and a.value in HALF_TYPES for a in named)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield inputs, initializers and what nodes make, in all graphs, each once."""
    for graph in all_graphs(model):
        yield from graph.inputs
        yield from (v for v in graph.initializers.values() if not v.is_graph_input())
        yield from (out for node in graph for out in node.outputs)


def _problem(model: ir.Model, values: list[ir.Value]) -> str:
    if any(not isinstance(value.type, ir.TensorType) for value in values):
        return "a sequence holds halves: the model computes as it is"
    for node, _ in all_nodes(model):
        ports = (*node.inputs, *node.outputs)
        touched = any(v is not None and v.dtype in HALF_TYPES for v in ports)
        if touched and node.domain not in ("", "com.microsoft"):
            return f"{node.domain}.{node.op_type} computes with halves: so does the model"
    return ""


def _is_cast(value: ir.Value) -> bool:
    """Say whether a port is as this pass leaves it: made by a Cast, or read by Casts alone."""
    maker, readers = value.producer(), [use.node for use in value.uses()]
    if maker is not None:
        wide = maker.inputs[0] is not None and maker.inputs[0].dtype not in HALF_TYPES
        return is_op(maker, "Cast") and wide and not readers
    to = ir.DataType.FLOAT
    return all(is_op(node, "Cast") and node.attributes.get_int("to") == to for node in readers)


def _widen(graph: ir.Graph, value: ir.Value, names: Names, ports: set[ir.Value]) -> bool:
    """Turn a value to float32; a port keeps type and name, and is cast."""
    assert value.dtype is not None  # noqa: S101 - a half type
    half, maker, label = value.dtype, value.producer(), names.fresh(value, "float32")
    if value in ports and maker is None:
        wide = add_cast(graph, value, ir.DataType.FLOAT, names.fresh(value, "Cast"), label)
        for node, index in [(n, i) for n, i in value.uses() if n is not wide.producer()]:
            node.replace_input_with(index, wide)
        return True
    if maker is None:
        widen_constant(value)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    if value in ports:
        name, value.name = str(value.name), label
        cast = add_cast(graph, value, half, names.fresh(value, "Cast"), name)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = cast
    return True
