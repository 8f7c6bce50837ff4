"""Hypothesis profiles, the environment of all processes, times of builds, the golden switch."""

import gc
import os
import sys
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.garbage import keep_imports

# pytest -n runs a test on each core: BLAS threads of all of them would spin against each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's
# Commands are run as users run them: hundreds of processes, which keep their bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

settings.register_profile(
    "default",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly", settings.get_profile("default"), max_examples=2000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the after-part of golden files"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # what collection imports stays
    result = yield
    keep_imports()
    return result


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session", autouse=True)
def _timed_briefly(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.brief import time_briefly

    time_briefly(tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="session", autouse=True)
def _exported_quickly() -> None:
    from tests.exporting import keep_operators

    if "torch" in sys.modules:  # collection has imported it
        keep_operators()
