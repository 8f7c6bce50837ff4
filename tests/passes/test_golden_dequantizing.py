"""Golden cases of the passes that give back floats, or widen them; results stay near."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.graph.protocol import GraphPass
from qcompile.passes.dequantize_graph import DequantizeGraph
from qcompile.passes.expand_qlinear import ExpandQlinear
from qcompile.passes.widen_halves import WidenHalves
from tests.passes.golden import case_id, cases, check_contract, description_test, golden_test, read
from tests.passes.tools import prepared, random_feeds, session

PASSES: dict[str, type[GraphPass]] = {
    "dequantize-graph": DequantizeGraph,
    "expand-qlinear": ExpandQlinear,
    "widen-halves": WidenHalves,
}
CASES = cases(PASSES)


def loaded(path: Path) -> tuple[ir.Model, GraphPass]:
    step = PASSES[path.parent.name]()
    return prepared(read(path)[1], step), step


test_golden = golden_test(CASES, loaded)


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_contract(path: Path) -> None:
    """For inputs on their grids, the results are those of the codes up to the last rounding."""
    model, step = loaded(path)
    feeds = {
        name: np.rint(2 * array) / np.float32(2) if array.dtype == np.float32 else array
        for name, array in random_feeds(model).items()
    }
    if path.stem == "left":
        check_contract(model, step)
        return
    before = session(model).run(None, feeds)
    check_contract(model, step)
    for old, new in zip(before, session(model).run(None, feeds), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        near = 1 if old.dtype == np.uint8 else 0.3
        assert np.abs(old.astype(float) - new.astype(float)).max() <= near


test_describes_itself = description_test(PASSES.values())
