"""Golden cases of half precision; nodes named ``kept...`` stay, a file's name may say bfloat16."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from qcompile.graph.protocol import GraphPass
from qcompile.passes.cast_floats import CastFloats
from qcompile.passes.hold_floats import HoldFloats
from qcompile.passes.round_floats import RoundFloats
from qcompile.passes.soften_masks import SoftenMasks
from tests.passes.golden import case_id, cases, check_contract, description_test, golden_test, read
from tests.passes.tools import prepared

PASSES = (CastFloats, HoldFloats, RoundFloats, SoftenMasks)
CASES = cases([step.name for step in PASSES])


def loaded(path: Path) -> tuple[ir.Model, GraphPass]:
    model = prepared(read(path)[1], CastFloats())
    for step in (HoldFloats, RoundFloats, SoftenMasks):
        if path.parent.name == step.name:
            return model, step()
    names = [node.name for node in model.graph]
    kept = {name: "the test says so" for name in names if name and name.startswith("kept")}
    dtype = "bfloat16" if "bfloat16" in path.stem else "float16"
    return model, CastFloats(dtype=dtype, kept=kept)


test_golden = golden_test(CASES, loaded)


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_contract(path: Path) -> None:
    model, step = loaded(path)
    check_contract(model, step)
    if "com.example" not in model.opset_imports:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


test_describes_itself = description_test(PASSES)
