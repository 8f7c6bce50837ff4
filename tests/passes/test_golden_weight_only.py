"""Golden cases of the passes that store weights in few bits.

Weights are planned by their names: ``left`` is not, ``asym`` has zero points, ``permuted`` stands
in another order, ``scaled`` has an input scale, ``channel`` has a scale a channel; the others are
symmetric int4 in groups of 16.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.graph.dump import dump
from qcompile.graph.protocol import GraphPass
from qcompile.graph.verify import verify
from qcompile.passes import WEIGHT_ONLY
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.passes.name_values import NameValues
from qcompile.plan import Plan, WeightPlan
from tests.passes.test_golden import GOLDEN, case_id, read, signature, test_names_agree
from tests.passes.tools import prepared
from tests.passes.weights import plan_of, rows_of, solved_for

PASSES = {step.name: type(step) for step in WEIGHT_ONLY}
CASES = sorted(path for name in PASSES for path in (GOLDEN / name).glob("*.txt"))


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


def loaded(path: Path) -> tuple[str, ir.Model, GraphPass, str]:
    head, model, after = read(path)
    prepared(model, FoldInputScale())
    return head, model, step_for(model, path.parent.name), after


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_golden(path: Path, update_golden: bool) -> None:
    head, model, step, after = loaded(path)
    modified = step(model).modified
    assert head.startswith("changes: " if modified else "unchanged: "), dict(step.refusals)
    if update_golden:
        kept = path.read_text("utf-8").partition("--- after\n")[0]
        path.write_text(f"{kept}--- after\n{dump(model)}", "utf-8")
    else:
        assert dump(model) == after


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_contract(path: Path) -> None:
    _, model, step, _ = loaded(path)
    text, interface = dump(model), signature(model)
    modified = step(model).modified
    assert modified == (dump(model) != text)
    assert signature(model) == interface
    assert not step(model).modified, "the second run must find nothing"
    NameValues()(model)
    verify(model)
    onnx.checker.check_model(ir.to_proto(model))


@pytest.mark.parametrize("step", WEIGHT_ONLY, ids=lambda step: step.name)
def test_describes_itself(step: GraphPass) -> None:
    test_names_agree(step)
    heads = [path.read_text("utf-8") for path in CASES if path.parent.name == step.name]
    assert any(head.startswith("changes: ") for head in heads)
    assert any(head.startswith("unchanged: ") for head in heads)
