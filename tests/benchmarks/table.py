"""Tables in Markdown."""

from dataclasses import dataclass, field


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
