"""Runs a model larger than memory: one stage after another, activations between them on disk.

One stage at a time is loaded, with its weights mapped, and runs all samples; see ``graph.stages``.
Where ONNX Runtime has no float16 kernel for a weight it holds it as float32 while the stage is
loaded: count three bytes of memory for each byte of float16 weights, one for float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.errors import DataError
from qcompile.graph.stages import Stage, cut_by_weight, stage_model
from qcompile.progress import Progress, Silent
from qcompile.runtime.activations import ActivationStore
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Feeds, Samples, feeds_digest

STAGE_BYTES = 200 << 20
"""Of weights, as stored: what is loaded at once of a large model."""

Visit = Callable[[int, Array], None]
"""Looks at the activation of one sample: its index, and the array."""

_EMBEDDED_BYTES = 1 << 16


def run_stage(
    model: ir.Model,
    stage: Stage,
    samples: Samples,
    store: ActivationStore,
    *,
    threads: int,
    replacements: Mapping[str, ir.TensorProtocol] | None = None,
    visit: Visit | None = None,
) -> None:
    """Run one stage on all samples, from and to the store.

    All or nothing: a stage that was stopped is run again from its beginning. One that is finished
    is not run again: its activations are there and are visited, so that a caller that was stopped
    while it worked on them can call this once more with the same arguments. Afterwards the store
    holds exactly what later stages and the model's outputs need. The same arguments on the same
    machine give the same bits.

    Args:
        model: The model that the stage was cut from.
        stage: The stage; those before it have run.
        samples: What feeds the model's inputs.
        store: Holds the activations.
        threads: Threads inside one operator.
        replacements: Tensors in place of the model's, by initializer name: weights solved before.
        visit: Called with the activation of the stage's group for each sample, in order, once the
            stage is finished and its weights are out of memory. The array is read-only, may be
            mapped from disk, and must not be kept.

    Raises:
        DataError: There are no samples, or one cannot be read.
        EngineError: ONNX Runtime refuses the stage or fails in it.
        OutputError: The disk is full, or the store lost an activation.
    """
    if not len(samples):
        raise DataError("there are no samples to run the model with")
    inputs = {str(value.name) for value in model.graph.inputs}
    if not all(store.holds(name, len(samples)) for name in stage.gives):
        types = {name: store.type(name) for name in stage.reads if name not in inputs}
        small = stage_model(model, stage, types, replacements)
        _compute(small, samples, store, inputs=inputs, threads=threads)
    if visit is not None and stage.group is not None:
        x = str(stage.group.x.name)
        for index in range(len(samples)):
            visit(index, _feeds([x], inputs, samples, store, index)[x])
    for name in stage.drops:
        store.drop(name)


@dataclass(frozen=True)
class StagedRun:
    """A model that ran on all samples; its outputs are on disk and read when asked for.

    Attributes:
        samples: What the model ran on.
        store: Holds the outputs.
        names: Of the outputs, in the model's order.
        constants: Outputs that are initializers.
    """

    samples: Samples
    store: ActivationStore
    names: Sequence[str]
    constants: Mapping[str, Array]

    def outputs(self, index: int) -> dict[str, Array]:
        """Return the outputs for one sample by name, in the model's order; mapped, read-only.

        Raises:
            OutputError: The store lost one.
        """
        return {name: self._output(name, index) for name in self.names}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs for the sample with these feeds, as ``Session.run`` does.

        Raises:
            DataError: The model did not run on such a sample.
        """
        index = self._indices.get(feeds_digest(feeds))
        if index is None:
            raise DataError("the model was not run on this sample; run it on all of them first")
        return self.outputs(index)

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {feeds_digest(self.samples[i]): i for i in range(len(self.samples))}

    def _output(self, name: str, index: int) -> Array:
        if name in self.constants:
            return self.constants[name]
        if name in self.store.names:
            return self.store.get(name, index)
        return self.samples[index][name]  # an input, handed through


def run_staged(
    model: ir.Model,
    samples: Samples,
    folder: Path,
    *,
    threads: int,
    budget_bytes: int = STAGE_BYTES,
    progress: Progress | None = None,
) -> StagedRun:
    """Run a model on all samples, stage by stage, however large it is.

    Args:
        model: Its main graph in topological order; weights beyond the budget in external data.
        samples: What feeds its inputs.
        folder: For activations and outputs, of this run alone. What an interrupted run of the same
            model and samples left there is used.
        threads: Threads inside one operator.
        budget_bytes: Of weights, as stored, that a stage may load.
        progress: Hears of each stage.

    Raises:
        DataError: There are no samples, or one cannot be read.
        EngineError: ONNX Runtime refuses a stage or fails in it.
        OutputError: The disk is full, or the folder cannot be written.
    """
    progress = progress or Silent()
    store = ActivationStore(folder)
    stages = cut_by_weight(model, budget_bytes)
    for index in range(finished_stages(stages, store, len(samples)), len(stages)):
        progress.step("run", index, len(stages))
        run_stage(model, stages[index], samples, store, threads=threads)
    progress.step("run", len(stages), len(stages))
    outputs = model.graph.outputs
    tensors = {str(v.name): v.const_value for v in outputs if v.is_initializer()}
    return StagedRun(
        samples=samples,
        store=store,
        names=[str(value.name) for value in outputs],
        constants={name: t.numpy() for name, t in tensors.items() if t is not None},
    )


def finished_stages(stages: Sequence[Stage], store: ActivationStore, samples: int) -> int:
    """Return how many stages need not run again: the store holds all that the next one needs.

    Args:
        stages: Of the model, in order.
        store: That the stages ran with.
        samples: Their number.
    """
    live: set[str] = set()
    finished = 0
    for count, stage in enumerate(stages, 1):
        live = (live | set(stage.gives)) - set(stage.drops)
        if live and all(store.holds(name, samples) for name in live):
            finished = count
    return finished


def _compute(
    small: ir.Model,
    samples: Samples,
    store: ActivationStore,
    *,
    inputs: set[str],
    threads: int,
) -> None:
    """Run a stage's model on all samples and keep what it gives; free it before returning."""
    arrays = _handed_over(small)
    session = Session(small, threads=threads, lean=True, arrays=arrays)
    names = [port.name for port in session.inputs]
    try:
        for index in range(len(samples)):
            results = session.run(_feeds(names, inputs, samples, store, index))
            for name, array in results.items():
                store.put(name, index, array)
        store.keep()
    except BaseException:
        store.discard()
        raise


def _feeds(
    names: Sequence[str], inputs: set[str], samples: Samples, store: ActivationStore, index: int
) -> dict[str, Array]:
    fed = samples[index] if inputs.intersection(names) else {}
    return {name: fed[name] if name in inputs else store.get(name, index) for name in names}


def _handed_over(small: ir.Model) -> dict[str, Array]:
    """Take the weights that ONNX Runtime cannot map by itself out of the model; return them.

    These are the ones that are computed, and external ones outside the first one's folder. What
    numpy has no type for stays in the model.
    """
    values = [v for v in small.graph.initializers.values() if v.const_value is not None]
    tensors = {str(v.name): v.const_value for v in values if v.const_value is not None}
    external = [t for t in tensors.values() if isinstance(t, ir.ExternalTensor)]
    folder = external[0].base_dir if external else ""
    arrays = {}
    for name, tensor in tensors.items():
        mapped = isinstance(tensor, ir.ExternalTensor) and tensor.base_dir == folder
        if mapped or tensor.nbytes <= _EMBEDDED_BYTES or tensor.dtype.numpy().isbuiltin != 1:
            continue
        arrays[name] = np.ascontiguousarray(tensor.numpy())
        small.graph.initializers[name].const_value = ir.ExternalTensor(
            "handed over",
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=folder,
        )
    return arrays
