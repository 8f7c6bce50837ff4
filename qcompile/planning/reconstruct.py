"""BRECQ: the weights of a block learn together how to round, on the error at the block's output.

Li et al. 2021, arXiv:2102.05426, without the weights that its section 3.3 takes from the Fisher
information. A block runs in torch; one that cannot is learned layer by layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np
import onnx_ir as ir

from qcompile.graph.stages import Group, Stage, cut, reader_groups, stage_model
from qcompile.graph.work import multiply_adds
from qcompile.numerics.adaround import (
    Grid,
    Schedule,
    SoftWeight,
    Tensor,
    fixed_threads,
    minimize,
    torch_library,
)
from qcompile.numerics.metrics import relative_l2
from qcompile.planning.adaround import learned_layer
from qcompile.planning.blocks import block_groups
from qcompile.planning.forms import node_name
from qcompile.planning.int8_layers import Int8Layer
from qcompile.planning.learning import Codes, Learned, Learning, learn_in_order
from qcompile.planning.rounding import Rounded
from qcompile.planning.torch_graph import TorchGraph
from qcompile.planning.torch_operators import NotHere
from qcompile.runtime.activations import ActivationStore
from qcompile.runtime.ort import Session
from qcompile.samples import Array

BATCH = 16
"""Samples of a step."""

STEP_WORK = 1 << 31
"""Multiply-adds of a step, without those of the gradients: of large samples fewer are drawn."""

BYTES = 1 << 29
"""Of a block's inputs and outputs over all samples; beyond it fewer samples are taken."""

CLOSE = 1e-4
"""Relative L2 by which torch may differ from ONNX Runtime."""


def reconstructed(work: Learning) -> dict[str, Rounded]:
    """Learn how to round weights, block by block; return those that plain rounding does worse.

    Args:
        work: What is learned, from what, and where it is kept.

    Raises:
        RuntimeMissingError: torch is not installed.
        OutputError: The folder cannot be written, or codes of an earlier run are damaged.
    """
    return learn_in_order(work, _groups(work), learned_layer, learned_block)


def _groups(work: Learning) -> list[Group]:
    """Return where to cut: at ends of blocks, and before each layer of those torch cannot run."""
    ends = block_groups(work.model.graph, work.layers)
    stages = cut(work.model, ends)
    values = _all_values(work, stages)
    groups: list[Group] = []
    for stage in stages:
        nodes = [node for node in stage.nodes if node_name(node) in work.layers]
        obstacle = _obstacle(work, stage, values) if nodes else ""
        if obstacle:
            names = node_name(nodes[0]), node_name(nodes[-1])
            work.progress.notice(
                f"brecq: the block from {names[0]} to {names[1]} is learned layer by layer: "
                f"{obstacle}"
            )
            groups += reader_groups(nodes)
        groups += [stage.group] if stage.group else []
    return groups


def _all_values(work: Learning, stages: Sequence[Stage]) -> dict[str, Array]:
    """Return what flows between the stages for the first sample."""
    tapped = work.model.clone()
    made = {out.name: out for node in tapped.graph for out in node.outputs}
    names = dict.fromkeys(name for stage in stages for name in (*stage.reads, *stage.gives))
    tapped.graph.outputs.clear()
    tapped.graph.outputs.extend(made[name] for name in names if name in made)
    feeds = work.samples[0]
    return {**feeds, **Session(tapped, threads=work.jobs).run(feeds)}


def _obstacle(work: Learning, stage: Stage, values: Mapping[str, Array]) -> str:
    """Return why a block cannot be run in torch, if it cannot."""
    torch = torch_library()
    graph = TorchGraph(_model(work, stage, ()), "cpu")  # floats, also where a build goes on
    try:
        with torch.no_grad(), fixed_threads(torch):
            feeds = {name: torch.from_numpy(np.array(values[name])) for name in stage.reads}
            found = graph.run(feeds, {})
    except NotHere as error:
        return f"torch has no {error} here"
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"torch cannot run it ({str(error).splitlines()[0]})"
    for name, tensor in found.items():
        exact, made = values[name], tensor.numpy()
        if exact.shape != made.shape or relative_l2(exact, made) > CLOSE:
            return f"torch makes something else of {name}"
    return ""


def _model(work: Learning, stage: Stage, solved: Iterable[Int8Layer]) -> ir.Model:
    """Return a stage as a model, with some weights as their finished codes stand for them."""
    values = {v.name: v for v in work.model.graph.inputs}
    values |= {out.name: out for node in work.model.graph for out in node.outputs}
    types = {n: (values[n].dtype or ir.DataType.FLOAT, None) for n in stage.reads}
    done = {layer.weight: work.tensor(layer) for layer in solved if layer.weight in work.store}
    return stage_model(work.model, stage, types, done)


def learned_block(work: Learning, stage: Stage, layers: Sequence[Int8Layer]) -> list[Learned]:
    """Learn the codes of a block whose inputs and float outputs are in the stores."""
    torch = torch_library()
    grids = [_grid(work, layer) for layer in layers]
    weights = [layer.values().astype(np.float64) for layer in layers]
    plain = [grid.nearest(weight) for grid, weight in zip(grids, weights, strict=True)]
    with fixed_threads(torch) as device:
        block = _Block(work, stage, layers, device)
        soft = [SoftWeight(torch, w, g, device) for w, g in zip(weights, grids, strict=True)]
        fitting = block.data(work.fitting)
        before = block.errors(fitting, _tensors(torch, grids, plain, device))

        def error(some: np.ndarray) -> Tensor:
            found = block.differences([fitting[i] for i in some], [w.values() for w in soft])
            parts = [found[name] / before[name] for name in found if before[name] > 0]
            return sum(parts) * (len(fitting) / len(some) / max(1, len(parts)))

        if any(before.values()):
            schedule = Schedule(work.steps, work.seed, _batch(stage))
            minimize(soft, error, len(fitting), schedule)
        codes = [weight.codes() for weight in soft]
        judging = block.data(work.judging)
        power = block.power(judging)
        shares = [
            sum(found[name] / power[name] for name in found if power[name] > 0)
            for found in (
                block.errors(judging, _tensors(torch, grids, some, device))
                for some in (plain, codes)
            )
        ]
    kept = codes if shares[1] < shares[0] else plain
    return [
        Learned(layer.as_rows(some), shares[0], shares[1])
        for layer, some in zip(layers, kept, strict=True)
    ]


def _batch(stage: Stage) -> int:
    """Return how many samples a step takes."""
    once = sum(multiply_adds(node) for node in stage.nodes)
    return max(1, min(BATCH, int(STEP_WORK / max(1.0, once))))


def _grid(work: Learning, layer: Int8Layer) -> Grid:
    """Return the grid of a weight as it lies in the graph."""
    rows = work.grid(layer)
    shape = [1] * layer.values().ndim
    shape[layer.tensor.axis or 0] = -1
    return Grid(rows.scales.reshape(shape), rows.zeros.reshape(shape), rows.low, rows.high)


def _tensors(
    torch: ModuleType, grids: Sequence[Grid], codes: Sequence[Codes], device: str
) -> list[Tensor]:
    """Return what codes stand for."""
    values = (grid.values(some) for grid, some in zip(grids, codes, strict=True))
    return [torch.from_numpy(v.astype(np.float32)).to(device) for v in values]


Sample = tuple[dict[str, Tensor], dict[str, Tensor]]
"""What a block reads and what it should make."""


@dataclass(frozen=True)
class _Block:
    """A stage that runs in torch.

    Attributes:
        work: Where its activations are.
        stage: Which.
        layers: Its weights, in the order in which they are given.
        device: Where it runs.
    """

    work: Learning
    stage: Stage
    layers: Sequence[Int8Layer]
    device: str

    @cached_property
    def graph(self) -> TorchGraph:
        """The stage's nodes."""
        others = [layer for layer in self.work.layers.values() if layer not in self.layers]
        return TorchGraph(_model(self.work, self.stage, others), self.device)

    @cached_property
    def joins(self) -> bool:
        """Whether samples joined along the first axis are computed as if they were apart."""
        some = [self._sample(index)[0] for index in self.work.fitting[:2]]
        torch = torch_library()
        try:
            with torch.no_grad():
                joined = self.graph.run(_joined(some), {})
                apart = _joined([self.graph.run(reads, {}) for reads in some])
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        return all(
            joined[name].shape == exact.shape
            and relative_l2(exact.cpu().numpy(), joined[name].cpu().numpy()) <= CLOSE
            for name, exact in apart.items()
            if exact.is_floating_point()
        )

    def data(self, indices: Sequence[int]) -> list[Sample]:
        """Return samples, as many as memory is set aside for."""
        first = self._sample(indices[0])
        size = sum(t.numel() * t.element_size() for part in first for t in part.values())
        room = max(1, BYTES // max(1, size))
        if room < len(indices):
            name = node_name(self.layers[0].node)
            self.work.progress.notice(
                f"brecq: the block at {name} is learned on {room} samples of {len(indices)}: more "
                "do not fit into the memory set aside"
            )
        return [first, *(self._sample(index) for index in indices[1:room])]

    def _sample(self, index: int) -> Sample:
        return (
            self._tensors(self.stage.reads, self.work.rounded, index),
            self._tensors(self.stage.gives, self.work.exact, index),
        )

    def _tensors(
        self, names: Sequence[str], store: ActivationStore, index: int
    ) -> dict[str, Tensor]:
        torch = torch_library()
        arrays = {name: self.work.activation(store, name, index) for name in names}
        return {n: torch.from_numpy(np.array(a)).to(self.device) for n, a in arrays.items()}

    def differences(self, some: Sequence[Sample], weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the squared error of each float output over some samples."""
        named = {layer.weight: w for layer, w in zip(self.layers, weights, strict=True)}
        totals: dict[str, Tensor] = {}
        for reads, gives in self._batches(some):
            found = self.graph.run(reads, named)
            for name, exact in gives.items():
                if exact.is_floating_point():
                    error = (found[name] - exact).square().sum()
                    totals[name] = totals[name] + error if name in totals else error
        return totals

    def errors(self, some: Sequence[Sample], weights: Sequence[Tensor]) -> dict[str, float]:
        """Return the same as numbers, without gradients, a batch at a time."""
        totals: dict[str, float] = {}
        with torch_library().no_grad():
            for start in range(0, len(some), BATCH):
                found = self.differences(some[start : start + BATCH], weights)
                for name, error in found.items():
                    totals[name] = totals.get(name, 0.0) + float(error)
        return totals

    def power(self, some: Sequence[Sample]) -> dict[str, float]:
        """Return the sum of squares of each float output."""
        names = [name for name, tensor in some[0][1].items() if tensor.is_floating_point()]
        return {n: sum(float(gives[n].square().sum()) for _, gives in some) for n in names}

    def _batches(self, some: Sequence[Sample]) -> Sequence[Sample]:
        """Join samples along the first axis, where the block computes them apart all the same."""
        if len(some) < 2 or not self.joins:
            return some
        return [(_joined([reads for reads, _ in some]), _joined([gives for _, gives in some]))]


def _joined(some: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return values of samples joined along the first axis."""
    cat = torch_library().cat
    return {name: cat([values[name] for values in some]) for name in some[0]}
