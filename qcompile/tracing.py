"""From a torch model to an ONNX file that was compared with it; ``build`` then reads that file.

Sources: an ``nn.Module``, ``module:callable`` or ``file.py:callable`` that returns one (alone or
with example inputs), an exported program (``.pt2``), and a Hugging Face folder (``hf:DIR``).
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.bundle import file_digest
from qcompile.emit.single_file import check_output
from qcompile.errors import ModelError, OutputError
from qcompile.progress import Progress, StageLog
from qcompile.recipe import Recipe
from qcompile.report.results import ExportReport
from qcompile.report.schema_source import PortFacts, TracedFacts
from qcompile.source.torch_check import check_agreement
from qcompile.source.torch_export import TorchModel, trace, write_model
from qcompile.source.torch_library import torch_library
from qcompile.torch_models import HUGGING_FACE, Options, file_name, is_torch, open_model

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class TracedFile:
    """An ONNX file made of a torch model.

    Attributes:
        path: The file; a ``tokenizer.json`` of the model lies beside it.
        facts: For the report.
        tokenizer: That file, if there is one.
        model: The torch model, for a build that trains it.
    """

    path: Path
    facts: TracedFacts
    tokenizer: Path | None
    model: TorchModel | None = None


def export(  # noqa: PLR0913 (the command's options)
    source: Any,  # noqa: ANN401 (an nn.Module, where torch is installed)
    output: Path | str,
    *,
    example_inputs: Any = None,  # noqa: ANN401
    dynamic_axes: Sequence[str] = (),
    shapes: str | None = None,
    calib: str | Path | None = None,
    recipe: Recipe | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Turn a torch model into an ONNX file, and compare the two.

    Args:
        source: An ``nn.Module``, ``module:callable``, ``file.py:callable``, a ``.pt2`` file or
            ``hf:DIR``.
        output: The ``.onnx`` file; weights over 512 MiB go to ``<output>.data``.
        example_inputs: What to trace on: a tensor, a tuple of arguments or a dict by parameter.
        dynamic_axes: ``batch``, or ``input:0=batch,2=height``.
        shapes: Least, best and largest shapes of inputs, as in ``--shapes``.
        calib: Samples whose first one is traced on, where there are no example inputs.
        recipe: Its ``preprocess``, ``text`` and ``jobs`` count.
        force: Replace a file that is there.
        progress: Hears of steps and notices.

    Returns:
        The file and how far it is from the module.

    Raises:
        QcompileError: Bad input, a module that cannot be traced, or an export that is wrong;
            nothing is written.
    """
    _check_source(source)
    path, log = Path(output), StageLog(progress)
    check_output(path, force=force)
    try:
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made ({error.strerror})") from error
    options = Options(example_inputs, dynamic_axes, shapes, calib)
    with traced_file(source, options, recipe or Recipe(), log, beside=path) as made:
        files = _placed(made, path, force=force)
        return ExportReport(
            output=str(path),
            sha256=file_digest(path).sha256,
            bytes=sum(file.stat().st_size for file in files),
            files=tuple(file.name for file in files),
            traced=made.facts,
            notices=tuple(log.notices),
        )


def _check_source(source: object) -> None:
    """Refuse a file or folder that is no torch model, with or without torch.

    Raises:
        ModelError: It is one; says what it may have been meant for.
    """
    if is_torch(source):
        return
    path = Path(str(source))
    if path.suffix.lower() == ".onnx":
        reason = f"is ONNX already; qcompile build {source} makes an engine of it"
    elif path.is_dir():
        reason = f"is a folder; if it is a Hugging Face model, name it {HUGGING_FACE}{source}"
    else:
        reason = "is no torch model; give module:callable, file.py:callable, a .pt2 file or hf:DIR"
    raise ModelError(f"{source}: {reason}")


@contextmanager
def traced_file(
    source: Any,  # noqa: ANN401
    options: Options,
    recipe: Recipe,
    log: StageLog,
    beside: Path | None = None,
) -> Iterator[TracedFile]:
    """Trace a model into a temporary folder, which goes when the block ends.

    Args:
        source: As for ``export``.
        options: How.
        recipe: Its ``preprocess``, ``text`` and ``jobs`` count.
        log: Hears of steps and notices.
        beside: Where the file will be put, for a folder on the same disk; None takes the system's.

    Raises:
        QcompileError: As for ``export``.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(
        prefix=".qcompile-export-", dir=beside.resolve().parent if beside else None
    ) as folder:
        path = Path(folder) / (beside.name if beside else file_name(source))
        log.step("trace", 0, 2)
        with log.stage("trace"), _modes_kept(source):
            model = open_model(source, options, recipe, log)
            traced = trace(model, log)
            log.step("trace", 1, 2)
            write_model(traced.model, path)
            found = check_agreement(model, traced, path, recipe.jobs or os.cpu_count() or 1, log)
            log.step("trace", 2, 2)
        facts = TracedFacts(
            source=model.name,
            torch=str(torch_library().__version__),
            inputs=_ports(traced.model.graph.inputs),
            outputs=_ports(traced.model.graph.outputs),
            relative_l2=found.relative_l2,
            limit=found.limit,
            compared=found.shapes,
            seconds=round(time.perf_counter() - started, 3),
        )
        tokenizer = model.tokenizer
        kept = model if recipe.qat else None
        del model, traced  # the weights: a build needs the memory
        if tokenizer is not None:
            shutil.copyfile(tokenizer, path.with_name(TOKENIZER))
            tokenizer = path.with_name(TOKENIZER)
        yield TracedFile(path, facts, tokenizer, kept)


@contextmanager
def _modes_kept(source: Any) -> Iterator[None]:  # noqa: ANN401
    """Give a caller's module back as it was: tracing puts it into eval mode."""
    parts = [] if isinstance(source, str | Path) or not hasattr(source, "modules") else [source]
    modes = [(part, part.training) for whole in parts for part in whole.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _ports(values: Any) -> tuple[PortFacts, ...]:  # noqa: ANN401 (onnx_ir's list of values)
    return tuple(
        PortFacts(
            name=str(value.name),
            dtype=value.dtype.name.lower() if value.dtype else "?",
            shape=None
            if value.shape is None
            else tuple(d if isinstance(d, int) else d.value or "?" for d in value.shape),
        )
        for value in values
    )


def _placed(made: TracedFile, path: Path, *, force: bool) -> list[Path]:
    """Move the files of the temporary folder beside ``path``, the model last."""
    files = sorted(made.path.parent.iterdir(), key=lambda file: file.name == made.path.name)
    for file in files:
        there = path.with_name(file.name)
        if there.exists() and not force and file_digest(there) != file_digest(file):
            raise OutputError(f"{there} exists and is another; --force replaces it")
    try:
        return [file.rename(path.with_name(file.name)) for file in files]
    except OSError as error:
        raise OutputError(f"{path}: cannot be put in place ({error.strerror})") from error
