"""Activations on disk: what one stage of a model hands to a later one, for all samples.

Each activation has a file of data, its samples one after another, and an index that is renamed into
place once the data has reached the disk. So an activation is there for all samples or not at all,
whenever the process is killed.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import EngineError, OutputError
from qcompile.samples import Array

_ALIGNMENT = 64
_MAPPED_BYTES = 1 << 16
"""Smaller arrays are read; a mapping would cost more."""


@dataclass
class _Entry:
    """One activation: name, element type, and shape of each sample, with where it begins."""

    name: str
    dtype: ir.DataType
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    size: int = 0

    def append(self, shape: tuple[int, ...]) -> int:
        """Add a sample; return the padding in front of it."""
        start = -(-self.size // _ALIGNMENT) * _ALIGNMENT
        padding = start - self.size
        self.shapes.append(shape)
        self.starts.append(start)
        self.size = start + math.prod(shape) * self.dtype.numpy().itemsize
        return padding


class ActivationStore:
    """A folder of activations. Opened again, it holds what was kept when it was last in use."""

    def __init__(self, folder: Path) -> None:
        """Open or make the folder; remove what was half-written.

        Args:
            folder: Of this store alone: unknown files in it are removed.

        Raises:
            OutputError: The folder cannot be made or read.
        """
        self.folder = folder
        self._kept: dict[str, _Entry] = {}
        self._unfinished: dict[str, tuple[_Entry, IO[bytes]]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = [_read_index(path) for path in sorted(folder.glob("*.json"))]
            self._kept = {e.name: e for e in found if e and self._is_whole(e)}
            files = {path for name in self._kept for path in self._files(name)}
            for path in folder.iterdir():
                if path not in files:
                    path.unlink()
        except OSError as error:
            raise self._failure(error) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the activations that are kept, in alphabetical order."""
        return tuple(sorted(self._kept))

    def put(self, name: str, sample: int, array: Array) -> None:
        """Add one sample of an activation; it can be read once ``keep`` was called.

        Args:
            name: Of the activation. If it is kept already, it is written anew.
            sample: 0, 1, 2, ... in this order.
            array: Of any number type, the same for all samples.

        Raises:
            EngineError: The elements are strings, or of another type than those of sample 0.
            OutputError: The disk is full or the folder cannot be written.
        """
        if array.dtype == np.dtype(object):
            raise EngineError(f"activation {name!r} holds strings, which cannot be kept on disk")
        dtype = ir.DataType.from_numpy(array.dtype)
        try:
            if sample == 0:
                self._open(name, dtype)
            entry, file = self._unfinished[name]
            if (dtype, sample) != (entry.dtype, len(entry.shapes)):
                raise EngineError(
                    f"activation {name!r} of sample {sample} is {dtype.name}; expected is "
                    f"{entry.dtype.name} of sample {len(entry.shapes)}"
                )
            file.write(bytes(entry.append(array.shape)))
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._failure(error) from error

    def keep(self) -> None:
        """Make all that was put durable: it survives a kill and a power failure from here on.

        Raises:
            OutputError: The disk is full or the folder cannot be written.
        """
        try:
            for _, file in self._unfinished.values():
                _sync(file)
            for entry, _ in self._unfinished.values():
                self._write_index(entry)
                self._kept[entry.name] = entry
            folder = os.open(self.folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            raise self._failure(error) from error
        self._unfinished.clear()

    def discard(self) -> None:
        """Remove what was put and not kept."""
        for name, (_, file) in self._unfinished.items():
            with suppress(OSError):  # a full disk refuses what is still in the buffer
                file.close()
            self._files(name)[0].unlink(missing_ok=True)
        self._unfinished.clear()

    def holds(self, name: str, samples: int) -> bool:
        """Return whether the activation is kept for that many samples."""
        return name in self._kept and len(self._kept[name].shapes) == samples

    def type(self, name: str) -> tuple[ir.DataType, tuple[None, ...] | None]:
        """Return element type and dimensions: all unknown, or None where ranks differ.

        Raises:
            OutputError: The activation is not kept.
        """
        entry = self._entry(name)
        ranks = {len(shape) for shape in entry.shapes}
        return entry.dtype, (None,) * ranks.pop() if len(ranks) == 1 else None

    def get(self, name: str, sample: int) -> Array:
        """Return one sample of a kept activation, mapped from disk and read-only.

        Raises:
            OutputError: It is not kept, or was removed or cut short by someone else.
        """
        entry = self._entry(name)
        path, dtype = self._files(name)[0], entry.dtype.numpy()
        if not 0 <= sample < len(entry.shapes):
            raise OutputError(f"{self.folder}: holds no sample {sample} of activation {name!r}")
        shape, start = entry.shapes[sample], entry.starts[sample]
        count = math.prod(shape)
        try:
            if count * dtype.itemsize >= _MAPPED_BYTES:
                return np.asarray(np.memmap(path, dtype, "r", start, shape))
            array: Array = np.fromfile(path, dtype, count, offset=start).reshape(shape)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: activation {name!r} is damaged; {_AGAIN}") from error
        array.flags.writeable = False
        return array

    def drop(self, name: str) -> None:
        """Remove an activation, if it is there; arrays that are in use stay valid."""
        if self._kept.pop(name, None):
            for path in reversed(self._files(name)):  # index first: never an index without data
                path.unlink(missing_ok=True)

    def bytes(self) -> int:
        """Return what the kept activations take on disk."""
        return sum(entry.size for entry in self._kept.values())

    def _open(self, name: str, dtype: ir.DataType) -> None:
        self.drop(name)
        if name in self._unfinished:
            self._unfinished[name][1].close()
        self._unfinished[name] = _Entry(name, dtype), self._files(name)[0].open("wb")

    def _entry(self, name: str) -> _Entry:
        if name not in self._kept:
            raise OutputError(f"{self.folder}: activation {name!r} is not there; {_AGAIN}")
        return self._kept[name]

    def _files(self, name: str) -> tuple[Path, Path]:
        stem = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.folder / f"{stem}.data", self.folder / f"{stem}.json"

    def _is_whole(self, entry: _Entry) -> bool:
        data = self._files(entry.name)[0]
        return data.is_file() and data.stat().st_size == entry.size

    def _write_index(self, entry: _Entry) -> None:
        path = self._files(entry.name)[1]
        index = {"name": entry.name, "dtype": entry.dtype.name, "shapes": entry.shapes}
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(json.dumps(index).encode())
            _sync(file)
        temporary.replace(path)

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.folder}: activations cannot be kept ({error.strerror or error}); "
            f"{self.bytes() / 1e9:.1f} GB are there so far. Free space or use another work folder"
        )


_AGAIN = "remove the folder and start again"


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _read_index(path: Path) -> _Entry | None:
    """Return what an index says, or None where it is damaged."""
    try:
        index = json.loads(path.read_bytes())
        entry = _Entry(str(index["name"]), ir.DataType[index["dtype"]])
        shapes: Sequence[Sequence[int]] = index["shapes"]
        for shape in shapes:
            entry.append(tuple(map(int, shape)))
    except (KeyError, TypeError, ValueError):
        return None
    return entry
