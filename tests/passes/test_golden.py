"""Every golden case through its pass, and the contract of passes on each of them."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from qcompile.graph.protocol import Effect, GraphPass, check_order
from qcompile.passes import CANONICAL, LOWERING
from qcompile.passes.average_codes import AverageCodes
from qcompile.passes.fold_stride import FoldStride
from qcompile.passes.pad_channels import PadChannels
from tests.passes.golden import (
    case_id,
    cases,
    check_contract,
    check_describes_itself,
    check_golden,
    read,
)
from tests.passes.tools import prepared, random_feeds, relative_l2, session

SAFE = (*CANONICAL, *LOWERING["ort-cpu"], FoldStride(), PadChannels(), AverageCodes())
PASSES: dict[str, GraphPass] = {step.name: step for step in SAFE}
CASES = cases(PASSES)


def loaded(path: Path) -> tuple[ir.Model, GraphPass]:
    step = PASSES[path.parent.name]
    return prepared(read(path)[1], step), step


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_golden(path: Path, update_golden: bool) -> None:
    check_golden(path, *loaded(path), update=update_golden)


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_contract(path: Path) -> None:
    model, step = loaded(path)
    feeds = random_feeds(model)
    outputs = session(model).run(None, feeds)
    check_contract(model, step)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert step.effect is not Effect.LOSSY
    assert relative_l2(outputs, session(model).run(None, feeds)) <= step.effect.value


@pytest.mark.parametrize("step", PASSES.values(), ids=PASSES.keys())
def test_describes_itself(step: GraphPass) -> None:
    check_describes_itself(step)


def test_order() -> None:
    check_order(list(CANONICAL))
