"""Progress on a terminal: a bar with the time left; a line a finished stage where there is none."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from qcompile.progress import Silent
from qcompile.report import text


class _Time(ProgressColumn):
    """The time left of a running stage, the time taken of a finished one."""

    def render(self, task: Task) -> Text:
        """Return the text."""
        if task.finished:
            return Text(f"in {_clock(task.finished_time)}")
        return Text(f"{_clock(task.time_remaining)} left" if task.time_remaining else "")


def _clock(seconds: float | None) -> str:
    minutes, rest = divmod(round(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ConsoleProgress(Silent):
    """Shows the stages on ``console``, which should write to stderr; keeps the notices.

    The notices belong to the answer, which shows them. Without an answer, because of an error,
    they are printed here.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._ended: set[str] = set()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Time(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()
        if isinstance(error, Exception):
            for notice in self.notices:
                self._console.print(f"note: {text.plain(notice)}", soft_wrap=True)

    def announce(self, message: str) -> None:
        """Print the message at once."""
        self._console.print(text.plain(message), soft_wrap=True)

    def step(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage; 0 opens it, anew if it has run before."""
        if self._console.is_terminal:
            self._move(stage, done, total)
        else:
            self._print_end(stage, done, total)

    def _move(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(text.plain(stage), total=total)
        elif done == 0:
            self._bars.reset(self._tasks[stage])
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def _print_end(self, stage: str, done: int, total: int) -> None:
        if done == 0 or stage not in self._started:
            self._started[stage] = time.monotonic()
            self._ended.discard(stage)
        if done >= total > 0 and stage not in self._ended:
            self._ended.add(stage)
            taken = text.seconds(time.monotonic() - self._started[stage]).replace(text.KEEP, " ")
            self._console.print(f"{text.plain(stage)}: {total} in {taken}", soft_wrap=True)
