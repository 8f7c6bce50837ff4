"""Text as samples: windows of tokens, with all that a prefill needs beside them.

A file is one stream of tokens, and no window spans two files. The documents of a ``.jsonl`` follow
one another with an empty line between, as in the corpora that language models are judged on; kept
apart, most would be shorter than a window.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qcompile.calibrate.checks import cast
from qcompile.calibrate.tokenizer import Tokenizer, Tokens
from qcompile.errors import DataError, RecipeError
from qcompile.progress import Progress
from qcompile.recipe import Text
from qcompile.runtime.prefill import completed, logits_output, tokens_input
from qcompile.samples import Array, Feeds, Port, feeds_digest

SUFFIXES = frozenset({".txt", ".jsonl"})

LENGTH = 256
"""Tokens of a window where nobody says: what activations look like hardly changes beyond, the
logits of a large vocabulary stay small (0.13 GB for 128,000 tokens), and a text gives many windows,
which are what intervals are made from. Published perplexities often have 2,048."""

NOT_JUDGED = -100
"""Label of a position that is not judged."""

MOST_LINE = 64 << 20
"""Bytes of a line of a ``.jsonl``."""

BETWEEN = "\n\n"
"""Between two documents of a ``.jsonl``."""

_READ = 1 << 16


@dataclass(frozen=True)
class Reading:
    """How text is read for a model.

    Attributes:
        text: What the recipe says.
        model: The model's file, beside which its tokenizer may lie.
        vocabulary: Tokens that the model knows; None where that cannot be seen.
    """

    text: Text = field(default_factory=Text)
    model: Path | None = None
    vocabulary: int | None = None

    @classmethod
    def of(cls, text: Text, model: Path, outputs: Sequence[Port]) -> "Reading":
        """Return how text is read for a model with these outputs."""
        logits = logits_output(outputs)
        last = logits.shape[-1] if logits and logits.shape else None
        return cls(text, model, last if isinstance(last, int) else None)


@dataclass(frozen=True)
class TokenWindows:
    """Windows of tokens as samples; tokens are kept, all else is made when asked for.

    Attributes:
        tokens: Token ids, ``(N, T)``.
        places: File of each window, and where it starts in the file's tokens.
        inputs: The model's inputs.
        repeated: Number of leading tokens of each window that the one before it predicts too.
    """

    tokens: Tokens
    places: Sequence[tuple[Path, int]]
    inputs: Sequence[Port]
    repeated: Sequence[int]
    _digests: dict[int, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Feeds:
        return feeds_of(self.tokens[index], self.inputs)

    def name(self, index: int) -> str:
        """Return the file and the window's first token: ``book.txt[token 512]``."""
        path, start = self.places[index]
        return f"{path}[token {start}]"

    def digest(self, index: int) -> str:
        """Return the sha256 of the sample's content."""
        if index not in self._digests:
            self._digests[index] = feeds_digest(self[index])
        return self._digests[index]

    def label(self, index: int) -> Array | None:
        """Return the next token of each position, ``(T,)``, where windows overlap; else None.

        Without overlap they follow from the tokens. With it, ``NOT_JUDGED`` marks those that an
        earlier window predicts too.
        """
        if max(self.repeated) < 2:  # the first token of a window is never predicted
            return None
        following = np.append(self.tokens[index, 1:], NOT_JUDGED)
        following[: max(0, self.repeated[index] - 1)] = NOT_JUDGED
        return following


def feeds_of(tokens: Tokens, inputs: Sequence[Port]) -> dict[str, Array]:
    """Return one sample: tokens ``(T,)`` become ``(1, T)``, the other inputs follow from them.

    Raises:
        DataError: The model has no input for tokens, or one that does not follow from them.
    """
    port = tokens_input(inputs)
    if port is None:
        names = ", ".join(port.name for port in inputs)
        raise DataError(f"text needs a model with an input of token ids; this one has {names}")
    feeds = completed({port.name: cast(tokens[None], port, "text")}, inputs)
    for other in inputs:
        if other.name not in feeds:
            raise DataError(
                f"input {other.name!r} ({other.dtype}, shape {other.shape}) does not follow from "
                "text; give samples that hold it (.npz or module:callable)"
            )
    return {port.name: feeds[port.name] for port in inputs}


@dataclass(frozen=True)
class Cut:
    """Windows of one stream of tokens.

    Attributes:
        windows: Each ``(content,)``.
        left: Tokens behind the last window, too few for another.
        more: There are tokens that were not looked at.
    """

    windows: list[Tokens]
    left: int
    more: bool


def cut_windows(stream: Iterator[Tokens], content: int, stride: int, most: int) -> Cut:
    """Cut a stream into windows of ``content`` tokens, ``stride`` apart; the rest is left.

    Args:
        stream: Token ids in pieces, ``(n,)`` each; read no further than is needed.
        content: Tokens of a window.
        stride: From the start of a window to the next.
        most: Number of windows after which to stop.
    """
    pending, windows, at = np.zeros(0, np.int64), list[Tokens](), 0
    for piece in stream:
        pending = np.concatenate([pending, piece])
        while len(pending) - at >= content:
            if len(windows) == most:
                return Cut(windows, 0, more=True)
            windows.append(pending[at : at + content].copy())
            at += stride
        done = min(at, len(pending))
        pending, at = pending[done:], at - done
    end = at - stride + content if windows else 0
    return Cut(windows, max(0, len(pending) - end), more=False)


@dataclass(frozen=True)
class _Frame:
    """What windows look like: tokens that begin each, then ``content`` of the text's."""

    start: Tokens
    content: int
    stride: int

    @property
    def repeated(self) -> int:
        """Leading tokens of a window that the one before it predicts too."""
        overlap = max(0, self.content - self.stride)
        return overlap + len(self.start) if overlap else 0


def read_windows(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    inputs: Sequence[Port],
    reading: Reading,
    progress: Progress,
) -> TokenWindows:
    """Read text files until ``text.windows`` windows are full, and no further.

    Args:
        files: ``.txt`` and ``.jsonl``, in the order in which they are read.
        tokenizer: Makes the tokens.
        inputs: The model's inputs.
        reading: How long windows are, how far apart, how they begin.
        progress: Hears of what is left out.

    Raises:
        DataError: A file cannot be read, no file fills a window, the tokenizer is not the model's,
            or the model has an input that does not follow from text.
    """
    text, vocabulary = reading.text, reading.vocabulary
    frame = _frame(tokenizer, inputs, text, progress)
    if vocabulary is not None and tokenizer.size > vocabulary:
        raise DataError(
            f"{tokenizer.path}: has {tokenizer.size:,} tokens, the model's logits {vocabulary:,}: "
            "it belongs to another model"
        )
    cuts: dict[Path, Cut] = {}
    found = 0
    for path in files:
        if found < text.windows:
            stream = tokenizer.tokens(_fragments(path, text.field))
            cuts[path] = cut_windows(stream, frame.content, frame.stride, text.windows - found)
            found += len(cuts[path].windows)
            progress.step("read text", found, text.windows)
    progress.step("read text", found, found)
    _say_what_is_left(cuts, len(files), frame, found, progress)
    windows = _joined(cuts, inputs, frame)
    _check_tokens(windows, tokenizer, vocabulary)
    feeds_of(windows.tokens[0], inputs)  # what cannot be filled is named before anything runs
    return windows


def window_length(text: Text, inputs: Sequence[Port]) -> int:
    """Return the tokens of a window: what the model fixes, else what was asked for, else 256.

    Raises:
        RecipeError: The model fixes another length than was asked for.
    """
    port = tokens_input(inputs)
    fixed = port.shape[1] if port and port.shape and len(port.shape) == 2 else None
    if not isinstance(fixed, int):
        return text.length or LENGTH
    if text.length not in {None, fixed}:
        raise RecipeError(
            f"--sequence-length {text.length}: the model takes just {fixed} tokens at a time"
        )
    return fixed


def _frame(tokenizer: Tokenizer, inputs: Sequence[Port], text: Text, progress: Progress) -> _Frame:
    length, start = window_length(text, inputs), tokenizer.start(text.bos)
    content = length - len(start)
    if content < 1:
        raise DataError(f"a window of {length} tokens has no room for text; it needs more")
    if len(start) and text.bos is None:
        names = " ".join(repr(tokenizer.library.id_to_token(int(token))) for token in start)
        progress.notice(f"each window begins with {names}, as {tokenizer.path.name} has it")
    return _Frame(start, content, text.stride or content)


def _joined(cuts: Mapping[Path, Cut], inputs: Sequence[Port], frame: _Frame) -> TokenWindows:
    windows, places, repeated = [], [], []
    for path, cut in cuts.items():
        for number, window in enumerate(cut.windows):
            windows.append(np.concatenate([frame.start, window]))
            places.append((path, number * frame.stride))
            repeated.append(frame.repeated if number else 0)
    if not windows:
        tokens = sum(cut.left for cut in cuts.values())
        where = next(iter(cuts)) if len(cuts) == 1 else f"{len(cuts)} text files"
        raise DataError(
            f"{where}: no text fills a window of {frame.content} tokens ({tokens} in all); give "
            "more text, or a smaller --sequence-length"
        )
    return TokenWindows(np.stack(windows), places, inputs, repeated)


def _say_what_is_left(
    cuts: Mapping[Path, Cut], files: int, frame: _Frame, found: int, progress: Progress
) -> None:
    left = [cut.left for cut in cuts.values() if cut.left]
    if left:
        ends = "the end of the text" if files == 1 else f"the ends of {len(left)} texts"
        progress.notice(
            f"{ends} ({sum(left)} tokens) left out: too short for a window of {frame.content}"
        )
    if len(cuts) < files or any(cut.more for cut in cuts.values()):
        progress.notice(f"the text is longer than the {found} windows that were read of it")


def _check_tokens(windows: TokenWindows, tokenizer: Tokenizer, vocabulary: int | None) -> None:
    if vocabulary is None or int(windows.tokens.max()) < vocabulary:
        return
    row, column = np.argwhere(windows.tokens >= vocabulary)[0]
    token = int(windows.tokens[row, column])
    name = tokenizer.library.id_to_token(token)
    raise DataError(
        f"{windows.name(int(row))}: holds token {token} ({name!r}), the model's logits end at "
        f"{vocabulary - 1}: {tokenizer.path} belongs to another model"
    )


def _fragments(path: Path, field: str) -> Iterator[str]:
    """Yield the text of a file in fragments of bounded size."""
    try:
        if path.suffix.lower() == ".jsonl":
            yield from _documents(path, field)
        else:
            with path.open(encoding="utf-8-sig") as file:
                while fragment := file.read(_READ):
                    yield fragment
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _documents(path: Path, field: str) -> Iterator[str]:
    between = ""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_LINE + 1):
            number += 1
            if len(line) > MOST_LINE:
                raise DataError(f"{path}: line {number} has more than {MOST_LINE:,} bytes")
            if not line.isspace():
                yield between + _document(line, field, f"{path}: line {number}")
                between = BETWEEN


def _document(line: bytes, field: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON ({error})") from error
    text = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{where} has no text {field!r}; name the key: [text] field in a recipe")
    return text
