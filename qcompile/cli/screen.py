"""Where output goes: the answer to stdout, all else to stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TypeVar

from rich.console import Console, RenderableType

from qcompile.errors import OutputError
from qcompile.progress import Silent
from qcompile.report.json_text import json_text
from qcompile.report.progress import ConsoleProgress
from qcompile.report.section import Section

WIDTH = (80, 120)
"""Least and most columns that an answer takes."""

Answer = TypeVar("Answer", bound=Section)


class Screen:
    """What a command shows, by ``--quiet`` and ``--json``."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet = quiet
        self._as_json = as_json

    @contextmanager
    def progress(self) -> Iterator[Silent]:
        """Give a listener that shows progress on stderr, or one that is silent.

        What the user's own functions print goes to stderr too: stdout is for the answer alone.
        """
        if sys.stderr is None:
            yield Silent()
            return
        listener = nullcontext(Silent()) if self._quiet else ConsoleProgress(console(stderr=True))
        with redirect_stdout(sys.stderr), listener as progress:
            yield progress

    def answer(self, result: Answer, render: Callable[[Answer], RenderableType]) -> None:
        """Print a result on stdout: as JSON and nothing else, or rendered, or not when quiet.

        Raises:
            OutputError: The disk behind stdout is full, or it cannot be written otherwise.
        """
        if sys.stdout is None:
            return
        if self._as_json:
            _write(json_text(result))
        elif not self._quiet:
            out = console()
            with out.capture() as captured:
                out.print(render(result))
            shown = (line.rstrip() for line in captured.get().splitlines())
            _write("\n".join([*shown, ""]))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout cannot be written ({error.strerror})") from error


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is (names may hold brackets) and honours NO_COLOR."""
    plain = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    plain.width = min(max(plain.width, WIDTH[0]), WIDTH[1])
    return plain
