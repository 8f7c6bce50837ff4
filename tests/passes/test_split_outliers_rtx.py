"""What TensorRT for RTX makes of a split layer: codes for the regular part, floats beside it."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from qcompile.errors import EngineError
from qcompile.graph.runner import run_passes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.planning.outliers import float_nodes
from qcompile.planning.plan import activations_of, assemble
from qcompile.planning.ranges import Choice
from qcompile.planning.select_inputs import select_inputs
from qcompile.planning.wishes import Wishes
from qcompile.remedies import Outliers, Remedies
from qcompile.runtime.obtained import obtained
from qcompile.runtime.rtx import RtxBuild, RtxRequest
from qcompile.runtime.rtx_library import is_installed
from qcompile.targets.tensorrt import TENSORRT_RTX
from tests.planning.tools import HOLDS, graph_of, normal
from tests.runtime import rtx_forks

pytestmark = pytest.mark.skipif(
    is_installed() is None,
    reason="TensorRT for RTX is not installed (pip install 'qcompile[tensorrt-rtx]')",
)


def quantized(one: Outliers) -> ir.Model:
    """Two layers share their input, behind a LayerNormalization, as query and key do."""
    model = graph_of(
        "float[2, 32, 128] x",
        "n = LayerNormalization(x, g, s)\n[q] a = MatMul(n, w)\n[k] b = MatMul(n, v)\n"
        "c = Add(a, u)\nd = Mul(c, b)\ny = Tanh(d)",
        g=normal(1, 128),
        s=normal(2, 128),
        u=normal(3, 64),
        w=normal(4, 128, 64),
        v=normal(5, 128, 64),
    )
    remedies = Remedies(outliers={"q": one, "k": one})
    run_passes(model, [SplitOutliers(remedies=remedies)], holds=HOLDS)
    wishes = Wishes(nodes=float_nodes(model, remedies))
    selection = select_inputs(model, TENSORRT_RTX, "int8", wishes)
    choices = {name: Choice(-3.0, 3.0, "minmax", {}) for name in activations_of(selection)}
    assert list(choices) == ["n.regular"]
    types = TENSORRT_RTX.types("int8", "89")
    plan = assemble(model, selection, TENSORRT_RTX, "89", "int8", choices, types)
    run_passes(model, [InsertQdq(plan=plan, hand_on=False)], holds=HOLDS)
    return model


def built(model: ir.Model, path: Path) -> RtxBuild:
    onnx.save(ir.to_proto(model), path)
    return rtx_forks.built(RtxRequest(path, path.with_suffix(".engine"), sms=(89,)))


def test_the_regular_part_keeps_its_kernel(tmp_path) -> None:
    model = quantized(Outliers(channels=[3, 77], columns=128, threshold=6.0))
    layers = built(model, tmp_path / "m.onnx").layers
    found = {name: one.precision for name, one in obtained(model, layers, ["MatMul"]).items()}
    assert found == {
        "q": "int8",
        "k": "int8",
        "a.outliers.MatMul": "fp32",
        "b.outliers.MatMul": "fp32",
    }
    (fused,) = [layer for layer in layers if "n.regular.QuantizeLinear" in layer.nodes]
    assert {"LayerNormalization.n", "n.loud.Gather"} <= set(fused.nodes)  # and the Mul between


def test_columns_are_not_found_at_run_time(tmp_path) -> None:
    model = quantized(Outliers(channels=[], columns=128, threshold=6.0, run_time=True))
    with pytest.raises(EngineError, match="has no operator NonZero"):
        built(model, tmp_path / "m.onnx")
