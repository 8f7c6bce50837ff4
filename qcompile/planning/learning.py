"""Learns codes of weights in the order of the graph, each on what earlier codes leave of its input.

The model runs in stages, once in float and once with the codes learned so far. A stage ends before
layers that are learned one by one, or it is a block that is learned as a whole. Activations are on
disk and finished codes too, so a run that was killed goes on where it stopped, to the same bits.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.graph.edit import lazy_tensor
from qcompile.graph.stages import Group, Stage, cut
from qcompile.numerics.adaround import Grid, torch_library
from qcompile.numerics.groups import SolvedWeight, WeightFormat
from qcompile.plan import TensorPlan
from qcompile.planning.forms import node_name
from qcompile.planning.int8_layers import Int8Layer, int8_layers
from qcompile.planning.rounding import Rounded
from qcompile.progress import Progress
from qcompile.runtime.activations import ActivationStore
from qcompile.runtime.staged import finished_stages, run_stage
from qcompile.samples import Array, Samples
from qcompile.solved import SolvedStore

STAGE = "plan: weights"

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Learned:
    """Codes of one layer, and how well they do.

    Attributes:
        codes: ``(groups, R, columns)``: the learned ones where they are better, else the nearest.
        plain: Squared output error of plain rounding as a share of the signal, on samples that
            judge.
        error: The same of the learned codes.
    """

    codes: Codes
    plain: float
    error: float

    @property
    def better(self) -> bool:
        """Whether the codes are the learned ones."""
        return self.error < self.plain


@dataclass(frozen=True)
class Learning:
    """What is learned, from what, and where it is kept.

    Attributes:
        model: The lowered graph.
        tensors: Grids of the weights.
        nodes: Names of the nodes whose weights are learned.
        samples: Read in order; every fourth judges.
        jobs: Threads inside one operator of the model.
        progress: Hears of each layer.
        folder: For codes and activations; a run that was stopped goes on from it.
        steps: Of the optimizer, for each layer or block.
        seed: Of all chance.
        bits: Of the codes.
    """

    model: ir.Model
    tensors: Mapping[str, TensorPlan]
    nodes: Sequence[str]
    samples: Samples
    jobs: int
    progress: Progress
    folder: Path
    steps: int
    seed: int
    bits: int = 8

    def __post_init__(self) -> None:
        torch_library()

    @cached_property
    def layers(self) -> dict[str, Int8Layer]:
        """The layers by the names of their nodes, in graph order."""
        found = int8_layers(self.model, self.tensors, set(self.nodes))
        return {node_name(layer.node): layer for layer in found}

    @cached_property
    def fitting(self) -> list[int]:
        """Indices of the samples that are learned from; all where there are few."""
        some = [index for index in range(len(self.samples)) if index % 4 != 3]
        return some if len(self.samples) >= 4 else list(range(len(self.samples)))

    @cached_property
    def judging(self) -> list[int]:
        """Indices of the samples that judge; all where there are few."""
        return list(range(3, len(self.samples), 4)) or self.fitting

    @cached_property
    def store(self) -> SolvedStore:
        """Where finished codes are kept."""
        return SolvedStore(self.folder / "weights")

    @cached_property
    def exact(self) -> ActivationStore:
        """Activations of the float model."""
        return ActivationStore(self.folder / "activations")

    @cached_property
    def rounded(self) -> ActivationStore:
        """Activations with the codes that are finished."""
        return ActivationStore(self.folder / "rounded")

    @cached_property
    def inputs(self) -> set[str]:
        """Names of the model's inputs."""
        return {value.name or "" for value in self.model.graph.inputs}

    def activation(self, store: ActivationStore, name: str, index: int) -> Array:
        """Return an activation, or an input of the model, for one sample."""
        return self.samples[index][name] if name in self.inputs else store.get(name, index)

    def grid(self, layer: Int8Layer) -> Grid:
        """Return the grid of a layer's rows."""
        high = min(layer.high, (1 << (self.bits - 1)) - 1)
        scales = layer.scales()[..., None]
        return Grid(scales, np.zeros_like(scales, np.int64), -high, high)

    def save(self, layer: Int8Layer, learned: Learned) -> None:
        """Keep a layer's codes."""
        middle = 1 << (self.bits - 1)
        rows = len(layer.tensor.scale)
        solved = SolvedWeight(
            format=WeightFormat(self.bits, 0),
            codes=(learned.codes + middle).astype(np.uint8).reshape(rows, layer.columns),
            scales=layer.tensor.scales().reshape(rows, 1),
            zeros=np.full((rows, 1), middle, np.uint8),
        )
        record = {"plain": learned.plain, "error": learned.error}
        self.store.save(layer.weight, solved, record)
        self.tell()

    def load(self, layer: Int8Layer) -> Learned:
        """Return a layer's codes.

        Raises:
            OutputError: They are damaged.
        """
        codes = self.store.load(layer.weight).codes.astype(np.int64) - (1 << (self.bits - 1))
        rows = codes.reshape(layer.groups, -1, layer.columns)
        return Learned(rows, **self.store.record(layer.weight))

    def tensor(self, layer: Int8Layer) -> ir.TensorProtocol:
        """Return the weight as its finished codes stand for it, read when it is needed."""

        def values() -> Array:
            return layer.shaped(self.grid(layer).values(self.load(layer).codes).astype(np.float32))

        return lazy_tensor(layer.weight, ir.DataType.FLOAT, layer.values().shape, values)

    def tell(self) -> None:
        """Say how many layers are done."""
        done = sum(layer.weight in self.store for layer in self.layers.values())
        self.progress.step(STAGE, done, len(self.layers))

    def results(self) -> dict[str, Rounded]:
        """Return the codes that are better than the nearest ones, and clear activations away."""
        for name in ("activations", "rounded"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        found = {layer.weight: (layer, self.load(layer)) for layer in self.layers.values()}
        return {
            name: Rounded(layer.shaped(learned.codes).astype(np.int8), learned.plain, learned.error)
            for name, (layer, learned) in found.items()
            if learned.better
        }


LearnLayer = Callable[[Learning, Int8Layer], Learned]
LearnBlock = Callable[[Learning, Stage, Sequence[Int8Layer]], Sequence[Learned]]


def learn_in_order(
    work: Learning,
    groups: Sequence[Group],
    learn_layer: LearnLayer,
    learn_block: LearnBlock | None = None,
) -> dict[str, Rounded]:
    """Learn all layers, stage after stage.

    Args:
        work: What is learned.
        groups: Where the model is cut. Layers of a group's nodes are learned one by one on its
            activation; those inside a stage whose group has no nodes are learned as a block.
        learn_layer: Learns one layer; both stores hold what it reads.
        learn_block: Learns the layers of a stage; the stores hold what the stage reads, and that
            of the float model what it gives. None: there are no blocks.

    Returns:
        By weight, the codes that do better than the nearest ones.

    Raises:
        OutputError: The disk is full, or codes of an earlier run are damaged.
    """
    stages = cut(work.model, groups)
    replacements = {layer.weight: work.tensor(layer) for layer in work.layers.values()}
    for layer in work.layers.values():
        if layer.weight in work.store:
            work.load(layer)
    work.tell()
    for index in range(_first_open(work, stages), len(stages)):
        if _all_done(work):
            break
        stage = stages[index]
        run_stage(work.model, stage, work.samples, work.exact, threads=work.jobs)
        inside = _layers(work, stage.nodes)
        if learn_block is not None and _unfinished(work, stage.nodes):  # whole, even if it is begun
            for layer, learned in zip(inside, learn_block(work, stage, inside), strict=True):
                work.save(layer, learned)
        run_stage(
            work.model,
            stage,
            work.samples,
            work.rounded,
            threads=work.jobs,
            replacements=replacements,
        )
        for layer in _unfinished(work, stage.group.nodes if stage.group else ()):
            work.save(layer, learn_layer(work, layer))
    return work.results()


def _all_done(work: Learning) -> bool:
    return all(layer.weight in work.store for layer in work.layers.values())


def _layers(work: Learning, nodes: Sequence[ir.Node]) -> list[Int8Layer]:
    layers = (work.layers.get(node_name(node)) for node in nodes)
    return [layer for layer in layers if layer is not None]


def _unfinished(work: Learning, nodes: Sequence[ir.Node]) -> list[Int8Layer]:
    return [layer for layer in _layers(work, nodes) if layer.weight not in work.store]


def _first_open(work: Learning, stages: Sequence[Stage]) -> int:
    """Return the stage at which a run that was stopped goes on."""
    for index, stage in enumerate(stages):
        nodes = [*stage.nodes, *(stage.group.nodes if stage.group else ())]
        if _unfinished(work, nodes):
            return min(index, finished_stages(stages, work.rounded, len(work.samples)))
    return len(stages)
