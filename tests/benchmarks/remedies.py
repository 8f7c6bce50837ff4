"""What each remedy of 8-bit activations is worth on real models: the table of docs/accuracy.md.

Each of our columns changes one thing: ranges by ``auto``, nothing left in float for accuracy, and
weights rounded to the nearest code where the column does not name another way. The last one is the
default build. Peers run in the same process on the same samples.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import qcompile
from qcompile.errors import QcompileError
from qcompile.recipe import Recipe
from qcompile.runtime.ort import Session
from tests.benchmarks import engines, peers, suite, weights
from tests.benchmarks.table import CLOSING, Table, opening
from tests.planted import planted

PART = "remedies"
PACKAGES = ("onnxruntime", "nncf", "torch", "onnx", "onnx-ir", "numpy")
THREADS = 2
OURS: dict[str, Mapping[str, object] | None] = {
    "plain": {"algorithms": ["rtn"]},
    "gptq": {"algorithms": ["gptq"]},
    "equalize": {"algorithms": ["equalize", "rtn"]},
    "+ absorb-bias": {"algorithms": ["equalize", "absorb-bias", "rtn"]},
    "smoothquant": {"algorithms": ["smoothquant", "rtn"]},
    "llm-int8": {"algorithms": ["llm-int8", "rtn"]},
    "bias-correction": {"algorithms": ["bias-correction", "rtn"]},
    "... analytic": {"algorithms": ["bias-correction", "rtn"], "correction": "analytic"},
    "adaround": {"algorithms": ["adaround"]},
    "brecq": {"algorithms": ["brecq"]},
    "default": None,
}
"""Column to ``recipe.accuracy``; None is the default build."""

PEERS = {"ORT": peers.ort_weighted, "NNCF": peers.nncf}
COLUMNS = ["float", *PEERS, *OURS]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        score: The name under which the assets score and calibrate it.
        model: Makes the float model in a folder.
        recipe: What it is built for.
        simulated: For a phone that is not here: scored one sample at a time, which is what its
            engine takes, with ONNX Runtime's optimizations off.
    """

    score: str
    model: Callable[[Path], Path]
    recipe: Mapping[str, object] = field(default_factory=dict)
    simulated: bool = False


def _as_it_is(name: str) -> Case:
    return Case(name, lambda _: suite.model_path(name))


def _with_outliers(work: Path) -> Path:
    source = suite.model_path("kwt1_kws")
    return planted(source, work / "planted", channels=16, factor=100, seed=0)


CASES: dict[str, Case] = {
    **{name: _as_it_is(name) for name in suite.GOALS},
    weights.MODELS[0]: _as_it_is(weights.MODELS[0]),
    "kwt1_kws with outliers": Case("kwt1_kws", _with_outliers),
    "mobilenetv1_025_vww per tensor": Case(
        "mobilenetv1_025_vww",
        lambda _: suite.model_path("mobilenetv1_025_vww"),
        {"target": "ort-mobile", "ep": "nnapi"},
        simulated=True,
    ),
}


def update(
    page: Path, work: Path, names: Sequence[str], columns: Sequence[str], stamp: str
) -> None:
    """Measure the named rows and columns; write each cell into the page as soon as it is known."""
    for name in names:
        for column in columns:
            cell = _cell(CASES[name], column, work)
            print(f"{name} | {column} | {cell}", flush=True)
            rows, stamps = _read(page.read_text("utf-8"))
            rows.setdefault(name, {})[column] = cell
            below = "\n".join(dict.fromkeys([*stamps, stamp]))
            page.write_text(_table(rows).within(page.read_text("utf-8"), PART, below), "utf-8")


def _cell(case: Case, column: str, work: Path) -> str:
    output = work / PART
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    model = case.model(work)
    try:
        engine = model if column == "float" else _built(case, column, model, output)
        session = Session(engine, threads=THREADS, optimize=not case.simulated)
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way; ours is told apart
        print(f"{model.stem}: {column}: {type(error).__name__}: {error}", flush=True)
        return "refused" if column in OURS and isinstance(error, QcompileError) else "fails"
    score = suite.tool("score").score(case.score, partial(_outputs, session, alone=case.simulated))
    goal = suite.GOALS.get(case.score)
    return f"{goal.factor * score[goal.metric] if goal else score['ppl_wikitext2']:.4g}"


def _outputs(session: Session, feed: dict[str, Any], *, alone: bool) -> list[Any]:
    if not alone:
        return list(session.run(feed).values())
    count = len(next(iter(feed.values())))
    runs = [session.run({k: v[i : i + 1] for k, v in feed.items()}) for i in range(count)]
    return [np.concatenate([run[name] for run in runs]) for name in runs[0]]


def _built(case: Case, column: str, model: Path, output: Path) -> Path:
    feeds = suite.calibration(case.score)
    if column in PEERS:
        goal = suite.GOALS.get(case.score)
        PEERS[column](model, feeds, output / "peer.onnx", goal is None or goal.transformer)
        return output / "peer.onnx"
    accuracy = OURS[column]
    asked = {} if accuracy is None else {"keep_accuracy": False, "accuracy": accuracy}
    recipe = Recipe.model_validate({"gates": {"allow_slower": True}, **case.recipe, **asked})
    calib = engines.sample_folder(feeds, output.parent / f"{case.score}-calib")
    built = output / "built"
    qcompile.build(model, calib=calib, output=built, recipe=recipe, force=True)
    return built / "model.onnx"


def _read(page: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the cells of a page, by row and column, and the lines below them."""
    _, _, rest = page.partition(opening(PART))
    lines = [line for line in rest.partition(CLOSING)[0].splitlines() if line]
    rows: dict[str, dict[str, str]] = {}
    for line in lines[2:]:
        if line.startswith("|"):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            known = zip(COLUMNS, cells, strict=True)
            rows[name] = {column: cell for column, cell in known if cell}
    return rows, [line for line in lines if not line.startswith("|")]


def _table(rows: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table("Remedies", ["model", *COLUMNS])
    for name in sorted(rows, key=list(CASES).index):
        table.rows.append([name, *(rows[name].get(column, "") for column in COLUMNS)])
    return table
