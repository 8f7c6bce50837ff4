"""Files that were read last, so that rows of several files can be asked for in any order."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from qcompile.samples import Array

Arrays = Mapping[str, Array]

KEPT_BYTES = 1 << 29


class Recent:
    """Keeps the arrays of the files that were asked for last: at most ``KEPT_BYTES``, or one file.

    Attributes:
        full: Whether a file had to go: it will be read again.
    """

    def __init__(self) -> None:
        self.full = False
        self._kept: dict[Path, Arrays] = {}  # the latest is last
        self._lock = threading.Lock()

    def arrays(self, path: Path, read: Callable[[], Arrays]) -> Arrays:
        """Return a file's arrays, read only if they are not kept; one thread at a time."""
        with self._lock:
            found = self._kept.pop(path, None)
            if found is None:
                found = read()
            self._kept[path] = found
            while len(self._kept) > 1 and self._bytes() > KEPT_BYTES:
                del self._kept[next(iter(self._kept))]
                self.full = True
            return found

    def _bytes(self) -> int:
        return sum(array.nbytes for arrays in self._kept.values() for array in arrays.values())
