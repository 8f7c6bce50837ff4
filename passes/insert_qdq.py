"""QuantizeLinear and DequantizeLinear where the plan says so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.edit import Names, add_constant, add_initializer, lazy_tensor
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.numerics.grids import Codes, quantize
from qcompile.plan import Plan, TensorPlan

NO_PLAN = Plan(model="", target="", device="", scheme="int8", tensors={}, nodes={})


@dataclass(frozen=True, kw_only=True)
class InsertQdq(GraphPass):
    """Write the plan into the graph as QDQ pairs.

    Before: ``y = Conv(x, W, B)``.
    After:  ``y = Conv(DQ(Q(x)), DQ(W.codes), DQ(B.codes))``, then ``DQ(Q(y))`` for its readers.

    A value made by an int8 node gives all its readers the dequantized value, for the kernel must
    see codes only; a value made in float, and a graph input, gives it to the int8 readers alone.
    With ``hand_on`` off the latter holds for all values: TensorRT's convolutions make floats, too.
    A graph output keeps its name: the raw value becomes ``<name>.raw``.
    Scales and zero points have rank 0 for per-tensor grids, and zero points are always written:
    ONNX Runtime's selectors ask for both. Codes of weights are those that were
    solved for, or else the nearest ones, computed while the file is written.
    Visits: the main graph (also uses inside subgraphs).
    """

    name: ClassVar[str] = "insert-qdq"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    effect: ClassVar[Effect] = Effect.LOSSY

    hand_on: bool = True
    plan: Plan = field(default=NO_PLAN, repr=False, compare=False)
    codes: Mapping[str, Codes] = field(default_factory=dict, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Insert the pairs of activations, then those of constants."""
        written = {f"{name}.DequantizeLinear" for name in self.plan.tensors}
        if any(node.name in written for node in model.graph):
            self.refuse("the graph has QDQ pairs already")
            return False
        writer = _Writer(model, self.plan, self.codes, hand_on=self.hand_on)
        for name, tensor in self.plan.tensors.items():
            if tensor.kind == "activation":
                writer.activation(name, tensor)
            else:
                writer.constant(name, tensor)
        model.graph.sort()
        return bool(self.plan.tensors)


class _Writer:
    def __init__(
        self, model: ir.Model, plan: Plan, codes: Mapping[str, Codes], *, hand_on: bool
    ) -> None:
        self.graph, self.hand_on = model.graph, hand_on
        self.plan = plan
        self.solved = codes
        self.names = Names(model)
        self.values = {v.name: v for v in model.graph.inputs}
        self.values |= {out.name: out for node in model.graph for out in node.outputs}

    def activation(self, name: str, tensor: TensorPlan) -> None:
        """Put one pair behind a value."""
        value = self.values.get(name)
        if value is None:
            raise PlanError(f"plan: tensor {name} is not in the model")
        producer = value.producer()
        everyone = self.hand_on and producer is not None and self._is_int8(producer)
        uses = [use for use in value.uses() if everyone or self._is_int8(use.node)]
        exported = everyone and value.is_graph_output()
        if not uses and not exported:
            return
        real = self._pair(value, tensor)
        for node, index in uses:
            node.replace_input_with(index, real)
        if exported:
            self._take_output(value, real)

    def constant(self, name: str, tensor: TensorPlan) -> None:
        """Store a weight or bias as codes, for its int8 readers."""
        value = self.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise PlanError(f"plan: constant {name} is not in the model")
        uses = [use for use in value.uses() if self._is_int8(use.node)]
        if not uses:
            return
        source, axis = value.const_value, tensor.axis
        scale, zero_point = tensor.scales(), tensor.zero_points()
        solved = self.solved.get(name)

        def compute() -> Codes:
            if solved is not None:
                return solved
            codes = quantize(source.numpy(), scale, zero_point, axis, tensor.type)
            return codes.clip(-63, 63) if tensor.reduce_range else codes

        codes = add_initializer(
            self.graph,
            lazy_tensor(
                self.names.fresh(value, "codes"),
                ir.DataType[tensor.type.upper()],
                source.shape.numpy(),
                compute,
            ),
        )
        real = self._dequantize(codes, value, tensor)
        for node, index in uses:
            node.replace_input_with(index, real)
        if not value.uses() and not value.is_graph_output():
            del self.graph.initializers[name]

    def _pair(self, value: ir.Value, tensor: TensorPlan) -> ir.Value:
        scale, zero_point = self._grid(value, tensor)
        node = ir.node(
            "QuantizeLinear",
            [value, scale, zero_point],
            name=self.names.fresh(value, "QuantizeLinear"),
        )
        codes = node.outputs[0]
        codes.name = self.names.fresh(value, "codes")
        codes.type = ir.TensorType(ir.DataType[tensor.type.upper()])
        codes.shape = value.shape
        self.graph.append(node)
        return self._dequantized(codes, scale, zero_point, value, tensor)

    def _dequantize(self, codes: ir.Value, value: ir.Value, tensor: TensorPlan) -> ir.Value:
        scale, zero_point = self._grid(value, tensor)
        return self._dequantized(codes, scale, zero_point, value, tensor)

    def _dequantized(
        self,
        codes: ir.Value,
        scale: ir.Value,
        zero_point: ir.Value,
        value: ir.Value,
        tensor: TensorPlan,
    ) -> ir.Value:
        axis = {} if tensor.axis is None else {"axis": tensor.axis}
        node = ir.node(
            "DequantizeLinear",
            [codes, scale, zero_point],
            attributes=axis,
            name=self.names.fresh(value, "DequantizeLinear"),
        )
        real = node.outputs[0]
        real.name = self.names.fresh(value, "quantized")
        real.type, real.shape = value.type, value.shape
        self.graph.append(node)
        return real

    def _grid(self, value: ir.Value, tensor: TensorPlan) -> tuple[ir.Value, ir.Value]:
        return (
            add_constant(self.graph, self.names.fresh(value, "scale"), tensor.scales()),
            add_constant(self.graph, self.names.fresh(value, "zero_point"), tensor.zero_points()),
        )

    def _take_output(self, value: ir.Value, real: ir.Value) -> None:
        """Let the dequantized value stand in for a graph output, under its name."""
        name = value.name
        value.name = self.names.fresh(value, "raw")
        real.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = real

    def _is_int8(self, node: ir.Node) -> bool:
        return self.plan.is_quantized(node.name or "")
