"""Training without labels: the rounded model learns to answer as the float one does."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qcompile.errors import DataError, ModelError
from qcompile.progress import Progress, Silent
from qcompile.qat import checkpoint
from qcompile.qat.checkpoint import State
from qcompile.qat.exported import Inputs
from qcompile.qat.trainable import Trainable

Augment = Callable[[Inputs, torch.Generator], Inputs]
STAGE = "train"

SCALE_RATE = 10.0
"""A learned scale moves by so many rates of itself in a step: as weights of 0.1 do."""


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: Times that each sample is seen.
        batch: Samples of a step.
        rate: Of Adam, at its height; it rises over a twentieth of the steps, and falls to 0 as a
            cosine does.
        freeze_norms: Share of the epochs from which batch norms keep their running statistics.
        seed: Of the order of the samples, of augmentation and of dropout.
    """

    epochs: int = 10
    batch: int = 32
    rate: float = 1e-4
    freeze_norms: float = 0.75
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    """What training did.

    Attributes:
        losses: Of each step: squared error at the outputs over their power.
        resumed: Epochs that an earlier run had done.
    """

    losses: list[float]
    resumed: int


def distill(
    model: Trainable,
    teacher: nn.Module,
    samples: Sequence[Inputs],
    training: Training | None = None,
    *,
    checkpoints: Path | None = None,
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Train a prepared model, in place, to give the outputs of the float one.

    The loss is the squared error of each float output over the power of the teacher's, their mean
    (a regression on logits: Hinton et al. 2015, arXiv:1503.02531, section 2.1). The same seed gives
    the same model on the same machine, whether training was stopped in between or not.

    Args:
        model: As ``prepare`` gave it; ends in evaluation mode.
        teacher: The float model; it is not changed.
        samples: Tuples of one tensor for each argument, each with the batch axis; read when needed.
        training: How.
        checkpoints: Folder for a checkpoint after each epoch; with one there, training goes on.
        augment: Changes a batch at random, from the generator that it is given.
        progress: Hears "train" and notices.

    Returns:
        The losses.

    Raises:
        DataError: There are no samples.
        ModelError: The loss is not finite; the last checkpoint stays.
    """
    run = _Run(model, teacher, samples, training or Training(), checkpoints, progress or Silent())
    return run.run(augment)


class _Run:
    def __init__(
        self,
        model: Trainable,
        teacher: nn.Module,
        samples: Sequence[Inputs],
        training: Training,
        checkpoints: Path | None,
        progress: Progress,
    ) -> None:
        if not len(samples):
            raise DataError("there are no samples to train on")
        self.model, self.samples, self.training = model, samples, training
        self.teacher_was_training, self.teacher = teacher.training, teacher
        self.folder, self.progress = checkpoints, progress
        self.optimizer = torch.optim.Adam(_groups(model, training.rate))
        self.per_epoch = math.ceil(len(samples) / training.batch)
        self.losses: list[float] = []

    def run(self, augment: Augment | None) -> Distilled:
        key = self._key()
        state = checkpoint.load(self.folder, key, self.progress) if self.folder else None
        begin = self._restore(state) if state else 0
        self.teacher.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                for epoch in range(begin, self.training.epochs):
                    self._epoch(epoch, augment)
                    self._save(key, epoch + 1)
        finally:
            self.teacher.train(self.teacher_was_training)
            self.model.eval()
        total = self.training.epochs * self.per_epoch
        self.progress.step(STAGE, total, total)
        return Distilled(self.losses, begin)

    def _epoch(self, number: int, augment: Augment | None) -> None:
        """Train on all samples once; all chance comes from the seed and the epoch's number."""
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + number)
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        self.model.train()
        if number >= self.training.freeze_norms * self.training.epochs:
            self.model.freeze_batch_norm()
        for batch in self._batches(generator):
            total = self.training.epochs * self.per_epoch
            self.progress.step(STAGE, len(self.losses), total)
            self._step(augment(batch, generator) if augment else batch)

    def _batches(self, generator: torch.Generator) -> Iterator[Inputs]:
        order = torch.randperm(len(self.samples), generator=generator).tolist()
        size = self.training.batch
        for start in range(0, len(order), size):
            chosen = [self.samples[index] for index in order[start : start + size]]
            yield tuple(_joined(parts) for parts in zip(*chosen, strict=True))

    def _step(self, batch: Inputs) -> None:
        with torch.no_grad():
            wanted = self.teacher(*batch)
        loss = relative_error(self.model(*batch), wanted)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(self._diverged(value))
        for group in self.optimizer.param_groups:
            group["lr"] = group["height"] * self._share(len(self.losses))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(value)

    def _share(self, step: int) -> float:
        """Return the share of its height that a rate has in a step."""
        total = self.training.epochs * self.per_epoch
        rise = max(total // 20, 1)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))

    def _diverged(self, value: float) -> str:
        step, rate = len(self.losses) + 1, self.training.rate
        kept = "no checkpoint was kept"
        if self.folder is not None and (path := self.folder / checkpoint.FILE).exists():
            kept = f"{path} holds the last epoch that was good"
        return (
            f"training diverged: the loss of step {step} is {value}; take a rate below {rate:g}; "
            f"{kept}"
        )

    # -- checkpoints ------------------------------------------------------------------------

    def _key(self) -> str:
        shapes = {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        what = [asdict(self.training), len(self.samples), shapes]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _save(self, key: str, epochs: int) -> None:
        if self.folder is None:
            return
        weights, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        checkpoint.save(self.folder, State(key, epochs, self.losses, weights, optimizer))

    def _restore(self, state: State) -> int:
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.losses = list(state.losses)
        return state.epoch


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        one, other = sorted(shapes)[:2]
        raise DataError(
            f"samples of the sizes {list(one)} and {list(other)} cannot be trained on in one "
            "batch: give them one size, or take batch = 1 ([qat] in the recipe)"
        )
    return torch.cat(list(parts))


def _groups(model: Trainable, rate: float) -> list[dict[str, Any]]:
    """Return what Adam trains: all but learned scales at one rate, these in proportion to them.

    Adam's steps do not depend on how large a number or its gradient is.
    """
    scales = [q.scale for q in model.fake_quants().values() if q.learned]
    owned = {id(scale) for scale in scales}
    others = [p for p in model.parameters() if id(p) not in owned]
    groups = [{"params": others, "height": rate, "lr": rate}]
    for scale in scales:
        height = rate * SCALE_RATE * float(scale.detach().mean())
        groups.append({"params": [scale], "height": height, "lr": height})
    return groups


def relative_error(found: Any, wanted: Any) -> torch.Tensor:  # noqa: ANN401 (what modules return)
    """Return the squared error of each float output over its power, their mean.

    Args:
        found: A tensor, or tensors in tuples, lists and dicts.
        wanted: The same of the teacher.
    """
    pairs = zip(_floats(found), _floats(wanted), strict=True)
    parts = [
        (one - other).square().sum() / other.square().sum().clamp(min=1e-12) for one, other in pairs
    ]
    if not parts:
        raise ModelError("the module has no float output to learn from")
    return torch.stack(parts).mean()


def _floats(outputs: Any) -> list[torch.Tensor]:  # noqa: ANN401 (what modules return)
    leaves = torch.utils._pytree.tree_leaves(outputs)  # noqa: SLF001 (there is no public one)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
