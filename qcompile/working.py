"""The folder in which a long build works: one that was killed goes on from what lies there."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcompile.bundle import versions
from qcompile.calibrate.cache import default_cache
from qcompile.calibrate.leftovers import PREFIX, clear
from qcompile.data import Split
from qcompile.errors import OutputError, QcompileError
from qcompile.frontend import Loaded
from qcompile.plan import Plan
from qcompile.progress import Progress
from qcompile.recipe import Recipe
from qcompile.samples import samples_digest

LOCK = "lock"

WORK = ("weights/*.npz", "training.pt")
"""What a later build goes on from; a folder without it is not kept after a failure."""


@contextmanager
def working_folder(
    loaded: Loaded, data: Split, recipe: Recipe, plan: Plan | None, progress: Progress
) -> Iterator[Path]:
    """Give the folder in which such a build works; it is there again after a kill.

    Model, samples, options and versions make its name. It is removed when the build ends well;
    those of other builds are told of, and removed when they are old.

    Raises:
        OutputError: The cache cannot be written, or another build works there.
    """
    text = json.dumps(
        {
            "model": loaded.digest,
            "samples": samples_digest(data.calibration) if data.calibration else None,
            "recipe": recipe.model_dump(mode="json", exclude={"gates", "metric"}),
            "plan": plan.text() if plan else None,
            "versions": versions(),
        },
        sort_keys=True,
    )
    folder = default_cache() / f"{PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{folder}: another build works on the same; wait") from error
        clear(folder, progress)
        try:
            yield folder
        except QcompileError:
            if not any(any(folder.glob(pattern)) for pattern in WORK):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
