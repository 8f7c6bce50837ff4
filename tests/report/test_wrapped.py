"""Where lines of the summary break."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qcompile.report.text import KEEP
from qcompile.report.wrapped import Wrapped, wrap


@pytest.mark.parametrize(
    ("text", "width", "rows"),
    [
        ("", 10, [""]),
        ("one two three", 7, ["one two", "three"]),
        ("see /layer1/conv/w", 12, ["see /layer1", "/conv/w"]),
        ("see /a/b", 12, ["see /a/b"]),
        ("in /a/b/c", 7, ["in", "/a/b/c"]),
        (f"Conv{KEEP}1, Add{KEEP}22", 12, [f"Conv{KEEP}1,", f"Add{KEEP}22"]),
        ("x\x1b[31m", 20, ["x\N{REPLACEMENT CHARACTER}[31m"]),
    ],
)
def test_lines_end_where_a_reader_would_end_them(text: str, width: int, rows: list[str]) -> None:
    assert wrap(text, width) == rows


@given(st.text("ab/ ", max_size=60), st.integers(4, 30))
def test_nothing_is_lost_and_only_unbreakable_parts_are_longer(text: str, width: int) -> None:
    rows = wrap(text, width)
    assert "".join("".join(rows).split()) == "".join(text.split())
    assert all(len(row) <= width or "/" not in row[1:] for row in rows)


@pytest.mark.parametrize("width", [5, 20, 80])
def test_print_fits_and_has_plain_spaces(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width)
    console.print(Wrapped(f"/features/features.11/Relu_1_output_0 3{KEEP}kB"))
    lines = file.getvalue().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    assert KEEP not in file.getvalue()
