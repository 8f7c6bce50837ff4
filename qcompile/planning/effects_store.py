"""Measured effects on disk: a ranking that was stopped goes on at the next layer."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from qcompile.bundle import versions
from qcompile.planning.sensitivity import Effect
from qcompile.progress import Progress
from qcompile.runtime.host import host_cpu

_MOST_BYTES = 1 << 26


def effects_key(about: Mapping[str, object]) -> str:
    """Return the hash of all that an effect depends on; versions and host are added.

    Args:
        about: Plain data: plan, samples, metric.
    """
    everything = {**about, "versions": versions(), "host": host_cpu()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


class KeptTime(BaseModel):
    """Milliseconds of a kernel in float and rounded; None where none stands for the node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    floating: float | None = None
    rounded: float | None = None


class Kept(BaseModel):
    """What lies on disk of one ranking.

    Attributes:
        effects: Units, joined by newlines where several rounded together, to noise and score.
        times: Node to the time of its kernels; None where they were not measured yet.
    """

    model_config = ConfigDict(extra="forbid")

    effects: dict[str, tuple[float, float | None]] = Field(default_factory=dict)
    times: dict[str, KeptTime] | None = None


class EffectsStore:
    """The file of one ranking, written anew after each layer."""

    def __init__(self, path: Path, progress: Progress) -> None:
        """Read what is there; a damaged file counts as none, with a notice.

        Args:
            path: The file; made when something is kept.
            progress: Hears of what is wrong with it.
        """
        self._path, self._progress = path, progress
        self._kept = self._read()

    def effect(self, label: str) -> Effect | None:
        """Return what was measured of a layer, or None."""
        found = self._kept.effects.get(label)
        return Effect(*found) if found else None

    def keep(self, label: str, effect: Effect) -> None:
        """Keep the effect of a layer."""
        self._kept.effects[label] = (effect.noise, effect.score)
        self._write()

    @property
    def times(self) -> dict[str, KeptTime] | None:
        """The times of kernels, if they were measured."""
        return self._kept.times

    def keep_times(self, times: dict[str, KeptTime]) -> None:
        """Keep the times of kernels."""
        self._kept.times = times
        self._write()

    def _read(self) -> Kept:
        try:
            with self._path.open("rb") as file:
                content = file.read(_MOST_BYTES)  # a longer one is cut, and is no JSON then
            return Kept.model_validate(json.loads(content))
        except FileNotFoundError:
            return Kept()
        except (OSError, ValueError, RecursionError) as error:  # pydantic's are ValueErrors
            reason = str(error).partition("\n")[0]
            self._progress.notice(f"layers are ranked anew, the cache is damaged: {reason}")
            return Kept()

    def _write(self) -> None:
        """Write a file beside it and rename that; a folder that refuses is a notice."""
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=folder, prefix=f"{self._path.name[:16]}.", suffix=".tmp", delete=False
            ) as file:
                try:
                    json.dump(self._kept.model_dump(), file)
                except BaseException:
                    Path(file.name).unlink()
                    raise
            Path(file.name).replace(self._path)
        except OSError as error:
            self._progress.notice(f"nothing is kept: {folder} cannot be written ({error.strerror})")
