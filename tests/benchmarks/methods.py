"""Accuracy by calibration method, all else at its default: what ``--calib-method`` is worth."""

from collections.abc import Sequence
from pathlib import Path

from qcompile.recipe import Calibration, Gates, Recipe
from tests.benchmarks import engines, scoring, suite
from tests.benchmarks.table import Table

METHODS = ("minmax", "percentile", "mse", "entropy", "auto")


def measure(folder: Path, names: Sequence[str]) -> Table:
    """Build each model by each method; score as the assets do.

    With each method ranges alone count: weights take the nearest codes and nothing is left in float
    for accuracy. The last column is the default build, which does both.
    """
    table = Table("Accuracy by calibration method", ["model", *METHODS, "default build", "FP"])
    for name in names:
        recipes = [_ranges_alone(method) for method in METHODS]
        scores = [_score(name, folder, recipe) for recipe in [*recipes, _recipe(Calibration())]]
        reference = scoring.measure(name, suite.model_path(name)).value
        table.add(name, *(f"{score:.4g}" for score in [*scores, reference]))
    return table


def _ranges_alone(method: str) -> Recipe:
    calibration = Calibration.model_validate({"method": method})
    return _recipe(calibration).model_copy(update={"keep_accuracy": False})


def _recipe(calibration: Calibration) -> Recipe:
    return Recipe(calibration=calibration, gates=Gates(allow_slower=True))


def _score(name: str, folder: Path, recipe: Recipe) -> float:
    feeds = suite.calibration(name)
    return scoring.measure(
        name, engines.compiled(suite.model_path(name), feeds, folder, recipe)
    ).value
