"""Golden cases of the passes that write a plan; every range is -1 to 1, behind a Relu 0 to 1."""

from pathlib import Path

import onnx_ir as ir

from qcompile.graph.protocol import GraphPass
from qcompile.passes.divide_rows import DivideRows
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.plan import Plan
from qcompile.planning.plan import activations_of, assemble
from qcompile.planning.ranges import Choice
from qcompile.planning.select import select
from qcompile.planning.wishes import Wishes
from qcompile.targets.ort_cpu import ORT_CPU
from tests.passes.golden import (
    case_test,
    cases,
    check_contract,
    description_test,
    golden_test,
    read,
)
from tests.passes.tools import prepared

SCHEMES = {
    "insert-qdq": "int8",
    "fence-float-nodes": "int8",
    "divide-rows": "int8-dynamic",
    "dynamic-matmul": "int8-dynamic",
}
WITH_PLAN: dict[str, type[GraphPass]] = {
    step.name: step for step in (InsertQdq, DivideRows, DynamicMatmul)
}
CASES = cases(SCHEMES)


def planned(model: ir.Model, scheme: str) -> Plan:
    wishes = Wishes(patterns=("*left*",))
    chosen = select(model, ORT_CPU, scheme, wishes)
    made = {out.name: node.op_type for node in model.graph for out in node.outputs}
    choices = {
        name: Choice(0.0 if made.get(name) == "Relu" else -1.0, 1.0, "minmax", {})
        for name in activations_of(chosen)
    }
    return assemble(model, chosen, ORT_CPU, "vnni", scheme, choices)


def step_for(path: Path, model: ir.Model) -> GraphPass:
    name = path.parent.name
    if name == "fence-float-nodes":
        return FenceFloatNodes()
    return WITH_PLAN[name](plan=planned(model, SCHEMES[name]))


def loaded(path: Path) -> tuple[ir.Model, GraphPass]:
    model = prepared(read(path)[1], InsertQdq())
    return model, step_for(path, model)


test_golden = golden_test(CASES, loaded)


test_contract = case_test(CASES, loaded, check_contract)


test_describes_itself = description_test([FenceFloatNodes, *WITH_PLAN.values()])
