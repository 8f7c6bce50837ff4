"""Opens calibration and evaluation samples and keeps the two apart."""

import math
from dataclasses import dataclass
from pathlib import Path

from qcompile.calibrate.checks import check_samples
from qcompile.calibrate.readers import open_samples
from qcompile.calibrate.text import Reading
from qcompile.errors import DataError
from qcompile.frontend import Loaded
from qcompile.plan import CALIBRATED
from qcompile.progress import Progress
from qcompile.recipe import Recipe, Text
from qcompile.report.schema_source import Data
from qcompile.samples import Samples, Subset, content_order
from qcompile.targets import target_named

Source = str | Path


@dataclass(frozen=True)
class Split:
    """Samples to calibrate with and samples to compare on; none is in both.

    Attributes:
        calibration: Empty for a build without data.
        evaluation: Empty where nothing is left to compare on.
        facts: For the report.
    """

    calibration: Subset | None
    evaluation: Subset | None
    facts: Data


def split_data(
    calib: Source | None,
    evaluation: Source | None,
    loaded: Loaded,
    recipe: Recipe,
    progress: Progress,
) -> Split:
    """Open both sources; without the second, hold back a share of the first.

    Which samples are held back or left out depends on their content, never on their order.

    Raises:
        DataError: A source cannot be read or does not fit the model; static int8 has no data.
    """
    if calib is None and recipe.scheme in CALIBRATED and not loaded.given.activations:
        dynamic = "int8-dynamic" in target_named(recipe.target).schemes()
        other = ", or build with --dynamic, which needs none" if dynamic else ""
        raise DataError(
            f"static {recipe.scheme} needs calibration data: give --calib (a folder of .npz, "
            f"pictures, or module:callable){other}"
        )
    used: Subset | None = None
    rest: Subset | None = None
    found = 0
    if calib is not None:
        hold_back = evaluation is None and recipe.calibration.holdback > 0
        text = _text_needed(recipe, hold_back=hold_back)
        samples = _opened(calib, loaded, recipe, text, progress)
        found = len(samples)
        used, rest = _divided(samples, recipe, progress, hold_back=hold_back)
    if evaluation is not None:
        samples = _opened(evaluation, loaded, recipe, recipe.text, progress)
        rest = _unseen(samples, used, progress)
    if rest is None or not len(rest):
        rest = None
        progress.notice("no samples to compare on: give --eval, or more calibration samples")
    facts = Data(
        calibration=None if calib is None else str(calib),
        evaluation=None if evaluation is None else str(evaluation),
        found=found,
        calibration_samples=0 if used is None else len(used),
        evaluation_samples=0 if rest is None else len(rest),
        held_back=evaluation is None and rest is not None,
        labels=rest is not None and rest.label(0) is not None,
    )
    return Split(used, rest, facts)


def _opened(
    source: Source, loaded: Loaded, recipe: Recipe, text: Text, progress: Progress
) -> Samples:
    reading = Reading.of(text, loaded.path, loaded.outputs)
    samples = open_samples(
        source, loaded.inputs, recipe.preprocess, progress, loaded.session, reading
    )
    check_samples(samples, loaded.inputs, progress)
    return samples


def _text_needed(recipe: Recipe, *, hold_back: bool) -> Text:
    """Return how to read text: no more of it than ``--calib-samples`` and what is held back."""
    wanted = recipe.calibration.samples
    if wanted is None:
        return recipe.text
    if hold_back:
        wanted = max(wanted + 1, math.ceil(wanted / (1 - recipe.calibration.holdback)))
    return recipe.text.model_copy(update={"windows": min(wanted, recipe.text.windows)})


def _divided(
    samples: Samples, recipe: Recipe, progress: Progress, *, hold_back: bool
) -> tuple[Subset, Subset | None]:
    """Split by content: equal samples stay together."""
    order = content_order(samples)
    digests = [samples.digest(index) for index in order]
    held: list[int] = []
    if hold_back:
        wanted = round(recipe.calibration.holdback * len(order))
        start = len(order) - min(max(wanted, 1), len(order) - 1)
        while 0 < start < len(order) and digests[start] == digests[start - 1]:
            start += 1
        order, held = order[:start], order[start:]
    limit = recipe.calibration.samples
    if limit is not None and limit > len(order):
        progress.notice(f"--calib-samples {limit}: there are only {len(order)} to calibrate with")
    used = Subset(samples, order[:limit])
    return used, Subset(samples, held) if held else None


def _unseen(samples: Samples, used: Subset | None, progress: Progress) -> Subset:
    """Leave out evaluation samples that calibration saw."""
    seen = {used.digest(i) for i in range(len(used))} if used is not None else set()
    kept = [i for i in range(len(samples)) if samples.digest(i) not in seen]
    if len(kept) < len(samples):
        progress.notice(
            f"{len(samples) - len(kept)} evaluation samples are calibration samples too: left out"
        )
    return Subset(samples, kept)
