"""How long-running stages say how far they are, without knowing who listens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """A listener for progress and notices."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` units of ``stage`` are finished (0 opens the stage)."""

    def notice(self, message: str) -> None:
        """Tell something that the user must know; also goes into the report."""

    def announce(self, message: str) -> None:
        """Tell, before the work begins, what it will take; also goes into the report."""


class Silent:
    """Ignores all progress; keeps the notices, for the report."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def step(self, stage: str, done: int, total: int) -> None:
        """Do nothing."""

    def notice(self, message: str) -> None:
        """Keep the message, once."""
        if message not in self.notices:
            self.notices.append(message)

    def announce(self, message: str) -> None:
        """Keep the message, once."""
        self.notice(message)


class StageLog:
    """Passes progress on to a listener; keeps each notice once and the seconds of each stage."""

    def __init__(self, listener: Progress | None = None) -> None:
        self.listener = listener or Silent()
        self.seconds: dict[str, float] = {}
        self.notices: list[str] = []

    def step(self, stage: str, done: int, total: int) -> None:
        """Pass a step on."""
        self.listener.step(stage, done, total)

    def notice(self, message: str) -> None:
        """Keep a notice, once, and pass it on."""
        if message not in self.notices:
            self.notices.append(message)
            self.listener.notice(message)

    def announce(self, message: str) -> None:
        """Keep a message among the notices, and pass it on."""
        self.notices.append(message)
        self.listener.announce(message)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
