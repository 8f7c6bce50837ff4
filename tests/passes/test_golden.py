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
    check_equivalence,
    description_test,
    golden_test,
    read,
)
from tests.passes.tools import prepared

SAFE = (*CANONICAL, *LOWERING["ort-cpu"], FoldStride(), PadChannels(), AverageCodes())
PASSES: dict[str, GraphPass] = {step.name: step for step in SAFE}
CASES = cases(PASSES)


def loaded(path: Path) -> tuple[ir.Model, GraphPass]:
    step = PASSES[path.parent.name]
    return prepared(read(path)[1], step), step


test_golden = golden_test(CASES, loaded)


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_contract(path: Path) -> None:
    model, step = loaded(path)
    assert step.effect is not Effect.LOSSY
    check_equivalence(model, step)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


test_describes_itself = description_test(PASSES.values())


def test_order() -> None:
    check_order(list(CANONICAL))
