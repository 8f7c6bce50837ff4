"""Tables in Markdown, and their places in pages."""

from dataclasses import dataclass, field

CLOSING = "<!-- end -->"


def opening(part: str) -> str:
    """Return the mark before a part of a page; ``CLOSING`` is the one behind it."""
    return f"<!-- {part} -->"


def filled(page: str, part: str, text: str) -> str:
    """Return a page with a part of it made anew."""
    before, _, rest = page.partition(opening(part))
    _, _, after = rest.partition(CLOSING)
    return f"{before}{opening(part)}\n{text}\n{CLOSING}{after}"


@dataclass
class Table:
    """A titled table; rows are added as they are measured, and printed."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Append a row and print it."""
        self.rows.append(list(cells))
        print(" | ".join(cells), flush=True)

    def markdown(self) -> str:
        """Return the whole table under its title."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"## {self.title}\n\n{body}\n"

    def within(self, page: str, part: str, stamp: str) -> str:
        """Return a page with the table, untitled, in a part of it."""
        _, _, body = self.markdown().partition("\n\n")
        return filled(page, part, f"{body}\n{stamp}")
