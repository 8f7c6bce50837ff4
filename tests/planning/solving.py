"""Jobs on small graphs: solve their weights, write them in, and say what must come out."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.graph.digest import model_digest
from qcompile.graph.protocol import Fact
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.passes.insert_block_dequantize import InsertBlockDequantize
from qcompile.passes.insert_matmul_nbits import InsertMatmulNbits
from qcompile.plan import Plan
from qcompile.planning.sequence import Job
from qcompile.planning.weights import select_weights
from qcompile.planning.wishes import Wishes
from qcompile.progress import Progress, Silent
from qcompile.recipe import Weights
from qcompile.remedies import Learned
from qcompile.samples import Array, Feeds, InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import Target

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="learned rounding needs torch"
)
ADAROUND = pytest.param("adaround", marks=needs_torch)
BRIEF = Learned(steps=100, seed=0)

HOLDS = frozenset({Fact.WORKING_OPSET, Fact.NAMED, Fact.TYPED})


def mixed(seed: int, *shape: int) -> Array:
    """Return inputs whose columns are correlated and of different power, float32."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    columns = shape[-1]
    mix = fixed.standard_normal((columns // 4, columns))
    loud = np.exp(0.7 * fixed.standard_normal(columns))
    common = rng.standard_normal((*shape[:-1], columns // 4))
    return ((common @ mix + rng.standard_normal(shape)) * loud).astype(np.float32)


def samples_of(*shape: int, count: int = 12) -> InMemory:
    """Return samples of an input x."""
    return InMemory([{"x": mixed(index, *shape)} for index in range(count)])


def job_of(
    model: ir.Model,
    folder: Path,
    target: Target = ORT_CPU,
    *,
    edited: Plan | None = None,
    progress: Progress | None = None,
    **options: object,
) -> Job:
    """Return a job with accuracy level 0 where the target has levels, and few steps of learning."""
    if target is ORT_CPU and options.get("bits", 4) in (3, 4):
        options = {"accuracy_level": 0, **options}
    weights = Weights.model_validate(options)
    selection = select_weights(model, target, weights, Wishes(), edited)
    return Job(model, selection, target, folder, 1, progress or Silent(), BRIEF)


def plan_of(job: Job) -> Plan:
    """Return the plan of a solved job."""
    return Plan(
        model=model_digest(job.model),
        target=job.target.name,
        device="vnni",
        scheme="weight-only",
        tensors={},
        weights=job.plans(),
        nodes=job.selection.nodes,
    )


def written(job: Job) -> ir.Model:
    """Return the model with the solved weights written into it."""
    plan, model = plan_of(job), job.model.clone()
    scales = FoldInputScale(plan=plan, solved=job.store.load)
    passes = [
        scales,
        InsertMatmulNbits(plan=plan, solved=scales.folded),
        InsertBlockDequantize(plan=plan, solved=scales.folded),
    ]
    run_passes(model, passes, holds=HOLDS)
    verify(model)
    return model


def with_values(job: Job, only: Sequence[str] | None = None) -> ir.Model:
    """Return the float model that computes with the values of solved weights, or of some."""
    model = job.model.clone()
    for layer in job.selection.layers:
        if only is None or layer.name in only:
            array = layer.shaped(job.store.load(layer.name).values())
            value = model.graph.initializers[layer.name]
            value.const_value = ir.tensor(array, name=layer.name)
    return model


def relative(found: Array, exact: Array) -> float:
    """Return the relative L2 distance."""
    found, exact = found.astype(np.float64), exact.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def outputs_differ(a: Feeds, b: Feeds) -> float:
    """Return the largest relative L2 distance of two models' outputs."""
    return max(relative(a[name], b[name]) for name in b)
