"""Samples that lie in files, read one at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from qcompile.calibrate.checks import cast, check_feeds, check_names
from qcompile.calibrate.recent import KEPT_BYTES, Recent
from qcompile.calibrate.split import rows
from qcompile.errors import DataError
from qcompile.progress import Progress
from qcompile.samples import Array, Feeds, Port, feeds_digest

LABEL = "label"
"""Key of the expected class(es) in a ``.npz``, unless the model has an input of that name."""


@dataclass(frozen=True)
class Place:
    """Where a sample is.

    Attributes:
        path: The file.
        row: Of the batch in it; None is the whole file.
        rows: Of the whole batch.
    """

    path: Path
    row: int | None = None
    rows: int = 1


@dataclass(frozen=True)
class FileSamples:
    """A folder of samples; nothing is kept but the batches that were read last.

    Attributes:
        places: Where each sample is.
        inputs: The model's inputs.
        load: Reads all arrays of a file, the label included if it has one.
        load_label: Reads the label of a file, or None.
        progress: Hears of conversions, once for each input and type.
        owner: Kept alive as long as the samples: the temporary folder they are in.
    """

    places: Sequence[Place]
    inputs: Sequence[Port]
    load: Callable[[Path], Mapping[str, Array]]
    load_label: Callable[[Path], Array | None]
    progress: Progress
    owner: object = None
    _batches: Recent = field(default_factory=Recent, repr=False)
    _labels: Recent = field(default_factory=Recent, repr=False)
    _digests: dict[Place, str] = field(default_factory=dict, repr=False)
    _noticed: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Feeds:
        place = self.places[index]
        where = self.name(index)
        if place.row is None:
            feeds = self._fitted(self.load(place.path), where)
        else:
            feeds = rows(self._batch(place.path, where), place.row, place.row + 1)
        check_feeds(feeds, self.inputs, where)
        if place not in self._digests:
            self._digests[place] = feeds_digest(feeds)
        return feeds

    def name(self, index: int) -> str:
        """Return the file, with the row where it holds a batch: ``calib/00012.npz[3]``."""
        place = self.places[index]
        return str(place.path) if place.row is None else f"{place.path}[{place.row}]"

    def digest(self, index: int) -> str:
        """Return the sha256 of the sample's content, known once it has been read."""
        place = self.places[index]
        if place not in self._digests:
            self[index]
        return self._digests[place]

    def label(self, index: int) -> Array | None:
        """Return the sample's label, if its file has one."""
        place = self.places[index]
        if place.row is None:
            return self.load_label(place.path)
        label = self._labels.arrays(place.path, partial(self._label, place.path)).get(LABEL)
        if label is None:
            return None
        if label.shape[:1] != (place.rows,):
            found = f"{label.shape[0]} rows" if label.ndim else "no rows"
            raise DataError(f"{place.path}: {LABEL!r} has {found}, the inputs have {place.rows}")
        return np.asarray(label[place.row])

    def _batch(self, path: Path, where: str) -> Mapping[str, Array]:
        found = self._batches.arrays(path, lambda: self._fitted(self.load(path), where))
        if self._batches.full:
            self._notice(
                f"files of samples are read over and over: only {KEPT_BYTES / 1e6:.0f} MB of them "
                "are kept; a file a sample is faster"
            )
        return found

    def _label(self, path: Path) -> Mapping[str, Array]:
        label = self.load_label(path)
        return {} if label is None else {LABEL: label}

    def _fitted(self, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
        """Drop the label, check the names and convert the element types."""
        wanted = {port.name for port in self.inputs}
        feeds = {n: array for n, array in arrays.items() if n != LABEL or n in wanted}
        check_names(feeds, self.inputs, where)
        for port in self.inputs:
            array = feeds[port.name]
            feeds[port.name] = cast(array, port, where)
            if array.dtype != port.dtype:
                text = f"input {port.name!r} is converted from {array.dtype} to {port.dtype}"
                self._notice(text)
        return feeds

    def _notice(self, text: str) -> None:
        if text not in self._noticed:
            self._noticed.add(text)
            self.progress.notice(text)
