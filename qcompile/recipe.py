"""The recipe: what the user asks for. Flags and TOML give the same frozen object."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qcompile.errors import RecipeError

Method = Literal["auto", "minmax", "percentile", "mse", "entropy"]
Scheme = Literal["int8", "int8-dynamic"]
Cpu = Literal["avx2", "avx512", "vnni", "arm"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Preprocess(_Frozen):
    """How a picture becomes an input tensor, in this order.

    resize (shorter side to one number, or exact height and width), centre crop (height, width),
    channel order, ``pixel * scale``, ``(pixel - mean) / std``, layout.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"


class Calibration(_Frozen):
    """How ranges are found.

    Attributes:
        method: auto tries all on real activations and keeps the best for each tensor.
        samples: Use at most so many samples (chosen by content, not by order).
        percentile: Two-sided, in percent of the elements, for method percentile.
        holdback: Share of the samples kept for the comparison when there is no ``--eval``.
    """

    method: Method = "auto"
    samples: int | None = Field(default=None, ge=1)
    percentile: float = Field(default=99.99, gt=50, le=100)
    holdback: float = Field(default=0.2, ge=0, lt=1)


class Gates(_Frozen):
    """What the engine must reach; a miss ends with exit code 3.

    Attributes:
        min_sqnr: Signal to quantization noise of the worst output, in dB.
        min_agreement: Top-1 agreement with the FP model, 0 to 1.
        max_drop: Largest loss of accuracy (or of the user's metric) against FP, in its own unit.
        min_speedup: FP time over engine time; 1.0 unless ``allow_slower``.
    """

    min_sqnr: float | None = None
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_drop: float | None = Field(default=None, ge=0)
    min_speedup: float | None = Field(default=None, gt=0)
    allow_slower: bool = False


class Recipe(_Frozen):
    """All that a build is asked to do, besides the model and the data.

    Attributes:
        scheme: int8 (static activations) or int8-dynamic (activations quantized at run time).
        target: Name of a target (``qcompile targets``).
        cpu: Instruction set to build for; None takes the host's.
        exclude: Patterns of node names to leave in float (``*`` and ``?``).
        exclude_ops: Operator types to leave in float.
        float_first: Leave the first weighted node(s) behind each input in float.
        float_last: Leave the last weighted node(s) before each output in float.
        keep_accuracy: Measure each layer's effect and leave in float what costs too much.
        optimized: Also write ONNX Runtime's offline-optimized model for this host.
        jobs: Worker threads; None takes all cores.
    """

    scheme: Scheme = "int8"
    target: str = "ort-cpu"
    cpu: Cpu | None = None
    calibration: Calibration = Calibration()
    preprocess: Preprocess | None = None
    exclude: tuple[str, ...] = ()
    exclude_ops: tuple[str, ...] = ()
    float_first: bool = False
    float_last: bool = False
    keep_accuracy: bool = True
    optimized: bool = False
    gates: Gates = Gates()
    metric: str | None = None
    jobs: int | None = Field(default=None, ge=1)


def recipe_from(options: dict[str, Any], file: Path | None = None) -> Recipe:
    """Make a recipe from a TOML file and options that override it.

    Args:
        options: Nested like the recipe; only what the user said.
        file: A TOML file whose keys are the recipe's.

    Raises:
        RecipeError: The file cannot be read, a key is unknown or a value is out of range.
    """
    table: dict[str, Any] = {}
    if file is not None:
        try:
            table = tomllib.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"{file}: {error}") from error
    try:
        return Recipe.model_validate(_overlaid(table, options))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        where = f"{file}: " if file else ""
        raise RecipeError(f"{where}{key}: {first['msg']}") from error


def _overlaid(table: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in options.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _overlaid(below, value)
        else:
            merged[key] = value
    return merged
