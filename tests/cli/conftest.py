"""Commands as processes: in a folder of their own, or in one that all tests of a session share."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli import process
from tests.cli.nets import CALIB, EVAL, MODEL
from tests.cli.process import Ended

Run = Callable[..., Ended]
STATIC = ("build", MODEL, "--int8", "--calib", CALIB, "--eval", EVAL, "--allow-slower")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in an empty folder."""
    return partial(process.run, tmp_path)


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    """Run it in a Python of its own."""
    return partial(process.fresh, tmp_path)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for builds that share one cache; each has an output of its own."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def static(work: Path) -> Ended:
    """The static build of the digits, into ``out``; the first there with these samples."""
    done = process.fresh(work, *STATIC, "-o", "out", "--json")
    assert done.code == 0, done.err
    return done


@pytest.fixture
def report(static: Ended) -> Any:
    return static.json()
