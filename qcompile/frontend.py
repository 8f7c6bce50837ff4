"""From a file to the graph that a target plans on; shared by all commands that look at a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompile.bundle import FileDigest, file_digest
from qcompile.errors import EngineError, ModelError, PassError
from qcompile.graph.protocol import Fact, GraphPass, check_order
from qcompile.graph.runner import PassRun, run_passes
from qcompile.graph.walk import all_nodes
from qcompile.numerics.metrics import ErrorSums, error_sums
from qcompile.passes import CANONICAL, LOWERING
from qcompile.progress import Progress
from qcompile.runtime.ort import Session
from qcompile.samples import Samples
from qcompile.source.files import model_files
from qcompile.source.onnx_file import load_model
from qcompile.source.support import describe_unknown, unknown_operators

LIMIT = 1e-5
"""Relative L2 by which the clean-up may move an output."""


@dataclass(frozen=True)
class Loaded:
    """A source model and its lowered graph.

    Attributes:
        path: The source file.
        files: Size and hash of the file and its external data, by name.
        opset: Of the default domain, as found.
        nodes: In the source, subgraphs included.
        model: The graph after clean-up and lowering.
        holds: What holds of it.
        runs: What the passes did.
        session: The source model, loaded as it is.
    """

    path: Path
    files: dict[str, FileDigest]
    opset: int
    nodes: int
    model: ir.Model
    holds: frozenset[Fact]
    runs: list[PassRun]
    session: Session


def load(
    path: Path, target: str, *, threads: int, dump_dir: Path | None, progress: Progress
) -> Loaded:
    """Load a model, try it in ONNX Runtime, clean it up and lower it for a target.

    Raises:
        ModelError: The file is bad, or uses operators that nothing here can run.
        PassError: A pass failed.
    """
    model = load_model(path, progress)
    unknown = unknown_operators(model)
    try:
        session = Session(path, threads=threads)
    except EngineError as error:
        if unknown:
            raise ModelError(f"{path}: {describe_unknown(unknown, str(error))}") from error
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    if unknown:
        names = ", ".join(sorted({f"{domain}.{op}" for _, domain, op in unknown}))
        progress.notice(f"operators outside the ONNX standard stay in float: {names}")
    opset = model.opset_imports.get("", 0)
    files = {file.name: file_digest(file) for file in model_files(path)}
    nodes = sum(1 for _ in all_nodes(model))
    passes: list[GraphPass] = [*CANONICAL, *LOWERING.get(target, ())]
    runs = run_passes(model, passes, dump_dir=dump_dir)
    return Loaded(path, files, opset, nodes, model, check_order(passes), runs, session)


def check_equivalence(loaded: Loaded, samples: Samples, indices: Sequence[int]) -> float:
    """Return how far clean-up and lowering moved the outputs: the largest relative L2.

    A model that magnifies float rounding moves by itself between ONNX Runtime's optimized and
    plain kernels; then that distance is the limit.

    Raises:
        PassError: The distance is above ``LIMIT`` and above the model's own.
    """
    plain = Session(loaded.path, optimize=False)
    lowered = Session(loaded.model, optimize=False)
    moved: dict[str, ErrorSums] = {}
    own: dict[str, ErrorSums] = {}
    for index in indices:
        feeds = samples[index]
        expected, found, usual = plain.run(feeds), lowered.run(feeds), loaded.session.run(feeds)
        for name, reference in expected.items():
            if reference.dtype.kind == "f":
                moved[name] = moved.get(name, ErrorSums()) + error_sums(reference, found[name])
                own[name] = own.get(name, ErrorSums()) + error_sums(reference, usual[name])
    for name, sums in moved.items():
        limit = max(LIMIT, 2 * own[name].relative_l2)
        if sums.relative_l2 > limit:
            raise PassError(
                f"clean-up moved output {name} by {sums.relative_l2:.2g} (relative L2; limit "
                f"{limit:.2g}): please report this model; nothing was built"
            )
    return max((sums.relative_l2 for sums in moved.values()), default=0.0)
