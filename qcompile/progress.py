"""How long-running stages say how far they are, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """A listener for progress and notices."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` units of ``stage`` are finished (0 opens the stage)."""

    def notice(self, message: str) -> None:
        """Tell something that the user must know; also goes into the report."""


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
