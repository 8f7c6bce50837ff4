"""What builds that were stopped leave behind: told of, and removed when it is old."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from qcompile.calibrate.leftovers import clear, leftovers
from qcompile.progress import Silent


def stopped(cache: Path, name: str, days: float = 0, size: int = 3_000_000) -> Path:
    """Make what a build leaves that was killed so many days ago."""
    folder = cache / f"solving-{name}"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "a.npz").write_bytes(bytes(size))
    (folder / "lock").touch()
    when = time.time() - days * 86400
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (when, when))
    return folder


def test_size_and_age(tmp_path: Path) -> None:
    assert leftovers(tmp_path / "none") == []
    folder = stopped(tmp_path, "a", days=3)
    (tmp_path / "statistics.npz").touch()
    (tmp_path / "solving-link").symlink_to(folder)
    (found,) = leftovers(tmp_path)
    assert (found.folder, found.size) == (folder, 3_000_000)
    assert found.days == pytest.approx(3, abs=0.01)


def test_old_work_is_removed_and_young_work_told_of(tmp_path: Path) -> None:
    own, old, young = (stopped(tmp_path, *what) for what in (("a", 99), ("b", 15), ("c", 13)))
    told = Silent()
    clear(own, told)
    assert (own.exists(), old.exists(), young.exists()) == (True, False, True)
    removed, kept = told.notices
    assert removed.startswith("removed 3 MB of unfinished work of a build")
    assert "holds 3 MB of unfinished work of a build (solving-*)" in kept
    assert str(tmp_path) in kept


def test_one_recent_file_keeps_a_folder(tmp_path: Path) -> None:
    folder = stopped(tmp_path, "a", days=99)
    (folder / "weights" / "b.npz").touch()
    clear(tmp_path / "solving-own", Silent())
    assert folder.exists()


def test_what_a_build_holds_is_never_removed(tmp_path: Path) -> None:
    folder = stopped(tmp_path, "a", days=99)
    told = Silent()
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear(tmp_path / "solving-own", told)
    assert folder.exists()
    assert not any(notice.startswith("removed") for notice in told.notices)


def test_an_empty_cache_says_nothing(tmp_path: Path) -> None:
    told = Silent()
    clear(stopped(tmp_path, "own", days=99), told)
    assert told.notices == []
