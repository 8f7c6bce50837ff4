"""The real command in this process: quick, and with the time measurement kept short."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qcompile.cli.main import main
from qcompile.runtime.timing import time_pair


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a command in ``tmp_path``, with a cache of its own beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
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
