"""Opens what the user calls data: folders of arrays or pictures, one archive, or a callable.

- a folder of ``.npz``: keys are the input names, each file a sample or a batch; a key ``label`` is
  the expected class
- a folder of ``.npy``, for models with one input, each file a sample or a batch
- one ``.npz`` or ``.npy``: a batch
- a folder of pictures, with ``[preprocess]`` from the recipe; the class is the name of the
  sub-folder if that is a whole number, or comes from ``labels.csv`` (lines ``file,class``)
- ``.txt`` and ``.jsonl``, for language models: windows of tokens (``calibrate.text``)
- ``module:callable``, which yields dicts like a ``.npz``

What a language model reads beside its tokens may be missing in a ``.npz`` (``runtime.prefill``).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from qcompile.calibrate import images, text
from qcompile.calibrate.callables import spilled
from qcompile.calibrate.checks import check_inputs
from qcompile.calibrate.files import LABEL, FileSamples, Place
from qcompile.calibrate.npz import npy_shape, npz_shapes, read_npy, read_npz
from qcompile.calibrate.split import batch_size, rows_are_independent
from qcompile.calibrate.tokenizer import FILE as TOKENIZER
from qcompile.calibrate.tokenizer import find_tokenizer, load_tokenizer
from qcompile.errors import DataError
from qcompile.progress import Progress, Silent
from qcompile.recipe import Preprocess
from qcompile.runtime.ort import Session
from qcompile.runtime.prefill import completed, tokens_input
from qcompile.samples import Array, Port, Samples

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_KINDS = {
    ".npz": "npz",
    ".npy": "npy",
    **dict.fromkeys(images.SUFFIXES, "picture"),
    **dict.fromkeys(text.SUFFIXES, "text"),
}


def open_samples(
    source: str | Path,
    inputs: Sequence[Port],
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
    session: Session | None = None,
    reading: text.Reading | None = None,
) -> Samples:
    """Open samples; they are read, checked and converted when they are asked for.

    A file whose arrays share a first dimension that the model leaves open is cut into rows.

    Args:
        source: A folder, a file, or ``module:callable``.
        inputs: The model's inputs.
        preprocess: What to do with pictures; needed for them alone.
        progress: Hears of files that are ignored, and of conversions.
        session: Runs one batch and its rows, to see whether cutting is sound; without it, it is
            taken to be.
        reading: What to do with text.

    Raises:
        DataError: There is nothing to read, files of several kinds are mixed, a header is damaged
            or claims too much, the callable fails, or the model takes what is not numbers.
    """
    heard = progress or Silent()
    check_inputs(inputs)
    path = Path(source)
    if not path.exists() and _CALLABLE.fullmatch(str(source)):
        spill = spilled(str(source), heard)
        files = sorted(spill.folder.iterdir())
        if not files:
            raise DataError(f"{source}: yields no samples")
        return _arrays("npz", spill.folder, files, inputs, heard, session, owner=spill)
    kind, files = _listed(path, heard)
    if kind == "picture":
        return _pictures(path, files, inputs, preprocess, heard)
    if kind == "text":
        return _text(path, files, inputs, reading or text.Reading(), heard)
    return _arrays(kind, path, files, inputs, heard, session)


def _listed(path: Path, progress: Progress) -> tuple[str, list[Path]]:
    """Return the kind of the files and the files, sorted."""
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(p for p in _within(path) if not p.name.startswith("."))
    else:
        raise DataError(f"{path}: no such file or folder (nor module:callable)")
    files = [file for file in found if file.suffix.lower() in _KINDS]
    kinds = sorted({_KINDS[file.suffix.lower()] for file in files})
    if len(kinds) > 1 and "text" in kinds:  # notes beside the samples
        kinds.remove("text")
        files = [file for file in files if file.suffix.lower() not in text.SUFFIXES]
    if not files:
        raise DataError(f"{path}: no samples here; .npz, .npy, pictures or text are read")
    if len(kinds) > 1:
        raise DataError(f"{path}: mixes {' and '.join(kinds)} files; keep one kind")
    read = {*files, path / (TOKENIZER if kinds == ["text"] else images.LABELS_FILE)}
    ignored = [file.name for file in found if file not in read]
    if ignored:
        progress.notice(f"{path}: ignored {len(ignored)} other files, such as {ignored[0]}")
    return kinds[0], files


def _within(folder: Path) -> list[Path]:
    """Return the files of a folder and of its sub-folders that are named as classes."""
    entries = list(folder.iterdir())
    classes = [entry for entry in entries if entry.is_dir() and entry.name.isdecimal()]
    inner = [file for entry in classes for file in entry.iterdir()]
    return [entry for entry in entries + inner if entry.is_file()]


def _arrays(
    kind: str,
    path: Path,
    files: Sequence[Path],
    inputs: Sequence[Port],
    progress: Progress,
    session: Session | None,
    owner: object = None,
) -> FileSamples:
    sizes: dict[Path, int] = {}
    if kind == "npz":
        sizes = {file: _npz_rows(file, inputs) for file in files}
        load: Callable[[Path], Mapping[str, Array]] = partial(_read_completed, inputs)
        load_label: Callable[[Path], Array | None] = partial(_npz_label, inputs=inputs)
    else:
        only = _only_input(path, inputs, "a .npy holds one array").name
        sizes = {file: batch_size({only: npy_shape(file)}, inputs) for file in files}
        load = partial(_read_only, only)
        load_label = partial(_listed_label, _labels(path, files))
    whole = FileSamples([Place(f) for f in files], inputs, load, load_label, progress, owner)
    return _cut(whole, sizes, session)


def _cut(whole: FileSamples, sizes: Mapping[Path, int], session: Session | None) -> FileSamples:
    """Make rows of the files that hold batches, if the model takes rows one by one."""
    batches = [index for index, place in enumerate(whole.places) if sizes[place.path] > 1]
    if not batches:
        return whole
    # where the model fixes the batch to 1, it can only have been meant for rows
    fixed = any(port.shape and port.shape[0] == 1 for port in whole.inputs)
    if session and not fixed and not rows_are_independent(session, whole[batches[0]]):
        whole.progress.notice(
            f"{whole.name(batches[0])}: a batch gives other outputs than its rows; "
            "each file is one sample"
        )
        return whole
    places: list[Place] = []
    for place in whole.places:
        count = sizes[place.path]
        cut = [Place(place.path, row, count) for row in range(count)]
        places += cut if count > 1 else [place]
    return replace(whole, places=places)


def _npz_rows(file: Path, inputs: Sequence[Port]) -> int:
    shapes = npz_shapes(file)
    port = tokens_input(inputs)
    shape = shapes.get(port.name, ()) if port else ()
    if port is None or len(shape) != 2:
        return batch_size(shapes, inputs)
    row = {name: np.broadcast_to(np.int64(0), (1, *sizes[1:])) for name, sizes in shapes.items()}
    added = completed(row, inputs).keys() - shapes.keys()
    return batch_size(shapes, [port for port in inputs if port.name not in added])


def _text(
    path: Path,
    files: Sequence[Path],
    inputs: Sequence[Port],
    reading: text.Reading,
    progress: Progress,
) -> text.TokenWindows:
    tokenizer = load_tokenizer(find_tokenizer(reading.text.tokenizer, path, reading.model))
    return text.read_windows(files, tokenizer, inputs, reading, progress)


def _pictures(
    folder: Path,
    files: Sequence[Path],
    inputs: Sequence[Port],
    preprocess: Preprocess | None,
    progress: Progress,
) -> FileSamples:
    if preprocess is None:
        raise DataError(f"{folder}: pictures need [preprocess] in a recipe (--recipe)")
    port = _only_input(folder, inputs, "a picture is one array")
    labels = _labels(folder, files)

    def load(path: Path) -> dict[str, Array]:
        return {port.name: images.read_picture(path, preprocess, port, progress)}

    places = [Place(file) for file in files]
    return FileSamples(places, inputs, load, partial(_listed_label, labels), progress)


def _only_input(path: Path, inputs: Sequence[Port], why: str) -> Port:
    if len(inputs) != 1:
        names = ", ".join(port.name for port in inputs)
        raise DataError(f"{path}: {why}, the model has the inputs {names}; use .npz")
    return inputs[0]


def _read_completed(inputs: Sequence[Port], path: Path) -> dict[str, Array]:
    return completed(read_npz(path), inputs)


def _read_only(name: str, path: Path) -> dict[str, Array]:
    return {name: read_npy(path)}


def _npz_label(path: Path, inputs: Sequence[Port]) -> Array | None:
    if any(port.name == LABEL for port in inputs):
        return None
    return read_npz(path, only=LABEL).get(LABEL)


def _listed_label(labels: Mapping[Path, int], path: Path) -> Array | None:
    return np.asarray(labels[path]) if path in labels else None


def _labels(path: Path, files: Sequence[Path]) -> dict[Path, int]:
    """Return the classes that sub-folders and ``labels.csv`` give."""
    if not path.is_dir():
        return {}
    named = {file: int(file.parent.name) for file in files if file.parent != path}
    return named | images.labels_beside(path)
