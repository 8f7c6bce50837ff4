"""Accuracy of halves and fp8 for TensorRT, simulated: the table of docs/halves.md.

Engines are really built with TensorRT for RTX; what they compute is simulated in ONNX Runtime with
optimizations off, on all evaluation samples of each model.
"""

import itertools
import shutil
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import onnx_ir as ir

import qcompile
from qcompile.errors import QcompileError
from qcompile.graph.protocol import Fact
from qcompile.halves import stand_in
from qcompile.plan import read_plan
from qcompile.report.schema import Report
from qcompile.runtime.ort import Session
from tests.benchmarks import engines, suite, weights
from tests.benchmarks.table import CLOSING, Table, opening

PART = "halves"
SCHEMES = ("fp16", "bf16", "fp8")
MODELS = tuple(dict.fromkeys([*suite.GOALS, *weights.MODELS]))
PACKAGES = ("tensorrt_rtx_cu13_bindings", "onnxruntime", "onnx", "onnx-ir", "numpy")
THREADS = 2
COLUMNS = ["model", "scheme", "float", "simulated", "SQNR, dB", "in fp32", "on codes", "MB"]


def update(
    page: Path, work: Path, names: Sequence[str], schemes: Sequence[str], stamp: str
) -> None:
    """Measure the named models and write each row into the page as soon as it is known.

    Rows of other models and schemes stay, and so does the line that says how they were measured.
    """
    rows, stamps = rows_of(page.read_text("utf-8"))
    left = rows.keys() - set(itertools.product(names, schemes))
    stamps = list(dict.fromkeys([*stamps, stamp] if left else [stamp]))
    for name in names:
        shutil.rmtree(work / "halves", ignore_errors=True)
        calib = engines.sample_folder(suite.calibration(name), work / f"{name}-calib")
        reference = f"{_score(name, suite.model_path(name)):.4g}"
        for scheme in schemes:
            rows[name, scheme] = [reference, *_row(name, scheme, calib, work / "halves")]
            print(" | ".join([name, scheme, *rows[name, scheme]]), flush=True)
            made = table_of(rows).within(page.read_text("utf-8"), PART, "\n".join(stamps))
            page.write_text(made, "utf-8")


def rows_of(page: str) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """Return the rows of a page, by model and scheme, and the lines below them."""
    _, _, rest = page.partition(opening(PART))
    lines = [line for line in rest.partition(CLOSING)[0].splitlines() if line]
    rows: dict[tuple[str, str], list[str]] = {}
    name = reference = ""
    for line in lines[2:]:
        if line.startswith("|"):
            first, scheme, told, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            name, reference = first or name, told or reference
            rows[name, scheme] = [reference, *cells]
    return rows, [line for line in lines if not line.startswith("|")]


def table_of(rows: dict[tuple[str, str], list[str]]) -> Table:
    """Return the table; what all rows of a model share stands in the first of them."""
    table = Table("Halves", COLUMNS)
    by_model = itertools.groupby(sorted(rows, key=_place), key=itemgetter(0))
    for name, keys in by_model:
        for index, key in enumerate(keys):
            reference, *cells = rows[key]
            table.rows.append(["" if index else name, key[1], "" if index else reference, *cells])
    return table


def _place(key: tuple[str, str]) -> tuple[int, int]:
    name, scheme = key
    return MODELS.index(name), SCHEMES.index(scheme)


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
