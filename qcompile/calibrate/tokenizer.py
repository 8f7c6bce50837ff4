"""Turns text into token ids, with the tokenizer file that comes with a language model.

The format is that of the ``tokenizers`` library (``tokenizer.json``), which does the work. The file
is untrusted: it is read as JSON up to a size, never executed; its regular expressions are run.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qcompile.errors import DataError, RuntimeMissingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

Tokens = npt.NDArray[np.int64]

FILE = "tokenizer.json"
"""Where a model's own tokenizer lies."""

MOST_BYTES = 64 << 20
"""A larger file is refused; the largest in use (a quarter of a million tokens) have half of it."""

PIECE = 1 << 17
"""Characters that are tokenized at once."""

_NEAR = 1 << 12
_BORDER = re.compile(r"(?<=[^\W_]) (?=[^\W\d_])")
"""A space between two words: where tokenizers split a text themselves."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its file, for messages.

    Attributes:
        path: The file.
        library: The ``tokenizers.Tokenizer``.
        size: Entries of its vocabulary, without those that were added to it.
    """

    path: Path
    library: "Library"
    size: int

    def start(self, bos: str | None) -> Tokens:
        """Return the tokens that begin each window, ``(0,)`` or ``(1,)`` as a rule.

        Args:
            bos: A token by name, ``""`` for none, None for what the tokenizer puts there itself.

        Raises:
            DataError: The vocabulary lacks the token.
        """
        if bos == "":
            return np.zeros(0, np.int64)
        if bos is None:
            with _asked(self.path, "cannot tokenize"):
                found = self.library.encode("a")
            mask = [*found.special_tokens_mask, 0]
            return np.asarray(found.ids[: mask.index(0)], np.int64)
        token = self.library.token_to_id(bos)
        if token is None:
            raise DataError(f"{self.path}: has no token {bos!r}, which [text] bos names")
        return np.asarray([token], np.int64)

    def tokens(self, text: Iterable[str]) -> Iterator[Tokens]:
        """Yield the token ids of a text that comes in fragments, piece by piece.

        Raises:
            DataError: The tokenizer fails.
        """
        for piece in pieces(text):
            with _asked(self.path, "cannot tokenize"):
                ids = self.library.encode(piece, add_special_tokens=False).ids
            yield np.asarray(ids, np.int64)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer; its padding, truncation and random splitting are off.

    Raises:
        RuntimeMissingError: The library is not installed.
        DataError: The file is missing, too large or no tokenizer.
    """
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise RuntimeMissingError(
            "text needs the library tokenizers: pip install 'qcompile[text]'"
        ) from error
    with _asked(path, "is no tokenizer"):
        library = Library.from_str(_read(path))
    library.no_padding()
    library.no_truncation()
    if getattr(library.model, "dropout", None):
        library.model.dropout = None
    return Tokenizer(path, library, library.get_vocab_size(with_added_tokens=False))


def find_tokenizer(asked: Path | None, data: Path, model: Path | None) -> Path:
    """Return the file that was asked for, else the one beside the data, else beside the model.

    Args:
        asked: What ``--tokenizer`` or the recipe names.
        data: A text file or a folder of them.
        model: The model's file, where it has one.

    Raises:
        DataError: There is none.
    """
    if asked is not None:
        return asked
    folders = [data if data.is_dir() else data.parent]
    folders += [model.parent] if model else []
    for folder in folders:
        if (folder / FILE).is_file():
            return folder / FILE
    places = " nor in ".join(dict.fromkeys(str(folder) for folder in folders))
    raise DataError(f"{data}: text needs a tokenizer: no {FILE} in {places}; give --tokenizer FILE")


def pieces(text: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Yield the text in pieces of about ``size`` characters that end before a space between words.

    Tokenizers split there anyhow, so that the tokens are those of the whole text. Where there is no
    such place (Chinese, base64), a piece ends after ``size`` characters.
    """
    held = ""
    for fragment in text:
        held += fragment
        while len(held) > size:
            end = _border(held, size)
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _border(text: str, size: int) -> int:
    start = max(1, size - _NEAR)
    places = [match.start() for match in _BORDER.finditer(text, start, size + 2)]
    return places[-1] if places and places[-1] <= size else size


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path}: has {size:,} bytes; a tokenizer has at most {MOST_BYTES:,}")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


@contextmanager
def _asked(path: Path, what: str) -> Iterator[None]:
    """Turn what the library raises, panics of its Rust code included, into a ``DataError``."""
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{path}: {what} ({' '.join(str(error).split())})") from error
