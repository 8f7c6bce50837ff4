"""Commands in ``tmp_path``: as processes, or in this one where only an option is varied."""

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from qcompile.cli.main import main
from qcompile.runtime.timing import time_pair
from tests.cli import process
from tests.cli.process import Ended

Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command as a process."""
    return partial(process.run, tmp_path)


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a command in this process: without its start-up, with little time spent on timing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    for user in ("pipeline", "commands"):
        monkeypatch.setattr(f"qcompile.{user}.time_pair", partial(time_pair, seconds=0.05))
    handler = signal.getsignal(signal.SIGTERM)

    def command(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["qcompile", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, *capsys.readouterr())

    yield command
    signal.signal(signal.SIGTERM, handler)
