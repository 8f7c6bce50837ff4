"""Training as a step of a build: the float model, rounded, learns to answer as it did in float."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from qcompile.data import Split
from qcompile.errors import RecipeError
from qcompile.frontend import Loaded, load
from qcompile.progress import StageLog
from qcompile.recipe import Qat, Recipe
from qcompile.report.schema_source import TrainingFacts
from qcompile.source.torch_export import TorchModel, rename_axes
from qcompile.working import working_folder

FROZEN = "was exported as it computes in inference: its batch norms and dropouts cannot train"


def check_trainable(model: object, recipe: Recipe) -> None:
    """Refuse training of what cannot be trained, before anything is read.

    Raises:
        RecipeError: The source is no module, or the scheme is another.
    """
    if recipe.scheme != "int8":
        raise RecipeError(f"--qat trains for int8, not for {recipe.scheme}")
    text = str(model) if isinstance(model, str | Path) else ""
    if text.endswith((".pt2", ".onnx")):
        reason = "is a graph, no module" if text.endswith(".onnx") else FROZEN
        raise RecipeError(
            f"--qat: {text} cannot be trained, for it {reason}: name a function that makes the "
            "module, net.py:make"
        )


@contextmanager
def trained(
    loaded: Loaded, data: Split, model: TorchModel, recipe: Recipe, log: StageLog
) -> Iterator[tuple[Loaded, TrainingFacts]]:
    """Train a model on the calibration samples; give its QDQ graph, to be built like any such file.

    What it is compared with stays the float model. Checkpoints lie in the cache, and a build that
    was stopped goes on from the last one.

    Args:
        loaded: The float model, as traced.
        data: Trained on what is for calibration.
        model: The torch model.
        recipe: Its ``qat`` says how.
        log: Hears of steps and notices.

    Raises:
        QcompileError: The module cannot be trained or training diverged: checkpoints stay.
    """
    from qcompile.qat.libraries import check_libraries

    check_libraries()
    from qcompile.qat.distillation import Training
    from qcompile.qat.flow import train
    from qcompile.qat.options import Rounding

    asked = recipe.qat or Qat()
    samples = data.calibration
    assert samples is not None  # noqa: S101 - int8 without samples was refused
    started = time.perf_counter()
    with working_folder(loaded, data, recipe, None, log) as folder:
        path = folder / loaded.path.name
        with log.stage("train"):
            done = train(
                model,
                samples,
                path,
                recipe,
                training=Training(
                    asked.epochs, asked.batch, asked.rate, asked.freeze_norms, asked.seed
                ),
                rounding=Rounding(weights=asked.weight_bits, learned=asked.learned_scales),
                checkpoints=folder,
                progress=log,
            )
            _name_ports(path, loaded)
            made = load(
                path,
                recipe.target,
                recipe.scheme,
                threads=recipe.jobs or 1,
                dump_dir=None,
                progress=log,
            )
        facts = TrainingFacts(
            samples=len(samples),
            **asked.model_dump(exclude={"freeze_norms", "seed"}),
            losses=tuple(done.losses),
            resumed=done.resumed,
            seconds=round(time.perf_counter() - started, 3),
        )
        yield replace(made, session=loaded.session, files=loaded.files), facts


def _name_ports(path: Path, loaded: Loaded) -> None:
    """Give inputs, outputs and dynamic axes the names that they have in the float model."""
    model = ir.load(path)
    ports = [*loaded.inputs, *loaded.outputs]
    axes: dict[str, str] = {}
    for value, port in zip([*model.graph.inputs, *model.graph.outputs], ports, strict=True):
        value.name = port.name
        for size, name in zip(value.shape or (), port.shape or (), strict=False):
            symbol = None if isinstance(size, int) else str(size.value)
            if symbol and symbol.isidentifier() and isinstance(name, str):
                axes[symbol] = name
    rename_axes(model, axes)
    ir.save(model, path)
