"""One ONNX file as a command's output: checked before the work, renamed into its place after."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcompile.errors import OutputError


def check_output(path: Path, *, force: bool) -> None:
    """Check that a command may write its ONNX file to a path.

    Raises:
        OutputError: It exists, is a folder, or has another ending.
    """
    if path.suffix != ".onnx":
        raise OutputError(f"{path}: name a file that ends in .onnx")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder")
    if path.exists() and not force:
        raise OutputError(f"{path} exists; --force replaces it, -o names another file")


@contextmanager
def single_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a file of that name in a temporary folder beside it; put what is there in place.

    Args:
        path: Ends in ``.onnx``; external data is put beside it, first.
        force: Replace a file that is there.

    Raises:
        OutputError: It exists, is a folder, has another ending, or cannot be written.
    """
    check_output(path, force=force)
    parent = path.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".qcompile-", dir=parent) as folder:
            yield Path(folder) / path.name
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                file.replace(parent / file.name)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
