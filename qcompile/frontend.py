"""From a file to the graph that a target plans on; shared by all commands that look at a model."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.bundle import FileDigest, file_digest
from qcompile.calibrate.cache import default_cache
from qcompile.errors import EngineError, ModelError, PassError
from qcompile.graph.digest import model_digest
from qcompile.graph.protocol import Fact, GraphPass, check_order
from qcompile.graph.runner import PassRun, run_passes
from qcompile.graph.walk import all_nodes, weight_tensors
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.numerics.regrid import Given
from qcompile.passes import CANONICAL, WIDENING, dequantizing, lowering
from qcompile.passes.expand_qlinear import holds_codes
from qcompile.passes.widen_halves import WidenHalves, holds_halves
from qcompile.plan import CALIBRATED
from qcompile.progress import Progress
from qcompile.recipe import Recipe, Scheme
from qcompile.runtime.ort import Session
from qcompile.runtime.staged import STAGE_BYTES, run_staged
from qcompile.samples import Array, Feeds, Port, Samples, Subset
from qcompile.source.files import model_files
from qcompile.source.onnx_file import load_model
from qcompile.source.ports import with_head_sizes
from qcompile.source.support import describe_unknown, unknown_operators

LARGE_SHARE = 0.25
"""Of the machine's memory: a model whose weights, widened to float32, take more is never loaded as
a whole where the scheme can do without."""

Run = Callable[[Feeds], dict[str, Array]]

LIMIT = 1e-5
"""Relative L2 by which the clean-up may move an output."""

TIPPED = 0.01
"""Share of the integers of an output, decided from floats, that float rounding may change."""


@dataclass(frozen=True)
class Loaded:
    """A source model and its lowered graph.

    Attributes:
        path: The source file.
        files: Size and hash of the file and its external data, by path below the model's folder.
        opset: Of the default domain, as found.
        nodes: In the source, subgraphs included.
        model: The graph after clean-up and lowering.
        holds: What holds of it.
        runs: What the passes did.
        inputs: Of the source, as ONNX Runtime or, for a large model, the file says.
        outputs: The same.
        session: The source model, loaded as it is; None for a large model, which is only ever run
            a stage at a time. One that is quantized already is simulated: what was trained or
            calibrated is the graph as it is written.
        floating: The source in floats: its file, or the graph that its codes stand for.
        given: The grids of a source that is quantized already.
        known: The digest of the graph before it took remedies; empty where it has none.
    """

    path: Path
    files: dict[str, FileDigest]
    opset: int
    nodes: int
    model: ir.Model
    holds: frozenset[Fact]
    runs: list[PassRun]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    session: Session | None
    floating: Path | ir.Model
    given: Given = field(default_factory=Given)
    known: str = ""

    @cached_property
    def digest(self) -> str:
        """The hash of what the lowered graph computes, before any remedy."""
        return self.known or model_digest(self.model)

    def with_graph(self, model: ir.Model) -> "Loaded":
        """Return the same source with a graph that took remedies."""
        return replace(self, model=model, known=self.digest)


def load(
    path: Path,
    target: str,
    scheme: Scheme,
    *,
    threads: int,
    dump_dir: Path | None,
    progress: Progress,
) -> Loaded:
    """Load a model, try it in ONNX Runtime, clean it up and lower it for a target.

    Raises:
        ModelError: The file is bad, or uses operators that nothing here can run.
        PassError: A pass failed.
    """
    model = load_model(path, progress)
    unknown = unknown_operators(model)
    large = scheme == "weight-only" and is_large(model)
    quantized = holds_codes(model)
    session = None if large else _session(path, threads, unknown, optimize=not quantized)
    opset = model.opset_imports.get("", 0)
    _, *external = model_files(path)
    files = {path.name: file_digest(path)}
    folder = path.resolve().parent
    files |= {file.relative_to(folder).as_posix(): file_digest(file) for file in external}
    nodes = sum(1 for _ in all_nodes(model))
    widened = scheme in (*CALIBRATED, "int8-dynamic") and holds_halves(model)
    runs = _widen(model, progress) if widened else []
    given = Given()
    runs += floats_of(model, given, progress) if quantized else []
    if given.activations and scheme not in CALIBRATED:
        progress.notice(
            f"the model is quantized already: {scheme} starts from the values of its codes, and "
            f"its {len(given.activations)} roundings of activations are left out"
        )
    floating = model.clone() if quantized or widened else path
    _tell_unknown(model, progress)
    passes: list[GraphPass] = [*CANONICAL, *lowering(target, scheme)]
    runs += run_passes(model, passes, dump_dir=dump_dir)
    return Loaded(
        path=path,
        files=files,
        opset=opset,
        nodes=nodes,
        model=model,
        holds=check_order(passes),
        runs=runs,
        inputs=with_head_sizes(session.inputs if session else _ports(model.graph.inputs), model),
        outputs=session.outputs if session else _ports(model.graph.outputs),
        session=session,
        floating=floating,
        given=given,
    )


def floats_of(model: ir.Model, given: Given, progress: Progress) -> list[PassRun]:
    """Turn a model that is quantized already to floats, in place; tell what stays as it is.

    Args:
        model: As loaded.
        given: Filled with its grids.
        progress: Hears of what stays, with the reason.
    """
    runs = run_passes(model, dequantizing(given))
    for run in runs:
        for reason, count in run.refusals.items():
            progress.notice(f"quantized already, left as it is ({count}): {reason}")
    return runs


def _widen(model: ir.Model, progress: Progress) -> list[PassRun]:
    """Turn halves to float32, in place: layers on codes are planned in float32 graphs."""
    runs = run_passes(model, list(WIDENING))
    (last,) = (run for run in runs if run.name == WidenHalves.name)
    for reason in last.refusals:
        progress.notice(f"half precision is left as it is, without int8 layers: {reason}")
    if last.modified:
        progress.notice(
            "the model computes in half precision: it was widened to float32, around the same "
            "codes and weights; inputs and outputs keep their types"
        )
    return runs


def _tell_unknown(model: ir.Model, progress: Progress) -> None:
    unknown = unknown_operators(model)
    if unknown:
        names = ", ".join(sorted({f"{domain}.{op}" for _, domain, op in unknown}))
        progress.notice(f"operators outside the ONNX standard stay in float: {names}")


def is_large(model: ir.Model) -> bool:
    """Say whether a model takes too much of the machine's memory to be loaded as a whole."""
    widened = sum(max(t.nbytes, 4 * t.size) for t in weight_tensors(model))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return widened > LARGE_SHARE * memory


def _session(
    path: Path, threads: int, unknown: list[tuple[ir.Node, str, str]], *, optimize: bool
) -> Session:
    try:
        return Session(path, threads=threads, optimize=optimize)
    except EngineError as error:
        if unknown:
            raise ModelError(f"{path}: {describe_unknown(unknown, str(error))}") from error
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {error}") from error


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(
        Port(
            str(value.name),
            value.dtype.numpy() if value.dtype else np.dtype(np.float32),
            None
            if value.shape is None
            else tuple(d if isinstance(d, int) else d.value for d in value.shape),
        )
        for value in values
    )


def jobs_of(recipe: Recipe, progress: Progress) -> int:
    """Return the worker threads: as many as asked for, but no more than there are cores."""
    cores = os.cpu_count() or 1
    if recipe.jobs is not None and recipe.jobs > cores:
        progress.notice(f"--jobs {recipe.jobs}: there are only {cores} cores, so {cores} it is")
    return min(recipe.jobs or cores, cores)


def check_equivalence(
    loaded: Loaded, samples: Samples, indices: Sequence[int], jobs: int, progress: Progress
) -> float | None:
    """Return how far clean-up and lowering moved the outputs: the largest relative L2.

    A model that magnifies float rounding moves by itself between ONNX Runtime's optimized and
    plain kernels; then that distance is the limit. Outputs that are no floats must be equal; where
    rounding tipped a few close decisions, that is noticed.

    Returns:
        None where no distance says it: some integers differ, and no float does.

    Raises:
        PassError: The distance is above ``LIMIT`` and above the model's own, or more integers
            differ than rounding explains.
    """
    with _runners(loaded, Subset(samples, indices), jobs, progress) as (plain, lowered, other):
        return _moved(plain, lowered, other, samples, indices, progress)


@contextmanager
def _runners(
    loaded: Loaded, samples: Samples, jobs: int, progress: Progress
) -> Iterator[tuple[Run, Run, Run]]:
    """Give the source, the lowered graph, and the source computed in another way.

    A large model is run a stage at a time; cut into other stages, float16 rounds it elsewhere.
    """
    if loaded.session is not None:
        plain = Session(loaded.floating, optimize=False).run
        own = loaded.session if loaded.floating == loaded.path else Session(loaded.floating)
        yield plain, Session(loaded.model, optimize=False).run, own.run
        return
    source = loaded.floating if isinstance(loaded.floating, ir.Model) else ir.load(loaded.path)
    with ExitStack() as stack:

        def staged(model: ir.Model, budget: int = STAGE_BYTES) -> Run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch())))
            made = run_staged(
                model, samples, folder, threads=jobs, budget_bytes=budget, progress=progress
            )
            return made.run

        yield staged(source), staged(loaded.model), staged(source, STAGE_BYTES // 2)


def scratch() -> Path:
    """Return the folder for what is too large for memory, for a while."""
    folder = default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _moved(
    plain: Run,
    lowered: Run,
    other: Run,
    samples: Samples,
    indices: Sequence[int],
    progress: Progress,
) -> float | None:
    """Return what ``check_equivalence`` does.

    Args:
        plain: Runs the source.
        lowered: Runs the graph after clean-up and lowering.
        other: Runs the source in another way.
        samples: What they are run on.
        indices: Of the samples.
        progress: Hears of decisions that rounding tipped.
    """
    moved: dict[str, ErrorSums] = {}
    own: dict[str, ErrorSums] = {}
    decided: dict[str, _Unequal] = {}
    for index in indices:
        feeds = samples[index]
        expected, found, usual = plain(feeds), lowered(feeds), other(feeds)
        for name, reference in expected.items():
            if reference.dtype.kind == "f":
                moved[name] = moved.get(name, ErrorSums()) + error_sums(reference, found[name])
                own[name] = own.get(name, ErrorSums()) + error_sums(reference, usual[name])
            else:
                seen = decided.get(name, _Unequal())
                decided[name] = seen.plus(reference, found[name], usual[name])
    for name, sums in moved.items():
        limit = max(LIMIT, 2 * own[name].relative_l2)
        if sums.relative_l2 > limit:
            raise PassError(
                f"clean-up moved output {name} by {sums.relative_l2:.2g} (relative L2; limit "
                f"{limit:.2g}): please report this model; nothing was built"
            )
    for name, unequal in decided.items():
        unequal.check(name, progress)
    worst = max((sums.relative_l2 for sums in moved.values()), default=0.0)
    return None if not worst and any(unequal.count for unequal in decided.values()) else worst


@dataclass(frozen=True)
class _Unequal:
    """How many elements of an output that holds no floats differ.

    Attributes:
        elements: In all samples together.
        count: That the clean-up changed.
        own: That the source model itself changes between optimized and plain kernels.
    """

    elements: int = 0
    count: int = 0
    own: int = 0

    def plus(self, reference: Array, found: Array, usual: Array) -> "_Unequal":
        """Count the elements of another sample."""
        size = reference.size
        return _Unequal(
            self.elements + size,
            self.count + _different(reference, found),
            self.own + _different(reference, usual),
        )

    def check(self, name: str, progress: Progress) -> None:
        """Refuse more changes than rounding explains; notice others."""
        if self.count > max(1, TIPPED * self.elements, 2 * self.own):
            raise PassError(
                f"clean-up changed {self.count} of {self.elements} elements of output {name}: "
                "please report this model; nothing was built"
            )
        if self.count:
            progress.notice(
                f"clean-up changed {self.count} of {self.elements} elements of output {name}: "
                "decisions so close that float rounding tips them"
            )


def _different(a: Array, b: Array) -> int:
    return int((a != b).sum()) if a.shape == b.shape else max(a.size, 1)
