"""Weights in few bits for tests: solved by plain rounding, with what each option adds to it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompile.graph.protocol import Fact, GraphPass
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.numerics.groups import SolvedWeight, round_nearest
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.passes.insert_block_dequantize import InsertBlockDequantize
from qcompile.passes.insert_matmul_nbits import InsertMatmulNbits
from qcompile.passes.insert_qdq import NO_PLAN
from qcompile.plan import NodePlan, Plan, WeightPlan
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Feeds
from tests.planning.tools import graph_of, normal

HOLDS = frozenset({Fact.WORKING_OPSET, Fact.NAMED, Fact.TYPED, Fact.INPUTS_SCALED})


def linear(call: str, k: int = 150, n: int = 7, seed: int = 0, rank: int = 2) -> ir.Model:
    """Build ``n: y = call``, such as ``MatMul(x, w)`` or ``Gemm <transB=1> (x, w, b)``.

    Args:
        call: The only node; its input x has ``rank`` dimensions, the last one ``k``.
        k: Rows of the weight w ``(k, n)``, or its columns with transB.
        n: Columns of the weight; numbers of the bias b, where the call reads one.
        seed: Of the constants.
        rank: 1 to 4.
    """
    shape = {1: f"{k}", 2: f"3, {k}", 3: f"2, 3, {k}", 4: f"2, 1, 3, {k}"}[rank]
    weights = {"w": normal(seed, k, n, scale=0.2)}
    if "transB" in call:
        weights["w"] = np.ascontiguousarray(weights["w"].T)
    if "b)" in call:
        weights["b"] = normal(seed + 1, n)
    return graph_of(f"float[{shape}] x", f"[n] y = {call}", **weights)


def lies_by_rows(model: ir.Model, name: str) -> bool:
    value = model.graph.initializers[name]
    node = next(n for n in model.graph if len(n.inputs) > 1 and n.inputs[1] is value)
    return node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))


def rows_of(model: ir.Model, name: str) -> Array:
    """Return a weight as rows ``(R, K)``, as its first reader sees it."""
    array = model.graph.initializers[name].const_value.numpy().astype(np.float32)
    return array.reshape(len(array), -1) if lies_by_rows(model, name) else array.T


def solved_for(
    model: ir.Model,
    plans: Mapping[str, WeightPlan],
    orders: Mapping[str, Array] | None = None,
    scales: Mapping[str, Array] | None = None,
) -> dict[str, SolvedWeight]:
    """Round every planned weight, in the order and basis asked for."""
    found = {}
    for name, plan in plans.items():
        order, scale = (orders or {}).get(name), (scales or {}).get(name)
        rows = rows_of(model, name)
        rows = rows if scale is None else rows * scale
        rows = rows if order is None else rows[:, order]
        weight = round_nearest(rows, plan.format())
        found[name] = replace(weight, order=order, input_scale=scale)
    return found


def plan_of(model: ir.Model, weights: Mapping[str, WeightPlan]) -> Plan:
    """Plan every MatMul, Gemm and Conv that reads one of the weights."""
    nodes = {
        str(node.name): NodePlan(op=node.op_type, precision="weight-only", reason="a test")
        for node in model.graph
        if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].name in weights
    }
    return NO_PLAN.model_copy(
        update={"scheme": "weight-only", "weights": dict(weights), "nodes": nodes}
    )


@dataclass
class Rewritten:
    """A model before and after, and what its weights became."""

    source: ir.Model
    model: ir.Model
    solved: dict[str, SolvedWeight]
    fold: FoldInputScale
    refusals: dict[str, dict[str, int]]

    def expected(self, feeds: Feeds) -> Feeds:
        """Return what the source computes with the values of the solved weights."""
        reference = self.source.clone()
        for name, weight in self.solved.items():
            value, rows = reference.graph.initializers[name], weight.values()
            array = rows if lies_by_rows(self.source, name) else rows.T
            shape, dtype = value.const_value.shape.numpy(), value.const_value.dtype
            array = np.ascontiguousarray(array).reshape(shape).astype(dtype.numpy())
            value.const_value = ir.tensor(array, name=name)
        return Session(reference, optimize=False).run(feeds)

    def found(self, feeds: Feeds, *, optimize: bool = False) -> Feeds:
        return Session(self.model, optimize=optimize).run(feeds)


def rewritten(
    model: ir.Model,
    weights: Mapping[str, WeightPlan],
    orders: Mapping[str, Array] | None = None,
    scales: Mapping[str, Array] | None = None,
) -> Rewritten:
    """Fold the input scales and write the weights in, each in the form that it is planned in."""
    plan, out = plan_of(model, weights), model.clone()
    solved = solved_for(model, weights, orders, scales)
    fold = FoldInputScale(plan=plan, solved=solved.__getitem__)
    steps: list[GraphPass] = [
        fold,
        InsertMatmulNbits(plan=plan, solved=fold.folded),
        InsertBlockDequantize(plan=plan, solved=fold.folded),
    ]
    runs = run_passes(out, steps, holds=HOLDS - {Fact.INPUTS_SCALED}, paranoid=True)
    verify(out)
    return Rewritten(model, out, solved, fold, {run.name: run.refusals for run in runs})


def relative(found: Array, exact: Array) -> float:
    found, exact = found.astype(np.float64), exact.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
