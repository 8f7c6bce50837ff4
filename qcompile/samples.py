"""Samples: what calibration and comparison feed to a model. Data only, read lazily."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Feeds = Mapping[str, Array]
"""Input name to array, with exactly the model's inputs as keys."""


@dataclass(frozen=True)
class Port:
    """An input or output of a model.

    Attributes:
        name: Its name.
        dtype: Element type; ``object`` for string tensors.
        shape: An int for a fixed dimension, its name (or None) for a dynamic one; None as a whole
            where not even the rank is known.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...] | None


class Samples(Protocol):
    """A sequence of samples; each is read when asked for, none is kept.

    Order carries no meaning: two sequences with the same samples are the same data.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Feeds:
        """Return the feeds of one run of the model.

        Raises:
            DataError: The sample cannot be read or does not fit the model.
        """
        ...

    def name(self, index: int) -> str:
        """Return where the sample comes from, for messages: ``calib/00012.npz[3]``."""
        ...

    def digest(self, index: int) -> str:
        """Return the sha256 of the sample's content (names, types, shapes, bytes)."""
        ...

    def label(self, index: int) -> Array | None:
        """Return the expected class(es) of the sample, where the data has labels."""
        ...


@dataclass(frozen=True)
class Subset:
    """Some samples of another sequence, by index."""

    parent: Samples
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Feeds:
        return self.parent[self.indices[index]]

    def name(self, index: int) -> str:
        """Return the parent's name of the sample."""
        return self.parent.name(self.indices[index])

    def digest(self, index: int) -> str:
        """Return the parent's digest of the sample."""
        return self.parent.digest(self.indices[index])

    def label(self, index: int) -> Array | None:
        """Return the parent's label of the sample."""
        return self.parent.label(self.indices[index])


def first(samples: Samples, limit: int) -> Samples:
    """Return the first samples, at most so many."""
    return Subset(samples, range(min(limit, len(samples))))


@dataclass(frozen=True)
class InMemory:
    """Samples that are already here: for tests, for the Python interface, for small sets."""

    feeds: Sequence[Feeds]
    labels: Sequence[Array] | None = None
    digests: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index: int) -> Feeds:
        return self.feeds[index]

    def name(self, index: int) -> str:
        """Return ``sample 3``."""
        return f"sample {index}"

    def digest(self, index: int) -> str:
        """Return the sha256 of the sample's content."""
        if index not in self.digests:
            self.digests[index] = feeds_digest(self.feeds[index])
        return self.digests[index]

    def label(self, index: int) -> Array | None:
        """Return the sample's label, if any were given."""
        return None if self.labels is None else self.labels[index]


def feeds_digest(feeds: Feeds) -> str:
    """Return the sha256 of one sample: names, types, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.data)
    return digest.hexdigest()


def content_order(samples: Samples) -> list[int]:
    """Return the indices sorted by content digest: an order that no reader or shuffle changes."""
    return sorted(range(len(samples)), key=samples.digest)


def samples_digest(samples: Samples) -> str:
    """Return the sha256 of the set of samples, whatever their order."""
    digest = hashlib.sha256()
    for text in sorted(samples.digest(i) for i in range(len(samples))):
        digest.update(text.encode())
    return digest.hexdigest()
