"""From the rewritten ONNX file to what runs on the device, for each kind of target."""

from pathlib import Path

from qcompile import cuda, mobile, tensorrt_engine
from qcompile.data import Split
from qcompile.frontend import Loaded
from qcompile.lint.rule import FLAVOURS
from qcompile.profiles import profiles_of
from qcompile.progress import StageLog
from qcompile.recipe import Recipe, TensorRT
from qcompile.report.schema import Delivery
from qcompile.runtime.host import host_cpu
from qcompile.runtime.ort import as_on_arm
from qcompile.runtime.provider import Engine
from qcompile.targets.profiles import Profile
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
        RecipeError: The shapes contradict the model, or are not known.
        EngineError: The target has not what the float model needs.
    """
    if target.name == "ort-cuda" and device == "tensorrt":
        return profiles_of(recipe.tensorrt.shapes, loaded, data, log)
    if target.name not in FLAVOURS:
        return {}
    about = recipe, device, loaded, data, log
    return tensorrt_engine.shapes_for(target.name, *about)


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
