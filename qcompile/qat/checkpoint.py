"""Training that was stopped goes on from here: tensors and numbers, no code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qcompile.errors import OutputError
from qcompile.progress import Progress

FILE = "training.pt"


@dataclass(frozen=True)
class State:
    """Training after some epochs.

    Attributes:
        key: What it belongs to: options, data, model.
        epoch: Epochs that are done.
        losses: Of each step so far.
        model: State of the model.
        optimizer: State of the optimizer.
    """

    key: str
    epoch: int
    losses: list[float]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint in place of the former one, whole or not at all.

    Raises:
        OutputError: The disk refuses.
    """
    path = folder / FILE
    beside = folder / f"{FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(vars(state), beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps what the disk says
        raise OutputError(f"{path}: the checkpoint cannot be written ({error})") from error
    return path


def load(folder: Path, key: str, progress: Progress) -> State | None:
    """Return the checkpoint of the same training, or None; what is of no use is noticed."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        state = State(**found)
    except Exception as error:  # noqa: BLE001 (torch raises many kinds for a damaged file)
        progress.notice(f"{path}: is damaged ({type(error).__name__}): training begins anew")
        return None
    if state.key != key:
        progress.notice(f"{path}: belongs to another training: this one begins anew")
        return None
    progress.notice(f"training goes on behind epoch {state.epoch}: {path}")
    return state
