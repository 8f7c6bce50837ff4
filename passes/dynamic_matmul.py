"""MatMul and Gemm with constant weights as ONNX Runtime's dynamically quantized operator."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.edit import Names, add_constant, add_initializer, lazy_tensor, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.numerics.grids import quantize
from qcompile.passes.insert_qdq import NO_PLAN
from qcompile.plan import Plan, TensorPlan

CONTRIB = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class DynamicMatmul(GraphPass):
    """Replace the nodes that the plan computes in int8 with run-time scales.

    Before: ``y = MatMul(x, W)`` or ``y = Gemm(x, W, b)``.
    After:  ``y = com.microsoft::DynamicQuantizeMatMul(x, W.codes, W.scale, W.zero_point, b)``.

    The operator takes the range of x in each run and rounds x to uint8 per tensor; weights are
    signed, symmetric, per column. Visits: the main graph.
    """

    name: ClassVar[str] = "dynamic-matmul"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    plan: Plan = field(default=NO_PLAN, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Replace every planned node."""
        names = Names(model)
        chosen = [
            node
            for node in model.graph
            if self.plan.precision(node.name or "") == "int8-dynamic" and not node.domain
        ]
        codes: dict[tuple[str, bool], list[ir.Value]] = {}
        for node in chosen:
            weight = node.inputs[1]
            assert weight is not None  # noqa: S101 - the planner chose a node with a weight
            transposed = bool(node.attributes.get_int("transB", 0))
            key = (weight.name or "", transposed)
            if key not in codes:
                tensor = self.plan.tensors.get(weight.name or "")
                if tensor is None:
                    raise PlanError(f"plan: weight {weight.name} has no grid")
                codes[key] = _codes(model.graph, names, weight, tensor, transposed=transposed)
            bias = list(node.inputs[2:3])
            fused = ir.node(
                "DynamicQuantizeMatMul",
                [node.inputs[0], *codes[key], *bias],
                domain=CONTRIB,
                name=names.fresh(node, "DynamicQuantizeMatMul"),
            )
            model.graph.insert_after(node, fused)
            take_over(fused.outputs[0], node.outputs[0])
            model.graph.remove(node, safe=True)
            if not weight.uses() and not weight.is_graph_output():
                model.graph.initializers.pop(weight.name or "", None)
        if chosen:
            model.opset_imports.setdefault(CONTRIB, 1)
        return bool(chosen)


def _codes(
    graph: ir.Graph, names: Names, weight: ir.Value, tensor: TensorPlan, *, transposed: bool
) -> list[ir.Value]:
    """Store a weight as codes ``(K, N)`` with scale and zero point ``(N,)``."""
    source = weight.const_value
    if source is None:
        raise PlanError(f"plan: {weight.name} is not a constant")
    scale, zero_point, axis = tensor.scales(), tensor.zero_points(), tensor.axis
    limit = 63 if tensor.reduce_range else 127
    shape = list(source.shape.numpy())

    def compute() -> np.ndarray:
        values = quantize(source.numpy(), scale, zero_point, axis, tensor.type)
        values = values.clip(-limit, limit)
        return values.T if transposed else values

    codes = add_initializer(
        graph,
        lazy_tensor(
            names.fresh(weight, "codes"),
            ir.DataType[tensor.type.upper()],
            shape[::-1] if transposed else shape,
            compute,
        ),
    )
    return [
        codes,
        add_constant(graph, names.fresh(weight, "scale"), scale),
        add_constant(graph, names.fresh(weight, "zero_point"), zero_point),
    ]
