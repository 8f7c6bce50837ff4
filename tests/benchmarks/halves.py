"""Accuracy of halves and fp8 for TensorRT, simulated: the table of docs/halves.md.

Engines are really built with TensorRT for RTX; what they compute is simulated in ONNX Runtime with
optimizations off, on all evaluation samples of each model.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

import qcompile
from qcompile.errors import QcompileError
from qcompile.graph.protocol import Fact
from qcompile.halves import stand_in
from qcompile.plan import read_plan
from qcompile.report.schema import Report
from qcompile.runtime.ort import Session
from tests.benchmarks import engines, suite
from tests.benchmarks.table import Table

SCHEMES = ("fp16", "bf16", "fp8")
THREADS = 2
COLUMNS = ["model", "scheme", "float", "simulated", "SQNR, dB", "in fp32", "on codes", "MB"]


def measure(work: Path, names: Sequence[str]) -> Table:
    """Build and score all schemes of the named models; return the table."""
    table = Table("Halves", COLUMNS)
    for name in names:
        shutil.rmtree(work / "halves", ignore_errors=True)
        calib = engines.sample_folder(suite.calibration(name), work / f"{name}-calib")
        reference = f"{_score(name, suite.model_path(name)):.4g}"
        for scheme in SCHEMES:
            first = scheme == SCHEMES[0]
            cells = _row(name, scheme, calib, work / "halves")
            table.add(name if first else "", scheme, reference if first else "", *cells)
    return table


def _row(name: str, scheme: str, calib: Path, output: Path) -> list[str]:
    recipe = qcompile.Recipe.model_validate(
        {"scheme": scheme, "target": "tensorrt-rtx", "sm": (89,), "gates": {"allow_slower": True}}
    )
    try:
        report = qcompile.build(
            suite.model_path(name), calib=calib, output=output, recipe=recipe, force=True
        )
    except QcompileError as error:
        return [f"refused: {error}", "-", "-", "-", "-"]
    model = output / "simulated.onnx"
    half = "bf16" if scheme == "bf16" else "fp16"
    ir.save(stand_in(output / "model.onnx", half, frozenset({Fact.NAMED, Fact.TYPED})), model)
    score = _score(name, model)
    size = f"{report.engine_bytes() / 1e6:.2f}"
    return [f"{score:.4g}", _sqnr(report), _in_fp32(output), _on_codes(report), size]


def _score(name: str, model: Path) -> float:
    """Return the score on all evaluation samples, with ONNX Runtime's optimizations off."""
    session = Session(model, threads=THREADS, optimize=False)
    found = suite.tool("score").score(name, lambda feed: list(session.run(feed).values()))
    goal = suite.GOALS.get(name)
    return goal.factor * float(found[goal.metric]) if goal else float(found["ppl_wikitext2"])


def _sqnr(report: Report) -> str:
    found = [o.sqnr_db for o in report.simulated.outputs if o.sqnr_db is not None]
    return f"{min(found):.1f}" if found else "-"


def _in_fp32(output: Path) -> str:
    """Return the number of nodes with floats that were kept from the half type."""
    plan = read_plan(output / "plan.json")
    floats = [entry.reason for entry in plan.nodes.values() if entry.precision == "float"]
    return str(sum("fp32" in reason for reason in floats))


def _on_codes(report: Report) -> str:
    wanted = [x for x in report.delivery.layers if x.wanted == "fp8"]
    return f"{sum(x.wanted == x.obtained for x in wanted)} of {len(wanted)}" if wanted else "-"
