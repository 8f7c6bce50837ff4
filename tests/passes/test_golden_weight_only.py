"""Golden cases of the passes that store weights in few bits.

Weights are planned by their names: ``left`` is not, ``asym`` has zero points, ``permuted`` stands
in another order, ``scaled`` has an input scale, ``channel`` has a scale a channel; the others are
symmetric int4 in groups of 16.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.graph.protocol import GraphPass
from qcompile.passes import WEIGHT_ONLY
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.passes.hold_codes import HoldCodes
from qcompile.plan import Plan, WeightPlan
from tests.passes.golden import (
    case_test,
    cases,
    check_contract,
    description_test,
    golden_test,
    read,
)
from tests.passes.tools import prepared
from tests.passes.weights import plan_of, rows_of, solved_for

PASSES = {step.name: type(step) for step in WEIGHT_ONLY}
CASES = cases(PASSES)


def planned(model: ir.Model, name: str) -> Plan:
    form = "dequantize" if name == "insert-block-dequantize" else "nbits"
    read_as_weights = {
        n.inputs[1].name for n in model.graph if len(n.inputs) > 1 and n.inputs[1] is not None
    }
    weights = {
        weight: WeightPlan(
            bits=4,
            group_size=0 if "channel" in weight else 16,
            symmetric="asym" not in weight,
            permuted="permuted" in weight,
            input_scaled="scaled" in weight,
            form=form,
        )
        for weight in model.graph.initializers
        if weight.startswith("w") and "left" not in weight and weight in read_as_weights
    }
    return plan_of(model, weights)


def step_for(model: ir.Model, name: str) -> GraphPass:
    if name == HoldCodes.name:
        return HoldCodes()
    plan = planned(model, name)
    columns = {weight: rows_of(model, weight).shape[1] for weight in plan.weights}
    orders = {w: np.arange(k)[::-1] for w, k in columns.items() if plan.weights[w].permuted}
    scales = {
        w: np.linspace(0.5, 2, k).astype(np.float32)
        for w, k in columns.items()
        if plan.weights[w].input_scaled
    }
    solved = solved_for(model, plan.weights, orders, scales)
    return PASSES[name](plan=plan, solved=solved.__getitem__)


def loaded(path: Path) -> tuple[ir.Model, GraphPass]:
    model = prepared(read(path)[1], FoldInputScale())
    return model, step_for(model, path.parent.name)


test_golden = golden_test(CASES, loaded)


test_contract = case_test(CASES, loaded, check_contract)


test_describes_itself = description_test(WEIGHT_ONLY)
