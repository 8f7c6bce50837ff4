"""Training before a build, as a person reads it in a terminal."""

from itertools import pairwise
from statistics import fmean

from rich.console import RenderableType

from qcompile.report import text
from qcompile.report.grid import lines
from qcompile.report.schema_source import TrainingFacts

BARS = "▁▂▃▄▅▆▇█"
POINTS = 40
"""Of the curve that is drawn, at most."""


def training_lines(training: TrainingFacts | None) -> RenderableType | None:
    """Return how a torch model was trained and what became of its loss; nothing for another."""
    if training is None:
        return None
    scales = ", learned scales" if training.learned_scales else ""
    resumed = f"; {training.resumed} by an earlier build" if training.resumed else ""
    return lines(
        f"{text.counted(training.epochs, 'epoch')} over "
        f"{text.counted(training.samples, 'sample')}, {training.weight_bits}-bit weights{scales}, "
        f"without labels{resumed}",
        _curve(training.losses),
    )


def _curve(losses: tuple[float, ...]) -> str:
    """Return the loss from step to step: its ends in numbers, between them as bars."""
    if not losses:
        return ""
    count = min(POINTS, len(losses))
    edges = [len(losses) * i // count for i in range(count + 1)]
    means = [fmean(losses[a:b]) for a, b in pairwise(edges)]
    top = max(means) or 1.0
    bars = "".join(BARS[round(mean / top * (len(BARS) - 1))] for mean in means)
    return f"loss {means[0]:.3g} {bars} {means[-1]:.3g} (squared error over the signal's power)"
