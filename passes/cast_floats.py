"""The float remainder of a graph in float16 or bfloat16."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import (
    Names,
    add_cast,
    add_initializer,
    drop_unread,
    lazy_tensor,
    remove_dead,
)
from qcompile.graph.halves import HALVES, Half, is_float32
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_constant, is_op, release
from qcompile.passes.half_nodes import HalfNodes


@dataclass(frozen=True, kw_only=True)
class CastFloats(GraphPass):
    """Let nodes compute in a type of 16 bits, which the graph itself then carries.

    Before: ``y = Relu(Conv(x, w))``, all of it float32.
    After:  ``x.float16 = Cast(x)``, Conv and Relu in float16, ``y = Cast(y.float16)``.

    A node stays in float32 if it is ``kept``, if its operator's schema has no such type at this
    opset (Range, NonMaxSuppression; inputs such as the scales of Resize stay alone), if it has
    bodies (If, Loop, Scan), is of a domain that is not known here, or if a constant of it does not
    fit: numbers beyond the largest half, scales of codes that are not the same number there, or 0.
    With such a DequantizeLinear its readers stay, for a Cast between codes and a kernel would hide
    the codes. What is exact in both types (data movement, Cast, Shape, QuantizeLinear, comparisons)
    follows its neighbours: a QuantizeLinear behind a float32 input rounds that input itself.

    Casts stand only where the types of maker and reader differ, one for a value and direction.
    Weights are rounded while the file is written; one that both sides read exists twice.
    Values keep their names, except that a graph output's name goes to its Cast.
    The types are those of Micikevicius et al. 2018 (arXiv:1710.03740) and Kalamkar et al. 2019
    (arXiv:1905.12322); no loss is scaled here, for there is no backward pass.
    Visits: the main graph; bodies read float32.
    """

    name: ClassVar[str] = "cast-floats"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    dtype: str = "float16"
    kept: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    keep_ports: bool = True

    def rewrite(self, model: ir.Model) -> bool:
        """Divide the nodes, then change types and cast between the halves."""
        half = HALVES[self.dtype]
        nodes = HalfNodes(model, half, self.kept, float_ports=self.keep_ports)
        for reason in nodes.reasons.values():
            self.refuse(reason)
        names = {node.name for node in model.graph}
        for name in self.kept:
            if name not in names:
                self.refuse(f"{name} should stay in float32, but there is no such node")
        return _Writer(model, half, nodes).write()


class _Writer:
    def __init__(self, model: ir.Model, half: Half, nodes: HalfNodes) -> None:
        self.graph, self.half, self.nodes = model.graph, half, nodes
        self.names = Names(model)
        self.changed = False

    def write(self) -> bool:
        """Turn values half and put Casts between; return whether anything changed."""
        graph, nodes = self.graph, self.nodes
        made = [*graph.inputs, *(out for node in graph for out in node.outputs)]
        made = [value for value in made if is_float32(value)]
        constants = [v for v in graph.initializers.values() if is_float32(v)]
        constants += [v for v in made if is_constant(v)]
        computed = [v for v in made if not is_constant(v)]
        gives = {value: nodes.gives_half(value) for value in computed}
        for node in nodes.slots:
            self._set_attributes(node)
        for value in dict.fromkeys(constants):
            if not value.is_graph_input():
                self._round_constant(value)
        for value, is_half in gives.items():
            self._connect(value, is_half=is_half)
        for node in nodes.slots:
            self._drop_idle_cast(node)
        return self.changed

    def _set_attributes(self, node: ir.Node) -> None:
        """Say the type where an attribute does."""
        kind = int(self.half.dtype)
        if is_op(node, "Cast") and node.attributes.get_int("to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", kind)
        if is_op(node, "DequantizeLinear") and "output_dtype" in node.attributes:
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", kind)
        if is_op(node, "ConstantOfShape") and self.nodes.slots[node].outputs:
            given = node.attributes.get("value")
            fill = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
            tensor = ir.Tensor(self.half.cast(fill), dtype=self.half.dtype)
            node.attributes["value"] = ir.AttrTensor("value", tensor)

    def _round_constant(self, value: ir.Value) -> None:
        """Give the half readers of a constant its rounded numbers; alone, under its own name."""
        uses = [use for use in value.uses() if self.nodes.wants_half(use.node, use.idx)]
        tensor = ir.convenience.get_const_tensor(value)
        if not uses or tensor is None:
            return
        alone = len(uses) == len(value.uses()) and not value.is_graph_output()
        name = str(value.name) if alone else self.names.fresh(value, self.half.name)
        rounded = self._rounded(name, tensor)
        if alone and value.is_initializer():
            value.const_value, value.type = rounded, ir.TensorType(self.half.dtype)
        else:
            if alone:
                value.name = self.names.fresh(value, "float32")
            new = add_initializer(self.graph, rounded)
            for node, index in uses:
                node.replace_input_with(index, new)
            self._drop(value)
        self.changed = True

    def _rounded(self, name: str, tensor: ir.TensorProtocol) -> ir.LazyTensor:
        def compute() -> np.ndarray:
            array = self.half.cast(tensor.numpy())
            release(tensor)
            return array

        return lazy_tensor(name, self.half.dtype, tensor.shape.numpy(), compute)

    def _drop(self, value: ir.Value) -> None:
        maker = value.producer()
        if maker is None:
            drop_unread(value)
        else:
            remove_dead([maker])

    def _connect(self, value: ir.Value, *, is_half: bool) -> None:
        """Type a value that is computed or fed, and cast it for the readers of the other type."""
        uses = list(value.uses())
        others = [use for use in uses if self.nodes.wants_half(use.node, use.idx) != is_half]
        port = value.producer() is not None and any(v is value for v in self.graph.outputs)
        port = port and self.nodes.float_ports == is_half
        if is_half:
            value.type = ir.TensorType(self.half.dtype)
            self.changed = True
        if not others and not port:
            return
        cast = self._cast(value, ir.DataType.FLOAT if is_half else self.half.dtype)
        for node, index in others:
            node.replace_input_with(index, cast)
        if port:
            self._take_output(value, cast)
        self.changed = True

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        names = self.names.fresh(value, "Cast"), self.names.fresh(value, str(dtype.numpy()))
        return add_cast(self.graph, value, dtype, *names)

    def _take_output(self, value: ir.Value, cast: ir.Value) -> None:
        """Let the Cast be the graph output, under its name."""
        name, dtype = value.name, value.dtype
        assert dtype is not None  # noqa: S101 - it was cast
        value.name = self.names.fresh(value, str(dtype.numpy()))
        cast.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = cast

    def _drop_idle_cast(self, node: ir.Node) -> None:
        """Remove a Cast of the model to the type that its input has become."""
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if not is_op(node, "Cast") or source is None or source.dtype != result.dtype:
            return
        if not result.is_graph_output():
            result.replace_all_uses_with(source)
            self.graph.remove(node, safe=True)
            self.changed = True
