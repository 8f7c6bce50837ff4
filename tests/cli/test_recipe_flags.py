"""Flags and the recipe file through the real command: what the report says was asked."""

import os
from pathlib import Path
from typing import Any

import onnx
import pytest

from qcompile.recipe import Calibration, Gates, Recipe, recipe_from
from tests.cli.conftest import Run
from tests.cli.nets import CALIB, MODEL, perceptron, write_data

pytestmark = pytest.mark.slow


def asked(run: Run, *arguments: str | Path) -> Recipe:
    """Return the recipe that a build reports; a gate may be missed."""
    done = run("build", *arguments, "-o", "out", "-q", "--json")
    assert done.code in {0, 3}, done.err
    return Recipe.model_validate(done.json()["recipe"])


def test_no_flags_are_the_default_recipe(run: Run, tmp_path: Path) -> None:
    onnx.save(perceptron(16), tmp_path / "net.onnx")
    write_data(tmp_path / "data")
    assert asked(run, "net.onnx", "--calib", "data") == Recipe(jobs=os.cpu_count())


def test_every_flag_reaches_the_recipe(run: Run, tmp_path: Path) -> None:
    (tmp_path / "flagged.py").write_text("def score(outputs, label, feeds):\n    return 1.0\n")
    flags = (
        "--int8 --target ort-cpu --cpu arm --calib-method mse --calib-samples 7 --exclude a* "
        "--exclude b? --exclude-op Add --float-first --float-last --no-keep-accuracy --optimized "
        "--metric flagged:score --min-sqnr 20 --min-agreement 0.9 --max-drop 0.5 "
        "--min-speedup 0.1 --allow-slower --jobs 1"
    )
    assert asked(run, MODEL, "--calib", CALIB, *flags.split()) == Recipe(
        cpu="arm",
        calibration=Calibration(method="mse", samples=7),
        exclude=("a*", "b?"),
        exclude_ops=("Add",),
        float_first=True,
        float_last=True,
        keep_accuracy=False,
        optimized=True,
        gates=Gates(
            min_sqnr=20, min_agreement=0.9, max_drop=0.5, min_speedup=0.1, allow_slower=True
        ),
        metric="flagged:score",
        jobs=1,
    )


def test_flags_override_the_recipe_file_and_leave_the_rest(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text(
        'scheme = "int8-dynamic"\nfloat_last = true\njobs = 1\n'
        '[calibration]\nmethod = "mse"\nholdback = 0.1\n'
        "[gates]\nmin_sqnr = 30\n"
    )
    flags = ("--recipe", file, "--int8", "--calib-method", "entropy")
    found = asked(run, MODEL, "--calib", CALIB, *flags)
    said: dict[str, Any] = {"scheme": "int8", "calibration": {"method": "entropy"}}
    assert found == recipe_from(said, file)
    assert found.calibration == Calibration(method="entropy", holdback=0.1)
    assert (found.scheme, found.float_last, found.gates.min_sqnr) == ("int8", True, 30)
