"""Solves the weights of a model one group after another, each on what earlier codes leave of x.

The model is cut where a group of layers reads its input. A stage runs on all samples with the
weights solved so far, its last activation becomes the group's Hessian, the group is solved, its
codes go to disk. So nothing holds more of the model than a stage, and a run that was killed goes on
at the group where it stopped, with the same bits.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import lazy_tensor
from qcompile.graph.stages import Stage, cut, reader_groups
from qcompile.graph.walk import release
from qcompile.numerics.groups import Floats, SolvedWeight
from qcompile.plan import WeightPlan
from qcompile.planning.forms import node_name
from qcompile.planning.layer_inputs import LayerInputs, input_rows
from qcompile.planning.levels import Level, choose_level
from qcompile.planning.solve import BY_DEFAULT, Outcome, round_layer, solve_layers
from qcompile.planning.weights import Layer, WeightSelection, layer_nodes
from qcompile.progress import Progress
from qcompile.remedies import Learned
from qcompile.runtime.activations import ActivationStore
from qcompile.runtime.staged import Visit, run_stage
from qcompile.samples import Array, Samples
from qcompile.solved import SolvedStore
from qcompile.targets.target import Target

POSITIONS = 2048
"""Most rows of one sample that a layer is solved on."""

STAGE = "solve: weights"


@dataclass(frozen=True)
class Job:
    """What is solved, for what, and where it is kept.

    Attributes:
        model: The lowered graph.
        selection: Its weights.
        target: What the engine can run.
        folder: Of solved weights and activations; a run that was stopped goes on from it.
        jobs: Threads.
        progress: Hears of each layer, and of those where the Hessian was damped more.
        learned: How AdaRound learns.
    """

    model: ir.Model
    selection: WeightSelection
    target: Target
    folder: Path
    jobs: int
    progress: Progress
    learned: Learned = BY_DEFAULT

    @cached_property
    def store(self) -> SolvedStore:
        """Where solved weights are kept."""
        return SolvedStore(self.folder / "weights")

    def plans(self) -> dict[str, WeightPlan]:
        """Return the record of each solved weight."""
        store = self.store
        return {
            layer.name: WeightPlan.model_validate(store.record(layer.name))
            for layer in self.selection.layers
        }

    def begin(self) -> None:
        """Look at what an earlier run left, and say how many layers are done.

        Raises:
            OutputError: A weight that it left is damaged.
        """
        for layer in self.selection.layers:
            if layer.name in self.store:
                self.store.load(layer.name)
        self.tell()

    def tell(self) -> None:
        """Say how many layers are done."""
        store, layers = self.store, self.selection.layers
        self.progress.step(STAGE, sum(x.name in store for x in layers), len(layers))


def round_weights(job: Job) -> None:
    """Round all weights to the nearest codes, without data.

    Raises:
        OutputError: The disk is full, or a weight of an earlier run is damaged.
    """
    store = job.store
    job.begin()
    for layer in job.selection.layers:
        if layer.name in store:
            continue
        solved = round_layer(layer.values(), layer.options, layer.scale_type, signed=layer.signed)
        release(layer.weight.const_value)
        level = choose_level(job.target, layer.options, solved, None)
        store.save(layer.name, solved, _record(job, layer, solved, None, level))
        job.tell()


def solve_weights(job: Job, samples: Samples) -> None:
    """Solve all weights on samples; some of them only judge.

    Raises:
        OutputError: The disk is full, or a weight of an earlier run is damaged.
    """
    layers = {node_name(layer.node): layer for layer in job.selection.layers}
    stages = cut(job.model, reader_groups(list(layer_nodes(job.model, job.selection))))
    activations = ActivationStore(job.folder / "activations")
    compensated = any(layer.options.compensates for layer in job.selection.layers)
    exact = ActivationStore(job.folder / "exact") if compensated else None
    replacements = {layer.name: _lazy(layer, job.store) for layer in job.selection.layers}
    read = [_layers_of(stage, layers) for stage in stages[:-1]]
    job.begin()
    for index in range(_first_open(read, job.store), len(read)):
        units = [(unit, _inputs_of(unit, len(samples))) for unit in _units(read[index])]
        if exact:
            run_stage(job.model, stages[index], samples, exact, threads=job.jobs)
        run_stage(
            job.model,
            stages[index],
            samples,
            activations,
            threads=job.jobs,
            replacements=replacements,
            visit=_visit(job, units, _read(stages[index]), exact),
        )
        for unit, inputs in units:
            _solve_unit(job, unit, inputs)
    shutil.rmtree(activations.folder)
    if exact:
        shutil.rmtree(exact.folder)


def _read(stage: Stage) -> str:
    """Return the name of the activation that a stage ends with."""
    return str(stage.group.x.name) if stage.group else ""


def _layers_of(stage: Stage, layers: Mapping[str, Layer]) -> list[Layer]:
    """Return the layers that read a stage's activation; a shared weight has one layer."""
    nodes = stage.group.nodes if stage.group else ()
    return [layers[name] for node in nodes if (name := node_name(node)) in layers]


def _first_open(read: Sequence[Sequence[Layer]], store: SolvedStore) -> int:
    """Return the stage at which a run that was stopped goes on."""
    begun = [i for i, found in enumerate(read) if any(layer.name in store for layer in found)]
    last = max(begun, default=-1)
    return last + all(layer.name in store for layer in read[last]) if begun else 0


def _units(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Return layers that multiply the same rows, as asked alike; each Conv has rows of its own."""
    units: dict[object, list[Layer]] = {}
    for layer in layers:
        key = layer.node if layer.node.op_type == "Conv" else layer.options.model_dump_json()
        units.setdefault(key, []).append(layer)
    return list(units.values())


def _inputs_of(unit: Sequence[Layer], samples: int) -> LayerInputs:
    first = unit[0]
    return LayerInputs(first.columns, samples, compensated=first.options.compensates)


def _visit(
    job: Job,
    units: Sequence[tuple[list[Layer], LayerInputs]],
    name: str,
    exact: ActivationStore | None,
) -> Visit:
    """Return what adds an activation to the inputs of the layers that read it.

    Args:
        job: Hears of layers that cannot make up for earlier ones.
        units: The layers.
        name: Of the activation.
        exact: Holds it as the float model has it, unless it is an input of the model.
    """

    def visit(index: int, x: Array) -> None:
        beside = exact.get(name, index) if exact and name in exact.names else x
        for (first, *_), inputs in units:
            rows = _rows(first, x)
            if inputs.lost and beside.shape != x.shape:
                inputs.lost = None
                job.progress.notice(
                    f"{first.name}: makes up for no earlier layer: how many rows it reads depends "
                    "on their values"
                )
            inputs.add(index, rows, _rows(first, beside) if inputs.lost else None)

    return visit


def _rows(layer: Layer, x: Array) -> Floats:
    rows: Floats = input_rows(layer.node, x.astype(np.float32, copy=False), POSITIONS)[0]
    return rows


def _lazy(layer: Layer, store: SolvedStore) -> ir.TensorProtocol:
    """Return the weight as its codes stand for it, read when it is needed."""
    assert layer.weight.const_value is not None  # noqa: S101 - a constant
    original = layer.weight.const_value
    return lazy_tensor(
        layer.name,
        original.dtype,
        original.shape.numpy(),
        lambda: layer.shaped(store.load(layer.name).values()),
    )


def _solve_unit(job: Job, unit: Sequence[Layer], inputs: LayerInputs) -> None:
    """Solve layers that read the same rows, and keep them."""
    weights = [layer.values() for layer in unit]
    options, signed = unit[0].options, unit[0].signed
    outcomes, damping = solve_layers(
        weights, inputs, options, unit[0].scale_type, signed=signed, learned=job.learned
    )
    if damping > options.damping:
        job.progress.notice(f"{unit[0].name}: GPTQ's Hessian took a damping of {damping:g}")
    for layer, outcome in zip(unit, outcomes, strict=True):
        release(layer.weight.const_value)
        solved = outcome.chosen.solved
        level = choose_level(job.target, layer.options, solved, inputs.rows()[1])
        job.store.save(layer.name, solved, _record(job, layer, solved, outcome, level))
        job.tell()


def _record(
    job: Job, layer: Layer, solved: SolvedWeight, outcome: Outcome | None, level: Level
) -> dict[str, Any]:
    form = solved.format
    inherited = outcome.inherited if outcome else None
    record = {
        "bits": layer.options.bits,
        "group_size": form.group_size,
        "symmetric": form.symmetric,
        "scale_type": layer.scale_type,
        "algorithm": outcome.chosen.algorithm if outcome else "rtn",
        "errors": outcome.errors if outcome else {},
        "accuracy_level": level.level,
        "level_error": level.error,
        "input_scaled": solved.input_scale is not None,
        "permuted": solved.order is not None,
        "compensate": layer.options.compensates,
        "inherited": inherited.error if inherited else None,
        "left": inherited.left if inherited else None,
        "form": job.target.few_bits().form,
    }
    return WeightPlan.model_validate(record).model_dump(mode="json")
