"""Solved weights on disk: one file each, so that none has to stay in memory."""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import OutputError
from qcompile.numerics.groups import SolvedWeight, WeightFormat

_DAMAGED = (
    OSError,
    EOFError,
    TypeError,  # an array where an archive should be
    ValueError,
    LookupError,  # a member is missing
    RuntimeError,  # a flag of encryption, or of an unknown compression
    zipfile.BadZipFile,
)


class SolvedStore:
    """A folder of solved weights. A weight is there whole, with its record, or not at all."""

    def __init__(self, folder: Path) -> None:
        """Open or make the folder.

        Raises:
            OutputError: It cannot be made.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def save(self, name: str, solved: SolvedWeight, record: Mapping[str, Any]) -> None:
        """Keep a weight, durably.

        Args:
            name: Of the weight.
            solved: Its codes.
            record: What else is known of it; JSON.

        Raises:
            OutputError: The disk is full or the folder cannot be written.
        """
        form = solved.format
        arrays = {"codes": solved.codes, "scales": solved.scales, "zeros": solved.zeros}
        if solved.order is not None:
            arrays["order"] = solved.order
        if solved.input_scale is not None:
            arrays["input_scale"] = solved.input_scale
        about = {
            "name": name,
            "arrays": list(arrays),
            "format": [form.bits, form.group_size, form.symmetric, form.scale_type, form.signed],
            "record": dict(record),
        }
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        path = self._path(name)
        half = path.with_suffix(".half")
        try:
            with half.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror})") from error

    def load(self, name: str) -> SolvedWeight:
        """Return a weight.

        Raises:
            OutputError: It is not there or damaged.
        """
        about, arrays = self._read(name, arrays=True)
        return SolvedWeight(WeightFormat(*about["format"]), **arrays)

    def record(self, name: str) -> dict[str, Any]:
        """Return what was saved with a weight.

        Raises:
            OutputError: It is not there or damaged.
        """
        found: dict[str, Any] = self._read(name)[0]["record"]
        return found

    def _read(self, name: str, *, arrays: bool = False) -> tuple[Any, dict[str, Any]]:
        path = self._path(name)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                about = json.loads(bytes(found["about"]))
                return about, {key: found[key] for key in about["arrays"] if arrays}
        except _DAMAGED as error:
            raise OutputError(
                f"{path}: weight {name!r} is lost or damaged ({error}); remove the folder "
                f"{self.folder} to solve again"
            ) from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
