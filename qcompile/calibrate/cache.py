"""Statistics on disk: finished ones, and those of a run that was interrupted.

One file an entry, an uncompressed ``.npz`` without pickled data, written under a name of its own
and then renamed: readers and other processes see a whole entry or none.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompile.calibrate.npz import read_npz
from qcompile.errors import DataError, StatisticsError
from qcompile.progress import Progress
from qcompile.samples import Array
from qcompile.statistics import BINS, TensorStatistics

VERSION = 1
"""Raised whenever the same model and samples would give other statistics than before."""


def default_cache() -> Path:
    """Return ``$QCOMPILE_CACHE``, or ``~/.cache/qcompile``."""
    named = os.environ.get("QCOMPILE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "qcompile"


@dataclass(frozen=True)
class StatisticsStore:
    """A folder of statistics.

    Attributes:
        root: The folder; made when something is written.
        seconds: Time between two checkpoints of a running collection.
    """

    root: Path
    seconds: float = 10.0

    def key(self, model: str, samples: str) -> str:
        """Return the entry's name for a model digest and a samples digest."""
        return _sha256(f"{VERSION};{BINS};{model};{samples}".encode())

    def load(self, key: str, progress: Progress) -> dict[str, TensorStatistics]:
        """Return the tensors that are there; a damaged entry counts as none, with a notice."""
        path = self._entry(key)
        if not path.exists():
            return {}
        try:
            return _tensors_from(read_npz(path))
        except (DataError, StatisticsError) as error:
            progress.notice(f"statistics are collected anew, the cache is damaged: {error}")
            return {}

    def save(self, key: str, tensors: Mapping[str, TensorStatistics], progress: Progress) -> None:
        """Add tensors to an entry; a histogram replaces a range alone, never the reverse.

        A folder that cannot be written is a notice: statistics are then collected again.
        """
        merged = self.load(key, progress)
        for name, found in tensors.items():
            if name not in merged or found.counts.size >= merged[name].counts.size:
                merged[name] = found
        _write(self._entry(key), _arrays_from(merged), progress)

    def checkpoint(self, key: str, stage: str, names: Sequence[str]) -> "Checkpoint":
        """Return where the half-finished result of one stage over these tensors is kept."""
        unique = _sha256("\0".join([stage, *names]).encode())
        return Checkpoint(self.root / f"{key[:32]}.{unique[:32]}.partial.npz", self.seconds)

    def _entry(self, key: str) -> Path:
        return self.root / f"{key}.npz"


@dataclass(frozen=True)
class Checkpoint:
    """The half-finished arrays of one stage.

    Attributes:
        path: The file.
        seconds: Time between two writes.
    """

    path: Path
    seconds: float

    def load(self, like: Mapping[str, Array], progress: Progress) -> dict[str, Array] | None:
        """Return what was saved, or None where nothing is there or it does not fit.

        Args:
            like: The arrays that are expected; shapes and dtypes must agree.
            progress: Hears of a damaged file.
        """
        if not self.path.exists():
            return None
        try:
            saved = read_npz(self.path)
        except DataError as error:
            progress.notice(f"an interrupted calibration starts anew: {error}")
            return None
        fits = saved.keys() == like.keys() and all(
            saved[name].shape == array.shape and saved[name].dtype == array.dtype
            for name, array in like.items()
        )
        return saved if fits else None

    def save(self, arrays: Mapping[str, Array], progress: Progress) -> None:
        """Write the arrays; a folder that cannot be written is a notice."""
        _write(self.path, arrays, progress)

    def remove(self) -> None:
        """Forget the half-finished result."""
        self.path.unlink(missing_ok=True)


def _write(path: Path, arrays: Mapping[str, Array], progress: Progress) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f"{path.name[:16]}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                np.savez(file, allow_pickle=False, **dict(arrays))
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                temporary.unlink()
                raise
        temporary.replace(path)
    except OSError as error:
        progress.notice(f"statistics are not kept: {path.parent} cannot be written ({error})")


def _arrays_from(tensors: Mapping[str, TensorStatistics]) -> dict[str, Array]:
    ordered = sorted(tensors.items())
    counted = [found.counts for _, found in ordered if found.counts.size]
    small = all(int(counts.max()) < 2**32 for counts in counted)
    rows = np.empty((len(counted), BINS), np.uint32 if small else np.int64)
    for row, counts in zip(rows, counted, strict=True):
        np.copyto(row, counts, casting="unsafe")
    return {
        # bytes, because numpy pads strings to the longest and drops trailing zeros
        "names": np.frombuffer("\0".join(name for name, _ in ordered).encode(), np.uint8),
        "low": np.asarray([found.low for _, found in ordered], np.float64),
        "high": np.asarray([found.high for _, found in ordered], np.float64),
        "elements": np.asarray([found.elements for _, found in ordered], np.int64),
        "unbounded": np.asarray([found.unbounded for _, found in ordered], np.bool_),
        "counted": np.asarray([found.counts.size > 0 for _, found in ordered], np.bool_),
        "counts": rows,
    }


def _tensors_from(arrays: Mapping[str, Array]) -> dict[str, TensorStatistics]:
    try:
        names = arrays["names"].tobytes().decode().split("\0")
        rows = iter(arrays["counts"].astype(np.int64))
        tensors = {
            name: TensorStatistics(
                low=float(arrays["low"][i]),
                high=float(arrays["high"][i]),
                elements=int(arrays["elements"][i]),
                unbounded=bool(arrays["unbounded"][i]),
                counts=next(rows) if arrays["counted"][i] else np.zeros(0, np.int64),
            )
            for i, name in enumerate(names)
        }
    except (KeyError, IndexError, ValueError, StopIteration, RuntimeError) as error:
        raise StatisticsError(f"an entry is incomplete ({error})") from error
    for name, found in tensors.items():
        if found.counts.size and (
            found.counts.shape != (BINS,) or int(found.counts.sum()) != found.elements
        ):
            raise StatisticsError(f"the histogram of {name!r} does not add up")
    return tensors


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
