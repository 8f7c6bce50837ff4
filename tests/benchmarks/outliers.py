"""LLM.int8() beside plain int8: one layer's time, scores of real models, an encoder with outliers.

usage: python -m tests.benchmarks.outliers [layer] [encoder] [kwt1_kws] [stories260k] [textlm5m]

Prints tables for docs/llm-int8.md; without arguments all of them. Nothing is kept in float for
accuracy, so that only the columns differ.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.frontend import load
from qcompile.progress import Silent
from qcompile.recipe import Scheme
from qcompile.runtime.ort import Session
from qcompile.runtime.timing import time_pair
from qcompile.samples import InMemory
from tests.assets import tool
from tests.benchmarks import suite
from tests.benchmarks.table import Table
from tests.planning.outlier_engines import Float, engine, split
from tests.planning.tools import HOLDS, graph_of, normal
from tests.planted import planted

ROWS, COLUMNS, WIDTH, LOUD = 128, 768, 3072, 8
SAMPLES = 32
SCORES = {
    "kwt1_kws": ("top1",),
    "stories260k": ("ppl",),
    "textlm5m": ("ppl_shakespeare", "ppl_wikitext2"),
}


def layer() -> Table:
    """Time the first linear layer of a feed-forward block of BERT's size on one core."""
    title = f"A layer of {COLUMNS} x {WIDTH}, {ROWS} rows, {LOUD} columns 30 times as loud"
    table = Table(title, ["engine", "ms", "speed", "95 %", "relative L2 error"])
    weights = {"w": normal(1, COLUMNS, WIDTH, scale=0.03), "b": normal(2, WIDTH)}
    model = graph_of(f"float[{ROWS}, {COLUMNS}] x", "[fc] y = Gemm(x, w, b)", **weights)
    loud = np.random.default_rng(0).choice(COLUMNS, LOUD, replace=False)
    inputs = [{"x": normal(seed, ROWS, COLUMNS)} for seed in range(3, 12)]
    for feeds in inputs:
        feeds["x"][:, loud] *= 30
    feeds, samples = inputs[0], InMemory(inputs[1:])
    exact = Session(model).run(feeds)["y"]
    for name, made, _ in _engines(Float(model, HOLDS), ("int8", "int8-dynamic"), samples):
        timing = time_pair(model, made, feeds, seconds=6)
        error = np.linalg.norm(Session(made).run(feeds)["y"] - exact) / np.linalg.norm(exact)
        low, high = timing.interval.low, timing.interval.high
        speed = f"{timing.ratio:.2f}x", f"{low:.2f} to {high:.2f}"
        table.add(name, f"{timing.second_ms:.2f}", *speed, f"{error:.4f}")
    return table


def scores(name: str, model: Path) -> Table:
    """Score engines of a model as the assets do."""
    metrics = SCORES[name]
    table = Table(f"{model.stem}, {model.parent.name}", ["engine", *metrics, "layers", "in float"])
    samples = InMemory(suite.calibration(name)[:SAMPLES])

    def add(label: str, made: ir.Model, source: Float) -> None:
        session = Session(made, threads=2)
        found = tool("score").score(name, lambda feeds: list(session.run(feeds).values()))
        outliers = source.remedies.outliers.values()
        split = str(len(outliers)) if outliers else ""
        known = any(one.channels for one in outliers)
        work = f"{source.share:.1%}" if known else ""
        table.add(label, *(f"{found[metric]:.4f}" for metric in metrics), split, work)

    for scheme in ("int8", "int8-dynamic"):
        loaded = load(model, "ort-cpu", scheme, threads=2, dump_dir=None, progress=Silent())
        source = Float(loaded.model, loaded.holds)
        if scheme == "int8":
            add("float", source.model, source)
        for label, made, parted in _engines(source, (scheme,), samples):
            add(label, made, parted)
    return table


def _engines(
    source: Float, schemes: tuple[Scheme, ...], samples: InMemory
) -> Iterator[tuple[str, ir.Model, Float]]:
    """Yield name, engine and the float graph that it was made of."""
    for scheme in schemes:
        parts = {
            "": source,
            ", outliers from 6": split(source, scheme, samples),
            ", loudest 1 %": split(source, scheme, samples, share=0.01),
        }
        if scheme == "int8-dynamic":
            parts[", outliers at run time"] = split(source, scheme, samples, run_time=True)
        for how, part in parts.items():
            yield f"{scheme}{how}", engine(part, scheme, samples), part
            if scheme == "int8-dynamic":
                name = f"{scheme} by rows{how}"
                yield name, engine(part, scheme, samples, by_rows=True), part


def main() -> None:
    """Print the tables that were asked for."""
    for part in sys.argv[1:] or ("layer", "encoder", *SCORES):
        if part == "layer":
            print(layer().markdown())
        elif part == "encoder":
            with tempfile.TemporaryDirectory() as folder:
                source, place = suite.model_path("kwt1_kws"), Path(folder) / "6 channels times 200"
                path = planted(source, place, channels=6, factor=200.0, seed=0)
                print(scores("kwt1_kws", path).markdown())
        else:
            print(scores(part, suite.model_path(part)).markdown())


if __name__ == "__main__":
    main()
