"""Dynamically quantized layers on rows that are divided by their largest magnitude."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant
from qcompile.graph.insertion import new_node, put_behind
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import producer
from qcompile.passes.insert_qdq import NO_PLAN
from qcompile.plan import Plan


@dataclass(frozen=True, kw_only=True)
class DivideRows(GraphPass):
    """Give each row of what a dynamically quantized layer reads a scale of its own.

    That is the vector-wise quantization of LLM.int8() (arXiv:2208.07339, section 2.2); no kernel of
    ONNX Runtime takes more than one scale for the activation.

    Before: ``y = Gemm(x, W, b)`` or ``y = MatMul(x, W)``.
    After:  ``y = Add(Mul(Gemm(Mul(x, Reciprocal(r)), W), r), b)``, with r the largest magnitude in
            each row of x: ``r = Max(ReduceMax(Abs(x), -1), least)``; ``least`` keeps rows of zeros.

    All divided rows lie in [-1, 1], so one step of at most 2/255 serves them all; where nothing is
    negative it is half of that. Layers that read one value share r and the division. The layer
    keeps its name. Visits: the main graph, nodes that the plan computes in int8-dynamic.
    """

    name: ClassVar[str] = "divide-rows"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    plan: Plan = field(default=NO_PLAN, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Find the layers, then divide what each reads."""
        found = [
            node
            for node in model.graph
            if self.plan.precision(node.name or "") == "int8-dynamic" and not _is_divided(node)
        ]
        writer = _Writer(model)
        for node in found:
            writer.divide(node)
        return bool(found)


def _is_divided(node: ir.Node) -> bool:
    product = producer(node.inputs[0], "Mul")
    return product is not None and producer(product.inputs[1], "Reciprocal") is not None


class _Writer:
    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = Names(model)
        self.rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def divide(self, node: ir.Node) -> None:
        """Divide the rows that a node reads; multiply what it makes, and add its bias then."""
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None  # noqa: S101 - the planner chose a node with an activation
        if x not in self.rows:
            self.rows[x] = self._divided(node, x)
        divided, size = self.rows[x]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        node.replace_input_with(0, divided)
        node.resize_inputs(2)
        after = [new_node(self.names, "Mul", [y, size], y, "multiplied", y.shape)]
        if bias is not None:
            read = [after[0].outputs[0], bias]
            after.append(new_node(self.names, "Add", read, y, "biased", y.shape))
        put_behind(self.names, node, after, "divided")

    def _divided(self, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return x with each row divided, and the largest magnitude of each, ``(..., 1)``."""
        tiny = np.finfo((x.dtype or ir.DataType.FLOAT).numpy()).tiny
        last = add_constant(self.graph, self.names.fresh(x, "last"), np.array([-1]))
        least = add_constant(self.graph, self.names.fresh(x, "least"), np.asarray(tiny))
        column = None if x.shape is None else [*x.shape[:-1], 1]

        def add(op: str, inputs: list[ir.Value], what: str, *, rows: bool = True) -> ir.Value:
            shape = column if rows else x.shape
            new = new_node(self.names, op, inputs, x, what, shape)
            self.graph.insert_before(node, new)
            return new.outputs[0]

        magnitude = add("Abs", [x], "magnitude", rows=False)
        largest = add("ReduceMax", [magnitude, last], "row_maxima")
        size = add("Max", [largest, least], "row_sizes")
        inverse = add("Reciprocal", [size], "row_inverses")
        return add("Mul", [x, inverse], "by_rows", rows=False), size
