"""GPTQ beside AWQ+GPTQ over several choices of calibration samples: docs/weight-only.md.

usage: python -m tests.benchmarks.splits [--models A,B] [--formats 4/32,3/128] [--work DIR]

What an algorithm regains moves by ten points with the samples that it calibrates on, so one run
cannot tell the two apart. Here each is built on halves of the samples, and the difference is given
with its standard error over these. Beside perplexity stands the divergence from the float model,
sum p log(p / q) over the vocabulary, mean over positions: it asks no luck of the next token, and
varies far less from text to text. The page is only written where all is measured.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

import qcompile
from qcompile.recipe import Algorithm, Gates, Recipe, Weights
from tests.assets import ROOT
from tests.benchmarks import engines, suite, weights
from tests.benchmarks.__main__ import _stamp
from tests.benchmarks.table import Table

PART = "splits"
HALVES = 6
"""Choices of samples; those of few samples are all there are, others pairs that share none."""

SAMPLED = 2
"""One evaluation sample in so many counts for the divergence."""

COMPARED: tuple[Algorithm, ...] = ("gptq", "awq+gptq")


def measure(folder: Path, names: Sequence[str], formats: Sequence[tuple[int, int]]) -> Table:
    """Build on each half of the samples by both algorithms, score; return the table."""
    both = ["GPTQ", "AWQ+GPTQ", "difference"]
    columns = ["model", "bits", "group", *both, *(f"divergence: {one}" for one in both)]
    table = Table("Halves", columns)
    for name in names:
        reference, tokens = weights.perplexity(name, suite.model_path(name))
        for bits, group in formats:
            plain = Weights(bits=bits, group_size=group, algorithm="rtn", search=False)
            found = {weights.PLAIN: _scored(name, plain, None, folder)}
            for algorithm in COMPARED:
                options = plain.model_copy(update={"algorithm": algorithm, "search": True})
                for i, half in enumerate(halves(len(suite.calibration(name)))):
                    feeds = [suite.calibration(name)[j] for j in half]
                    data = engines.sample_folder(feeds, folder / f"{name}-half-{i}")
                    found[f"{algorithm} {i}"] = _scored(name, options, data, folder)
            shares = weights.regained({k: one for k, (one, _) in found.items()}, reference, tokens)
            lost = found[weights.PLAIN][1]
            nearer = {label: 1 - one / lost for label, (_, one) in found.items()}
            table.add(name, str(bits), str(group), *_summary(shares), *_summary(nearer))
    return table


def halves(count: int) -> list[list[int]]:
    """Return ``HALVES`` choices of half of so many samples."""
    half = count // 2
    if math.comb(count, half) <= HALVES:
        return [list(one) for one in combinations(range(count), half)]
    orders = [np.random.default_rng(seed).permutation(count) for seed in range(HALVES // 2)]
    return [sorted(o[part].tolist()) for o in orders for part in (slice(half), slice(half, None))]


def _scored(
    name: str, options: Weights, data: Path | None, folder: Path
) -> tuple[dict[str, float], float]:
    """Build; return the perplexity of each text, and the divergence."""
    out = folder / f"{name}-engine"
    recipe = Recipe(
        scheme="weight-only",
        weights=options.model_copy(update={"accuracy_level": 0}),
        gates=Gates(allow_slower=True),
    )
    # With evaluation data named, nothing is held back: all samples calibrate.
    evaluation = min(data.glob("*.npz")) if data else None
    qcompile.build(
        suite.model_path(name),
        calib=data,
        evaluation=evaluation,
        output=out,
        recipe=recipe,
        force=True,
    )
    engine = out / "model.onnx"
    return weights.perplexity(name, engine)[0], divergence(suite.model_path(name), engine, name)


def divergence(source: Path, engine: Path, name: str) -> float:
    """Return the mean of sum p log(p / q) in nats: p of the source, q of the engine."""
    run = suite.tool("score").ort_run
    exact, other = run(str(source)), run(str(engine))
    total, positions = 0.0, 0
    for feed in weights.evaluation(name)[::SAMPLED]:
        p, q = (_log_shares(one(feed)[0][0]) for one in (exact, other))
        total += float((np.exp(p) * (p - q)).sum())
        positions += len(p)
    return total / positions


def _log_shares(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def _summary(shares: dict[str, float]) -> list[str]:
    """Return mean and deviation of both, and the mean difference with its standard error."""
    first, second = (
        np.array([share for label, share in shares.items() if label.startswith(f"{name} ")])
        for name in COMPARED
    )
    gain = 100 * (second - first)
    cells = [f"{100 * x.mean():.1f}% +- {100 * x.std(ddof=1):.1f}" for x in (first, second)]
    return [*cells, f"{gain.mean():+.1f} +- {gain.std(ddof=1) / math.sqrt(len(gain)):.1f}"]


def _pair(text: str) -> tuple[int, int]:
    bits, group = text.split("/")
    return int(bits), int(group)


def main() -> None:
    """Measure; write the table where nothing was left out."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.splits", description=__doc__)
    parser.add_argument("--models", default=",".join(weights.MODELS))
    parser.add_argument("--formats", default=",".join(f"{b}/{g}" for b, g in weights.FORMATS))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    asked = parser.parse_args()
    names, formats = asked.models.split(","), [_pair(one) for one in asked.formats.split(",")]
    table = measure(asked.work.resolve() / PART, names, formats)
    if names == list(weights.MODELS) and formats == list(weights.FORMATS):
        page = ROOT / "docs" / "weight-only.md"
        page.write_text(table.within(page.read_text("utf-8"), PART, _stamp()), "utf-8")
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
