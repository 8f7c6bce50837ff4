"""The recipe: what the user asks for. Flags and TOML give the same frozen object."""

import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from qcompile.errors import RecipeError
from qcompile.frozen import Frozen
from qcompile.remedies import Remedy

Method = Literal["auto", "minmax", "percentile", "mse", "entropy"]
Scheme = Literal["int8", "int8-dynamic", "weight-only", "fp8", "fp16", "bf16"]
HighPrecision = Literal["fp32", "fp16", "bf16"]
Algorithm = Literal["auto", "rtn", "gptq", "awq", "awq+gptq", "adaround"]
Rounding = Literal["rtn", "gptq", "adaround", "brecq"]
LEARNED: tuple[Rounding, ...] = ("adaround", "brecq")
"""Ways to round whose codes are learned, which needs torch."""

Cpu = Literal["avx2", "avx512", "vnni", "arm"]


class Preprocess(Frozen):
    """How a picture becomes an input tensor, in this order.

    resize (shorter side to one number, or exact height and width), centre crop (height, width),
    channel order, ``pixel * scale``, ``(pixel - mean) / std``, layout. ``mean`` and ``std`` have
    one number, or one a channel. Before that a picture is turned as its EXIF orientation says.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"

    @field_validator("resize", "crop")
    @classmethod
    def _sides(cls, size: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        sides = (size,) if isinstance(size, int) else size or ()
        if any(side < 1 for side in sides):
            raise ValueError("a side must be 1 or more")
        return size

    @field_validator("mean", "std")
    @classmethod
    def _numbers(cls, numbers: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        gray = info.data.get("channels") == "gray"
        if len(numbers) != 1 and (gray or len(numbers) != 3):
            wanted = "1 number" if gray else "1 or 3 numbers"
            raise ValueError(f"must have {wanted}, not {len(numbers)}")
        if info.field_name == "std" and 0 in numbers:
            raise ValueError("must not be 0")
        return numbers


class Text(Frozen):
    """How text becomes samples: windows of tokens.

    Attributes:
        tokenizer: A file of the ``tokenizers`` library; None takes the ``tokenizer.json`` beside
            the data, else beside the model.
        length: Tokens of a window, the first one (``bos``) included; None takes what the model
            fixes, else 256.
        stride: Tokens from the start of a window to the next; None leaves no overlap and no gap.
        bos: The token that begins each window; None takes what the tokenizer puts in front of a
            text by itself, an empty string none.
        field: Key of the text in a line of ``.jsonl``.
        windows: At most so many windows of a source, from its beginning.
    """

    tokenizer: Path | None = None
    length: int | None = Field(default=None, ge=2, le=1 << 20)
    stride: int | None = Field(default=None, ge=1)
    bos: str | None = None
    field: str = "text"
    windows: int = Field(default=4096, ge=1)


class Calibration(Frozen):
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


class Weights(Frozen):
    """How the scheme weight-only stores weights, and how their codes are found.

    Attributes:
        bits: Of one code: 2, 3, 4 or 8.
        group_size: Weights along the reduction axis that share a scale: 16 to 256, a power of two;
            0 for the whole channel.
        asymmetric: Each group has a zero point of its own.
        algorithm: auto takes, for each layer, the one with the least output error on held-back
            samples; adaround learns as ``Accuracy`` says, and is never tried by auto.
        act_order: GPTQ solves columns by falling input power.
        static_groups: Groups and their scales are fixed before GPTQ moves weights. False: scales
            are found when a group's turn comes, and with act_order columns are stored in the order
            in which they were solved. None: narrow groups are solved one after another, columns
            where they were, and wide ones are fixed before.
        damping: Of GPTQ's Hessian, as a share of its mean diagonal.
        search: Scales by least squared error, not by the extremes of the group.
        operators: What is quantized: MatMul, Gemm; Conv too, where the target has a form for it.
        accuracy_level: Of the kernel: 4 computes with int8 activations, 0 with float; None takes
            4 where its error was measured to be small.
        compensate: Round weights that make up for the errors of earlier layers, where they do on
            held-back samples. None: as auto and awq+gptq do, and no other.
    """

    bits: Literal[2, 3, 4, 8] = 4
    group_size: Literal[0, 16, 32, 64, 128, 256] = 128
    asymmetric: bool = False
    algorithm: Algorithm = "auto"
    act_order: bool = True
    static_groups: bool | None = None
    damping: float = Field(default=0.01, gt=0, lt=10)
    search: bool = True
    operators: tuple[str, ...] = ("MatMul", "Gemm")
    accuracy_level: Literal[0, 4] | None = None
    compensate: bool | None = None

    @property
    def compensates(self) -> bool:
        """Whether weights make up for the errors of earlier layers."""
        if self.compensate is None:
            return self.algorithm in ("auto", "awq+gptq")
        return self.compensate

    @field_validator("algorithm", mode="before")
    @classmethod
    def _layer_by_layer(cls, name: object) -> object:
        if name == "brecq":
            raise ValueError(
                "brecq learns whole blocks, for --int8 only; weights in few bits are solved layer "
                "by layer: take adaround"
            )
        return name


class Accuracy(Frozen):
    """What the schemes with 8-bit activations do beyond choosing ranges.

    Attributes:
        algorithms: Remedies, and at most one way to round weights; ``auto`` measures and keeps what
            helps, and rounds by ``gptq``. ``("rtn",)`` is none of all.
        strength: SmoothQuant's alpha; None searches it for each group of layers.
        threshold: Of LLM.int8(): magnitude from which an input column is an outlier.
        outlier_share: Take the loudest share of columns instead of a threshold.
        run_time_outliers: Find outliers anew for each input (scheme int8-dynamic).
        correction: Of bias correction.
        steps: Of AdaRound and BRECQ, for each layer or block; of weights in few bits, too.
        seed: Of their chance.
    """

    algorithms: Literal["auto"] | tuple[Remedy | Rounding, ...] = "auto"
    strength: float | None = Field(default=None, ge=0, le=1)
    threshold: float = Field(default=6.0, gt=0)
    outlier_share: float | None = Field(default=None, gt=0, lt=1)
    run_time_outliers: bool = False
    correction: Literal["empirical", "analytic"] = "empirical"
    steps: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("algorithms", mode="before")
    @classmethod
    def _named(cls, chosen: object) -> object:
        if chosen == "auto":
            return chosen
        names = list(chosen) if isinstance(chosen, list | tuple) else str(chosen).split("+")
        known = (*get_args(Remedy), *get_args(Rounding))
        if not names:
            raise ValueError("it names nothing: 'auto' tries what helps, 'rtn' does nothing")
        if "auto" in names:
            raise ValueError("auto stands alone: it tries the others by itself")
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is none of auto, {', '.join(known)}")
        roundings = [name for name in names if name in get_args(Rounding)]
        if len(roundings) > 1 or len(set(names)) < len(names):
            raise ValueError(
                f"{'+'.join(map(str, names))}: name each once, and one way to round at most"
            )
        return tuple(names)

    def asks(self, remedy: Remedy) -> bool:
        """Say whether the user named a remedy."""
        return self.algorithms != "auto" and remedy in self.algorithms

    @property
    def rounding(self) -> Rounding:
        """How weights are rounded."""
        named = () if self.algorithms == "auto" else self.algorithms
        return next((n for n in get_args(Rounding) if n in named), "gptq")


class Qat(Frozen):
    """How a torch model is trained, on the calibration samples, before it is built.

    Attributes:
        epochs: Times that each sample is seen.
        batch: Samples of a step.
        rate: Of Adam, at its height.
        freeze_norms: Share of the epochs from which batch norms keep their statistics.
        seed: Of all chance.
        weight_bits: Codes of 4 bits are stored as int8 ones, which every kernel takes; the first
            and the last weighted layer keep 8.
        learned_scales: Train scales too (LSQ, arXiv:1902.08153).
    """

    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float = Field(default=1e-4, gt=0)
    freeze_norms: float = Field(default=0.75, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    weight_bits: Literal[4, 8] = 8
    learned_scales: bool = False


class TensorRT(Frozen):
    """How a TensorRT engine is built.

    Attributes:
        version: Major version; None takes the installed one, else 11.
        shapes: Least, best and largest shape of inputs with dynamic axes, as in
            ``input:1x3x32x32,8x3x32x32,64x3x32x32``; None derives them from the samples.
        workspace_mib: Most scratch memory; None leaves it to the builder.
        optimization_level: 0 (fast build) to 5 (fast engine).
        version_compatible: The engine runs with later minor versions.
        hardware_compatible: Other GPUs that it runs on: those from Ampere on, or those of the same
            compute capability.
        weight_streaming: Weights may stay in the host's memory.
        strip: The engine holds no weights; they are refitted from the ONNX file.
    """

    version: Literal[10, 11] | None = None
    shapes: str | None = None
    workspace_mib: int | None = Field(default=None, ge=1)
    optimization_level: int = Field(default=3, ge=0, le=5)
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere+", "same"] = "none"
    weight_streaming: bool = False
    strip: bool = False


class Cuda(Frozen):
    """How ``--target ort-cuda`` delivers.

    Attributes:
        context: With ``--ep tensorrt``: an EPContext model, which holds the engines, is written
            where it is run first; it loads without building again.
    """

    context: bool = False


class Gates(Frozen):
    """What the engine must reach; a miss ends with exit code 3.

    Attributes:
        min_sqnr: Signal to quantization noise of the worst output, in dB.
        min_agreement: Top-1 agreement with the FP model, 0 to 1.
        max_drop: Largest loss of accuracy (or by the metric) against FP, in its own unit; where
            lower is better, as for perplexity, the largest rise.
        min_speedup: FP time over engine time; 1.0 unless ``allow_slower``.
    """

    min_sqnr: float | None = None
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_drop: float | None = Field(default=None, ge=0)
    min_speedup: float | None = Field(default=None, gt=0)
    allow_slower: bool = False


class Recipe(Frozen):
    """All that a build is asked to do, besides the model and the data.

    Attributes:
        scheme: int8 or fp8 (static activations), int8-dynamic (activations quantized at run time),
            weight-only (weights in few bits, activations in float), fp16 or bf16.
        target: Name of a target (``qcompile targets``).
        cpu: Instruction set to build for; None takes the host's.
        sm: Compute capabilities of the GPUs to build for: 87 is 8.7.
        ep: Execution provider to build for.
        high_precision: What computes in float stays in fp32 or becomes fp16 or bf16, but for what
            would lose too much; None takes the target's default.
        half_ports: Inputs and outputs take the half type, too.
        tensorrt: How a TensorRT engine is built.
        cuda: How ``--target ort-cuda`` delivers.
        accuracy: What 8-bit schemes do beyond choosing ranges.
        qat: Train a torch model on the calibration samples first; None: it is taken as it is.
        preprocess: What to do with pictures.
        text: What to do with text.
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
    sm: tuple[int, ...] = ()
    ep: str | None = None
    high_precision: HighPrecision | None = None
    half_ports: bool = False
    tensorrt: TensorRT = TensorRT()
    cuda: Cuda = Cuda()
    calibration: Calibration = Calibration()
    accuracy: Accuracy = Accuracy()
    weights: Weights = Weights()
    qat: Qat | None = None
    preprocess: Preprocess | None = None
    text: Text = Text()
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
        unknown = first["type"] == "extra_forbidden"
        message = "no such key" if unknown else first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{_place(first['loc'], options, file)}: {message}") from error


_OPTIONS = {
    "qat.epochs": "--epochs",
    "accuracy.algorithms": "--algorithm",
    "calibration.method": "--calib-method",
    "calibration.samples": "--calib-samples",
    "exclude_ops": "--exclude-op",
    "weights.bits": "--weight-bits",
    "text.length": "--sequence-length",
    "tensorrt.version": "--trt-version",
}
"""Options that are not called as their key is."""


def _place(path: tuple[int | str, ...], options: dict[str, Any], file: Path | None) -> str:
    """Return the option that was said, or the file and its key."""
    key = ".".join(str(part) for part in path) or "recipe"
    said: Any = options
    for part in path:
        if not isinstance(said, dict) or part not in said:
            break
        said = said[part]
    else:
        return _OPTIONS.get(key) or f"--{str(path[-1]).replace('_', '-')}"
    return f"{file}: {key}" if file else key


def _overlaid(table: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in options.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _overlaid(below, value)
        else:
            merged[key] = value
    return merged
