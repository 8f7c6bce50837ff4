"""What a recipe and a target together decide: the devices, and what the float remainder is."""

from dataclasses import replace
from typing import get_args

from qcompile.errors import RecipeError
from qcompile.numerics.adaround import torch_library
from qcompile.numerics.groups import SCALE_TYPES
from qcompile.plan import CALIBRATED
from qcompile.progress import Progress
from qcompile.recipe import LEARNED, HighPrecision, Recipe, Rounding
from qcompile.remedies import Remedy
from qcompile.runtime.host import host_cpu
from qcompile.targets.target import ANY, Target, Types

FLOAT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What the remainder computes in to its type, which scales beside it have, too."""


def device_of(recipe: Recipe, target: Target, progress: Progress) -> str:
    """Return the device to build for, several with commas between; check that it has the scheme.

    Raises:
        RecipeError: The option is not the target's, or there is no such device or scheme.
    """
    asked = {
        "--cpu": recipe.cpu or "",
        "--sm": ",".join(map(str, sorted(set(recipe.sm)))),
        "--ep": recipe.ep or "",
    }
    for option, value in asked.items():
        if value and option != target.device_option:
            raise RecipeError(
                f"{option} {value}: --target {target.name} is chosen by {target.device_option}"
            )
    device = asked[target.device_option] or _default(recipe, target, progress)
    target.check(recipe.scheme, device)
    return device


def _default(recipe: Recipe, target: Target, progress: Progress) -> str:
    if target.device_option == "--cpu":
        return host_cpu()
    if target.device_option == "--ep" or ANY in target.devices:
        return next(iter(target.devices))
    able = [name for name in target.devices if recipe.scheme in target.schemes(name)]
    if not able:
        return next(iter(target.devices))
    progress.notice(f"{target.device_option} was not given: built for {', '.join(able)}")
    return ",".join(able)


EIGHT_BITS = (*CALIBRATED, "int8-dynamic")
"""Schemes with activations of 8 bits."""

WITHOUT_RANGES = ("smoothquant", "llm-int8", "rtn")
"""What --algorithm may name where activations are rounded at run time."""


SERVES: dict[str, tuple[str, ...]] = {
    "strength": ("smoothquant",),
    "threshold": ("llm-int8",),
    "outlier_share": ("llm-int8",),
    "run_time_outliers": ("llm-int8",),
    "correction": ("bias-correction",),
    "steps": LEARNED,
    "seed": LEARNED,
}
"""Option under ``[accuracy]`` to what it is an option of."""


def check_algorithms(recipe: Recipe, progress: Progress) -> None:
    """Check that what ``--algorithm`` names is of use to the scheme, and can run here.

    Raises:
        RecipeError: A name is not, or options contradict each other.
        RuntimeMissingError: Codes are learned, and torch is not installed.
    """
    _check_names(recipe)
    accuracy = recipe.accuracy
    if accuracy.run_time_outliers and recipe.scheme != "int8-dynamic":
        raise RecipeError("accuracy.run_time_outliers: it is for --dynamic")
    if {"threshold", "outlier_share"} <= accuracy.model_fields_set and accuracy.outlier_share:
        raise RecipeError("accuracy.outlier_share stands in place of accuracy.threshold: give one")
    for option in sorted(accuracy.model_fields_set & SERVES.keys()):
        if not _used(recipe).intersection(SERVES[option]):
            names = " or ".join(SERVES[option])
            progress.notice(f"accuracy.{option} does nothing: it is for --algorithm {names}")
    if accuracy.rounding in LEARNED:  # weights in few bits look for torch themselves
        torch_library()


def _used(recipe: Recipe) -> set[str]:
    """Return the names of what a build does or tries."""
    if recipe.scheme == "weight-only":
        return {recipe.weights.algorithm}
    if recipe.accuracy.algorithms == "auto":
        dynamic = recipe.scheme == "int8-dynamic"
        tried = {name for name in get_args(Remedy) if not dynamic or name in WITHOUT_RANGES}
        return tried if recipe.scheme in EIGHT_BITS else set()
    return set(recipe.accuracy.algorithms)


def _check_names(recipe: Recipe) -> None:
    named = () if recipe.accuracy.algorithms == "auto" else recipe.accuracy.algorithms
    for name in named:
        if recipe.scheme not in EIGHT_BITS:
            raise RecipeError(f"--algorithm {name}: it is for --int8, --fp8 and --dynamic")
        if recipe.scheme == "int8-dynamic" and name not in WITHOUT_RANGES:
            able = ", ".join(WITHOUT_RANGES)
            raise RecipeError(f"--algorithm {name}: --dynamic takes {able}")
        if recipe.scheme == "fp8" and name in get_args(Rounding) and name != "rtn":
            raise RecipeError(
                f"--algorithm {name}: codes of --fp8 are rounded to the nearest (rtn)"
            )


def remainder_of(recipe: Recipe, target: Target, device: str) -> HighPrecision:
    """Return what computes in float becomes.

    Raises:
        RecipeError: The device does not compute in that type, or the scheme has no such remainder.
    """
    remainder = _remainder(recipe, target, device)
    if remainder == "fp32" and recipe.half_ports:
        raise RecipeError("--half-ports: what computes in float is fp32 here, so there is no half")
    return remainder


def _remainder(recipe: Recipe, target: Target, device: str) -> HighPrecision:
    if recipe.scheme in {"fp16", "bf16"}:
        wanted: HighPrecision = recipe.scheme
        if recipe.high_precision not in (None, wanted):
            raise RecipeError(
                f"--high-precision {recipe.high_precision}: --{wanted} has decided that"
            )
        return wanted
    if recipe.high_precision is None:
        return target.high_precision if recipe.scheme != "int8-dynamic" else "fp32"
    if recipe.high_precision != "fp32":
        if recipe.scheme == "int8-dynamic":
            raise RecipeError("--high-precision: --dynamic leaves the rest in fp32")
        if recipe.scheme == "weight-only" and FLOAT_TYPES[recipe.high_precision] not in SCALE_TYPES:
            raise RecipeError(
                f"--high-precision {recipe.high_precision}: scales of weights in few bits are fp32 "
                "or fp16: take one of these"
            )
        try:
            target.check(recipe.high_precision, device)
        except RecipeError as error:
            raise RecipeError(f"--high-precision {recipe.high_precision}: {error}") from error
    return recipe.high_precision


def types_of(recipe: Recipe, target: Target, device: str, remainder: HighPrecision) -> Types | None:
    """Return the code types of a calibrated scheme; scales take the type of the remainder.

    Those of asymmetric targets stay float32: a bias there is int32 codes, and its scale, a product
    of two, leaves the numbers of a half.
    """
    if recipe.scheme not in (*CALIBRATED, "int8-dynamic"):
        return None
    types = target.types(recipe.scheme, device)
    return replace(types, scale=FLOAT_TYPES[remainder]) if types.symmetric else types  # type: ignore[arg-type]
