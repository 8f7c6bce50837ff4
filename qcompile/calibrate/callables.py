"""``module:callable`` as samples: called once, what it yields is kept in a temporary folder."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import DataError
from qcompile.functions import function_named
from qcompile.progress import Progress


class Spill:
    """A temporary folder of ``.npz`` files that goes when the object does."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qcompile-samples-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def spilled(source: str, progress: Progress) -> Spill:
    """Call ``module:callable`` and write each dict that it yields to a file of its own.

    Args:
        source: ``package.module:callable``; the callable takes no arguments.
        progress: Hears "read samples".

    Raises:
        DataError: It cannot be imported or called, or yields something else than dicts of arrays.
    """
    function = function_named(source, DataError)
    spill = Spill()
    try:
        for number, item in enumerate(_called(function, source)):
            _write(spill.folder / f"{number:08d}.npz", item, f"{source}[{number}]")
            progress.step("read samples", number + 1, number + 1)
    except BaseException:
        spill.remove()
        raise
    return spill


def _called(function: Callable[[], Iterable[Any]], source: str) -> Iterable[Any]:
    try:
        yield from function()
    except (Exception, SystemExit) as error:
        raise DataError(f"{source}: failed ({type(error).__name__}: {error})") from error


def _write(path: Path, item: object, where: str) -> None:
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: is {type(item).__name__}, not a dict of arrays")
    arrays = {}
    for name, value in item.items():
        try:
            arrays[str(name)] = np.asarray(value)
        except ValueError as error:
            raise DataError(f"{where}: {name!r} is no array ({error})") from error
        if arrays[str(name)].dtype.hasobject:
            raise DataError(f"{where}: {name!r} is no array of numbers")
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
