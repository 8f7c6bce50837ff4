"""From the rewritten ONNX file to what runs on the device, for each kind of target."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from qcompile import cuda, mobile, tensorrt_engine
from qcompile.data import Split
from qcompile.errors import RecipeError
from qcompile.frontend import Loaded
from qcompile.lint.rule import FLAVOURS
from qcompile.profiles import profiles_of
from qcompile.progress import StageLog
from qcompile.recipe import Gates, Recipe, TensorRT
from qcompile.report.schema import Delivery
from qcompile.runtime.host import host_cpu
from qcompile.runtime.ort import as_on_arm
from qcompile.runtime.provider import Engine
from qcompile.samples import Feeds, Samples
from qcompile.targets.profiles import Profile, fits, shown
from qcompile.targets.target import Target
from qcompile.tensorrt_engine import EngineJob
from qcompile.written import Delivered, Written

_ANY_SHAPE = ("ort-cpu", "onnx")
"""Targets whose engines are built for no shapes."""

FOREIGN = "not timed: the engine is for ARM, and this machine is not"


def check_request(target: Target, recipe: Recipe, log: StageLog) -> None:
    """Refuse what can be refused before any file is read.

    Raises:
        RecipeError: An option is malformed, or not of this target.
        RuntimeMissingError: The target's tools are not installed.
    """
    if target.name in FLAVOURS:
        tensorrt_engine.check_options(target.name, recipe)
    elif target.name in _ANY_SHAPE and recipe.tensorrt != TensorRT():
        log.notice(f"shapes and other options of TensorRT: not used for --target {target.name}")


def shapes_for(
    target: Target, recipe: Recipe, device: str, loaded: Loaded, data: Split, log: StageLog
) -> dict[str, Profile]:
    """Return the shapes that the engine is built for, by input; refuse a model it cannot take.

    Raises:
        RecipeError: The shapes contradict the model, are not known, or fit no sample that a gate
            could be judged on.
        EngineError: The target has not what the float model needs.
    """
    if target.name == "ort-cuda" and device == "tensorrt":
        found = profiles_of(recipe.tensorrt.shapes, loaded, data, log)
    elif target.name in FLAVOURS:
        found = tensorrt_engine.shapes_for(target.name, recipe, device, loaded, data, log)
    else:
        return {}
    if target.name != tensorrt_engine.RTX:  # simulated alone, and so are its gates
        _check_judges(recipe.gates, data, found)
    return found


def _check_judges(gates: Gates, data: Split, profiles: Mapping[str, Profile]) -> None:
    """Check that the device will have a sample to judge its gates on.

    Raises:
        RecipeError: All are outside of the engine's shapes.
    """
    asked = gates.model_dump(exclude_none=True, exclude={"allow_slower", "max_drop"})
    samples = data.evaluation
    if not asked or samples is None or any(fits(feeds, profiles) for feeds in _each(samples)):
        return
    name, profile = next((n, p) for n, p in profiles.items() if not fits(samples[0], {n: p}))
    found, least, most = (shown(s) for s in (samples[0][name].shape, profile.min, profile.max))
    raise RecipeError(
        f"--{next(iter(asked)).replace('_', '-')} is judged on the device, but no sample has "
        f"shapes that the engine takes: {name} is {found}, --shapes goes from {least} to {most}; "
        "give samples of such shapes (--eval), or other --shapes"
    )


def _each(samples: Samples) -> Iterator[Feeds]:
    return (samples[index] for index in range(len(samples)))


def deliver(target: Target, written: Written) -> Delivered:
    """Make what runs on the device, in the folder of the ONNX file.

    Args:
        target: What it is for.
        written: What it is made of.

    Raises:
        QcompileError: The target's tools refuse the model.
    """
    if target.name == "ort-mobile":
        facts = mobile.deliver(written)
        return _for_arm(written.model.with_name(facts.path), facts)
    if target.name == "ort-cuda":
        return cuda.deliver(written)
    if target.name == "tensorrt-rtx":
        return EngineJob(written).rtx()
    if target.name == "tensorrt":
        return EngineJob(written).tensorrt()
    if target.name == "ort-cpu" and written.device == "arm":
        return _for_arm(written.model)
    return Delivered(Engine(written.model))


def _for_arm(engine: Path, facts: Delivery | None = None) -> Delivered:
    """Let this machine run it as an ARM CPU would, and time it only if it is one."""
    untimed = "" if host_cpu() == "arm" else FOREIGN
    return Delivered(Engine(engine, as_on_arm(engine)), facts, untimed)
