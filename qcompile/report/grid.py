"""Lines and tables as every answer in a terminal has them."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table

from qcompile.report import text
from qcompile.report.wrapped import Wrapped


def lines(*content: str) -> RenderableType | None:
    """Return one paragraph of text under another; None without any."""
    rows = [Wrapped(line) for line in content if line]
    return Group(*rows) if rows else None


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], left: int) -> Table:
    """Return a table whose last ``left`` columns are text and whose others are numbers."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, name in enumerate(header):
        is_text = index >= len(header) - left
        grid.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        numbers, texts = row[: len(row) - left], row[len(row) - left :]
        cells = (cell.replace(text.KEEP, " ") for cell in numbers)
        grid.add_row(*cells, *(Wrapped(cell) for cell in texts))
    return grid
