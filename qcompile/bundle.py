"""The bundle: the output folder of a build, which is there as a whole or not at all.

Rules, in the order a build meets them:

1. An existing output is refused; with ``force`` a former bundle (a folder with a manifest) is
   replaced, and nothing else ever is.
2. Everything is written to a hidden sibling folder, ``.<name>.partial-<pid>-<hex>``, which is
   renamed at the end. A stopped build leaves no bundle; the hidden folder of a killed one is
   removed by the next build of the same name. A lock tells a dead build's folder from a live one's.
3. A build that misses a gate puts everything but the engine in place. Where that would replace a
   good bundle, the good one stays and the rest goes to ``<name>.failed`` (or ``.failed-2`` ...
   where something else has that name).
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from qcompile.errors import OutputError
from qcompile.frozen import Frozen

MANIFEST = "manifest.json"
REPORT = "report.json"
PLAN = "plan.json"
ENGINE = "model.onnx"

Status = Literal["built", "gate failed"]

_CHUNK = 1 << 20


class FileDigest(Frozen):
    """The size of a file in bytes and the sha256 of its content."""

    bytes: int
    sha256: str


class Manifest(Frozen):
    """What a bundle was made from, by what, and what is in it.

    Attributes:
        status: ``gate failed`` means that the bundle holds no engine.
        source: The model file and its external data, by path below the model's folder.
        traced: The torch model that the file was made of; None where the user gave the file.
        calibration: sha256 of the set of calibration samples.
        evaluation: sha256 of the set of evaluation samples.
        recipe: The recipe as it was used, defaults included.
        plan: sha256 of plan.json.
        cpu: Instruction set of the engine, and the processor that built it.
        seconds: Stage to time. Times are here and in report.json only, so that the other files
            are the same bytes for the same inputs, recipe and versions.
        artifacts: Every other file of the bundle but the report.
    """

    version: Literal[1] = 1
    status: Status = "built"
    source: dict[str, FileDigest] = Field(default_factory=dict)
    traced: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    plan: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    cpu: dict[str, str] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    artifacts: dict[str, FileDigest] = Field(default_factory=dict)

    def text(self) -> str:
        """Return the JSON, keys in the order of the schema."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


class Bundle:
    """An output folder in the making; ``open_bundle`` gives one.

    Attributes:
        output: Where the bundle goes.
        folder: Where its files are written until then.
        force: A former bundle at ``output`` may be replaced.
    """

    def __init__(self, output: Path, folder: Path, *, force: bool) -> None:
        self.output = output
        self.folder = folder
        self.force = force

    def write(self, name: str, text: str) -> None:
        """Write a text file into the bundle.

        Raises:
            OutputError: The disk refuses.
        """
        try:
            (self.folder / name).write_text(text, "utf-8")
        except OSError as error:
            message = f"{self.output / name}: cannot be written ({error.strerror})"
            raise OutputError(message) from error

    def artifacts(self) -> dict[str, FileDigest]:
        """Return the digests of all files but manifest and report, by relative path, sorted."""
        paths = sorted(p for p in self.folder.rglob("*") if p.is_file())
        names = {p.relative_to(self.folder).as_posix(): p for p in paths}
        return {n: file_digest(p) for n, p in names.items() if n not in {MANIFEST, REPORT}}

    def remove_engine(self) -> None:
        """Remove all but plan, manifest and report; do so after a missed gate (rule 3)."""
        for path in list(self.folder.iterdir()):
            if path.name not in {PLAN, MANIFEST, REPORT}:
                _remove(path)

    def destination(self, status: Status) -> Path:
        """Return where ``place`` will put the files."""
        if status == "gate failed" and former_status(self.output) == "built":
            return _free_for_failed(self.output)
        return self.output

    def place(self, status: Status) -> Path:
        """Put the files in place as one bundle, with its manifest in it; return where they are.

        Raises:
            OutputError: Something else has come to be there since the build began.
        """
        destination = self.destination(status)
        if status == "gate failed":
            self.remove_engine()
        _replace(self.folder, destination, force=self.force or destination != self.output)
        return destination


@contextmanager
def open_bundle(output: Path, *, force: bool = False) -> Iterator[Bundle]:
    """Check that ``output`` can be written and give a bundle to fill; it must be placed at the end.

    Whatever was not placed when the block ends, normally or not, is removed.

    Raises:
        OutputError: The output exists (and ``force`` is off or it is no bundle) or its folder
            cannot be written.
    """
    output = output.resolve()
    _clean_up(output)
    _check_free(output, force=force)
    made = _make_parents(output)
    folder = output.with_name(f".{output.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        folder.mkdir()
    except OSError as error:
        _remove_empty(made)
        raise OutputError(f"{output}: cannot be written ({error.strerror})") from error
    try:
        with _locked(folder):
            yield Bundle(output, folder, force=force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)


def default_output(model: Path, scheme: str, target: str) -> Path:
    """Return the output's name when the user gives none: in the current folder."""
    return Path(f"{model.stem}-{scheme}-{target}")


def file_digest(path: Path) -> FileDigest:
    """Return size and sha256 of a file; it is read in pieces."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(bytes=size, sha256=digest.hexdigest())


def versions() -> dict[str, str]:
    """Return the versions of everything that decides what an artifact's bytes are."""
    compilers = ("qcompile", "numpy", "numba", "onnx", "onnx-ir", "onnxscript")
    names = (*compilers, "onnxruntime", "onnxruntime-gpu", "pillow", "tokenizers", "torch")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def former_status(output: Path) -> str | None:
    """Return the status of the bundle at ``output``; None where there is none."""
    try:
        manifest = json.loads((output / MANIFEST).read_text("utf-8"))
        return str(manifest["status"]) if manifest["version"] == 1 else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_free(output: Path, *, force: bool) -> None:
    if not output.name:
        raise OutputError(f"{output}: cannot be an output folder")
    if not os.path.lexists(output):
        return
    if not force:
        raise OutputError(f"{output} exists; --force replaces it, -o names another folder")
    if former_status(output) is None:
        raise OutputError(f"{output} is not a bundle of qcompile, so --force does not replace it")


def _free_for_failed(output: Path) -> Path:
    """Return ``<name>.failed``, numbered from 2 where that is there and no failed bundle."""
    name = output.with_name(f"{output.name}.failed")
    number = 1
    while os.path.lexists(name) and former_status(name) != "gate failed":
        number += 1
        name = output.with_name(f"{output.name}.failed-{number}")
    return name


def _make_parents(output: Path) -> list[Path]:
    """Make the folders that ``output`` goes into; return those that were not there, inner first."""
    missing = [p for p in output.parents if not p.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise OutputError(f"{output.parent}: cannot be made ({error.strerror})") from error
    return missing


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replace(new: Path, output: Path, *, force: bool) -> None:
    """Rename ``new`` to ``output``; a bundle that is there goes aside first and away last."""
    aside = new.with_name(new.name.replace(".partial-", ".old-"))
    try:
        if force and former_status(output) is not None:
            output.rename(aside)
        new.rename(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be put in place ({error.strerror})") from error
    finally:
        if aside.exists() and not output.exists():
            aside.rename(output)
    shutil.rmtree(aside, ignore_errors=True)


def _clean_up(output: Path) -> None:
    """Remove what killed builds of the same output left; give back a bundle caught mid-swap."""
    with suppress(OSError):
        siblings = list(output.parent.iterdir())
        for folder in siblings:
            if folder.name.startswith(f".{output.name}.old-") and _is_stale(folder):
                if os.path.lexists(output):
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    folder.rename(output)
            elif folder.name.startswith(f".{output.name}.partial-") and _is_stale(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nobody will take it for stale
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _is_stale(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
