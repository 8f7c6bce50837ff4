"""Working folders of builds that did not end: kept to go on with, but not for ever."""

import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qcompile.progress import Progress

PREFIX = "solving-"
"""Begins the name of a working folder in the cache; a file ``lock`` in it is held by its build."""

KEPT_DAYS = 14


@dataclass(frozen=True)
class Leftover:
    """The folder of a build that was stopped, or still runs.

    Attributes:
        folder: Where.
        size: Bytes of its files.
        days: Since something was last written there.
    """

    folder: Path
    size: int
    days: float


def leftovers(cache: Path) -> list[Leftover]:
    """Return the working folders in a cache, by name; a link there is none."""
    folders = sorted(path for path in cache.glob(f"{PREFIX}*") if not path.is_symlink())
    return [_leftover(path) for path in folders if path.is_dir()]


def clear(own: Path, progress: Progress) -> None:
    """Remove what nobody went on with for ``KEPT_DAYS``; tell of it, and of what stays.

    Args:
        own: The working folder of the build that asks, which is left alone.
        progress: Hears of the others.
    """
    cache = own.parent
    found = [one for one in leftovers(cache) if one.folder != own]
    gone = [one for one in found if one.days > KEPT_DAYS and _removed(one.folder)]
    kept = [one for one in found if one not in gone]
    if gone:
        progress.notice(
            f"removed {_counted(gone)} from {cache}: nobody went on with it for {KEPT_DAYS} days"
        )
    if kept:
        progress.notice(
            f"{cache} holds {_counted(kept)} ({PREFIX}*): the same command goes on with one; "
            f"delete what is no longer wanted, or it goes after {KEPT_DAYS} days"
        )


def _leftover(folder: Path) -> Leftover:
    states = list(_states(folder))
    newest = max((when for _, when in states), default=time.time())
    size = sum(size for size, _ in states)
    return Leftover(folder, size, max(0.0, time.time() - newest) / 86400)


def _states(folder: Path) -> Iterator[tuple[int, float]]:
    """Yield bytes and time of the last change; a build that runs removes files meanwhile."""
    for path in (folder, *folder.rglob("*")):
        try:
            state = path.lstat()
        except FileNotFoundError:
            continue
        yield (0 if path.is_dir() else state.st_size), state.st_mtime


def _removed(folder: Path) -> bool:
    """Remove a folder unless a build holds it; return whether it is gone."""
    try:
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except OSError:
        return False
    return True


def _counted(found: list[Leftover]) -> str:
    size = sum(one.size for one in found)
    what = "work of a build" if len(found) == 1 else f"work of {len(found)} builds"
    return f"{max(1, round(size / 1e6))} MB of unfinished {what}"
