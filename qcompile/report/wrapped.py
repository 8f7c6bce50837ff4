"""Text that wraps where a reader would break it: between words, and long names before a ``/``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.text import Text

from qcompile.report.text import KEEP, plain

_PART = re.compile(r"/?[^/]+|/")


@dataclass(frozen=True)
class Wrapped:
    """A line of text; ``KEEP`` in it is a space that no line ends with.

    Attributes:
        text: May hold anything: control characters are shown as such.
        style: Of all of it.
    """

    text: str
    style: str | Style = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = wrap(self.text, options.max_width)
        yield Text("\n".join(rows).replace(KEEP, " "), self.style, overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        words = [part for word in self.text.split(" ") for part in _PART.findall(word)]
        least = max((cell_len(word) for word in words), default=0)
        return Measurement(least, cell_len(self.text)).with_maximum(options.max_width)


def wrap(text: str, width: int) -> list[str]:
    """Return the lines of a text at a width; a part of a name that is longer is left to fold."""
    rows = [""]
    for piece, space in _pieces(plain(text), width):
        if rows[-1] and cell_len(rows[-1] + space + piece) > width:
            rows.append(piece)
        else:
            rows[-1] += (space if rows[-1] else "") + piece
    return rows


def _pieces(text: str, width: int) -> Iterator[tuple[str, str]]:
    """Yield what stays in one line, with the space before it; only words too long are cut."""
    for word in text.split(" "):
        if cell_len(word) <= width:
            yield word, " "
            continue
        for index, part in enumerate(_PART.findall(word)):
            yield part, "" if index else " "
