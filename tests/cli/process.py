"""The command as a user runs it: a process of its own, in a folder, with a cache in that folder.

``fresh`` starts a Python for it. ``run`` forks one that has imported everything and that times
engines for a moment only: what a command costs here is mostly its imports and its clock.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.assets import ROOT
from tests.forks import Server

COMMAND = (sys.executable, "-m", "qcompile")
TERMINAL = ("CI", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS")
"""Variables that change how output looks: only a test that names them has them."""
READ_LATE = {"COLUMNS", "FORCE_COLOR", "NO_COLOR", "QCOMPILE_CACHE", "TERM"}
"""Variables that nothing reads before a command begins."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def answer(done: Ended) -> Any:
    """Return what a quiet command says in JSON, and assert that it says nothing else."""
    assert (done.code, done.err) == (0, "")
    return done.json()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in TERMINAL}
    cache = str(folder / "cache")
    return {**kept, "PYTHONPATH": str(ROOT), "QCOMPILE_CACHE": cache, **more}


def start(folder: Path, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
    """Start a command in ``folder`` with an empty stdin; ``more`` is added to its environment."""
    return _started(folder, [*COMMAND, *map(str, arguments)], more)


def fresh(folder: Path, *arguments: str | Path, **more: str) -> Ended:
    """Run a command to its end in a Python of its own."""
    return ended(start(folder, *arguments, **more))


def run(folder: Path, *arguments: str | Path, **more: str) -> Ended:
    """Run a command to its end; ``fresh`` where a module may read ``more`` as it is imported."""
    if more.keys() - READ_LATE:
        return fresh(folder, *arguments, **more)
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        code = _forks().run(
            {
                "folder": str(folder),
                "arguments": [str(argument) for argument in arguments],
                "environment": environment(folder, **more),
                "out": out.name,
                "err": err.name,
            }
        )
        return Ended(code, out.read().decode(), err.read().decode())


@functools.cache
def _forks() -> Server:
    return Server("tests.cli.forks", environment(ROOT))


def shell(folder: Path, line: str, **more: str) -> Ended:
    """Run a line of shell in which ``qcompile`` is the command."""
    define = f'qcompile() {{ {" ".join(COMMAND)} "$@"; }}'
    return ended(_started(folder, ["bash", "-c", f"{define}; {line}"], more))


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end of a command; one that hangs is killed with all that it started."""
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


def _started(
    folder: Path, command: Sequence[str], more: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder, **more),
        # A job in the background of a shell ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
