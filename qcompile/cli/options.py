"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from qcompile.errors import RecipeError
from qcompile.recipe import Cpu, Method
from qcompile.recipe import HighPrecision as HighPrecisionName

DATA = "Data"
PRECISION = "Precision"
TARGET = "Target"
WEIGHTS = "Weights in few bits"
OUTPUT = "Output"
TORCH = "Torch models"


def flag(name: str, text: str, panel: str, short: str | None = None) -> Any:  # noqa: ANN401 (typer's own type)
    """Return an option that is on when given, without a value."""
    names = (name,) if short is None else (name, short)
    return typer.Option(*names, help=text, metavar="", rich_help_panel=panel, show_default=False)


ModelFile = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="An ONNX file, opset 7 or later.", show_default=False),
]
SourceModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An ONNX file, opset 7 or later; or a torch model: module:callable or "
        "file.py:callable that returns an nn.Module (or a tuple of it and example inputs), an "
        "exported program (.pt2), or hf:DIR, a Hugging Face folder.",
        show_default=False,
    ),
]
DynamicAxes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="AXES",
        help="Axes of a torch model that stay open: batch, the first of each input, or "
        "input:0=batch,2=height. Repeatable. --shapes bounds them, and opens those that it gives "
        "several sizes.",
        show_default="none; of hf: batch and length",
        rich_help_panel=TORCH,
    ),
]
Calib = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Calibration samples: a folder of .npz, .npy, pictures or text, one .npz, .txt or "
        ".jsonl, or module:callable. 100 to 500 typical inputs.",
        rich_help_panel=DATA,
    ),
]
CalibNeeded = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="Calibration samples: a folder of .npz, .npy, pictures or text, one .npz, .txt or "
        ".jsonl, or module:callable.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
QatData = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Train a torch model (net.py:make) on these samples before it is built: rounded, it "
        "learns to answer as it did in float. Instead of --calib; needs no labels.",
        rich_help_panel=DATA,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Times that training sees each sample.",
        show_default="10",
        rich_help_panel=DATA,
    ),
]
CalibMethod = Annotated[
    Method | None,
    typer.Option(
        metavar="METHOD",
        help="How a range is found: minmax, percentile, mse, entropy, or auto, which measures all "
        "on real activations and keeps the best for each tensor.",
        show_default="auto",
        rich_help_panel=DATA,
    ),
]
CalibSamples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Use at most so many calibration samples.",
        show_default="all",
        rich_help_panel=DATA,
    ),
]
Int4 = Annotated[
    bool,
    flag(
        "--int4",
        "Weights in 4 bits, activations in float: for language models and other large products.",
        WEIGHTS,
    ),
]
WeightBits = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="As --int4, with 2, 3, 4 or 8 bits.",
        rich_help_panel=WEIGHTS,
    ),
]
Algorithm = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[+NAME]",
        help="What keeps accuracy. Weights in few bits: rtn (nearest, needs no data), gptq, awq, "
        "awq+gptq, adaround. 8-bit activations: equalize, absorb-bias, smoothquant, llm-int8, "
        "bias-correction, and to round weights rtn, gptq, adaround or brecq. auto measures, and "
        "keeps what helps.",
        show_default="auto",
        rich_help_panel=PRECISION,
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Weights that share a scale: 16 to 256, a power of two; 0 for a whole channel.",
        show_default="128",
        rich_help_panel=WEIGHTS,
    ),
]
Asymmetric = Annotated[
    bool,
    flag("--asymmetric", "Give each group a zero point of its own.", WEIGHTS),
]
AccuracyLevel = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="What kernels compute with: 4 int8 activations, 0 float ones.",
        show_default="4 where it adds at most 1 % to a layer's output error",
        rich_help_panel=WEIGHTS,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Read options from a file; those given here override it.",
        rich_help_panel=PRECISION,
    ),
]
PictureRecipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE.toml",
        help="A recipe whose [preprocess] says how pictures become inputs.",
        rich_help_panel=DATA,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What the engine runs on; see qcompile targets.",
        show_default="ort-cpu",
        rich_help_panel=TARGET,
    ),
]
CpuOption = Annotated[
    Cpu | None,
    typer.Option(
        "--cpu",
        metavar="NAME",
        help="Instruction set to build for: avx2, avx512, vnni or arm. It decides the code types "
        "and whether weights keep to 7 bits.",
        show_default="this host's",
        rich_help_panel=TARGET,
    ),
]
Sm = Annotated[
    str | None,
    typer.Option(
        "--sm",
        metavar="N,N",
        help="Compute capabilities of the GPUs to build for: 87 is 8.7 (Orin), 89 Ada, 120 "
        "Blackwell.",
        show_default="any",
        rich_help_panel=TARGET,
    ),
]
Ep = Annotated[
    str | None,
    typer.Option(
        "--ep",
        metavar="NAME",
        help="Execution provider of ONNX Runtime to build for; see qcompile targets.",
        show_default="the target's first",
        rich_help_panel=TARGET,
    ),
]
TrtVersion = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Major version of TensorRT: 10 or 11.",
        show_default="the installed one, or 11",
        rich_help_panel=TARGET,
    ),
]
Shapes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME:MIN,BEST,MAX",
        help="Shapes of inputs with dynamic axes, least, best and largest, such as "
        "input:1x3x32x32,8x3x32x32,64x3x32x32.",
        show_default="from the samples",
        rich_help_panel=TARGET,
    ),
]
HighPrecision = Annotated[
    HighPrecisionName | None,
    typer.Option(
        metavar="TYPE",
        help="What the float remainder computes in: fp32, fp16 or bf16; nodes that would overflow "
        "or lose too much stay in fp32.",
        show_default="the target's",
        rich_help_panel=PRECISION,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Worker threads.", show_default="all cores"),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="Makes the tokens of .txt and .jsonl data.",
        show_default="tokenizer.json beside the data, else beside the model",
        rich_help_panel=DATA,
    ),
]
SequenceLength = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=2,
        help="Tokens of a sample that is made from text.",
        show_default="what the model fixes, else 256",
        rich_help_panel=DATA,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A score of both models on the same samples: perplexity, or module:callable for one "
        "of your own, imported from the current folder or the Python path.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
OnnxOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE.onnx",
        help="The file to write; large weights go to FILE.onnx.data beside it.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
ForceFile = Annotated[bool, flag("--force", "Replace a file that is there.", OUTPUT)]
Quiet = Annotated[bool, flag("--quiet", "Print errors only.", OUTPUT, "-q")]
Json = Annotated[
    bool, flag("--json", "Print the result alone, as JSON; progress stays on stderr.", OUTPUT)
]
Debug = Annotated[bool, flag("--debug", "Show the traceback of an error.", OUTPUT)]


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the whole numbers of an option, which have commas between them.

    Raises:
        RecipeError: One is no such number.
    """
    if text is None:
        return None
    parts = [part.strip().lower().removeprefix("sm").replace(".", "") for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise RecipeError(f"{option} {text}: give numbers with commas between them, as in 87,89")
    return tuple(map(int, parts))


def said(options: dict[str, Any]) -> dict[str, Any]:
    """Return only what the user said: without the options that are None."""
    nested = {k: said(v) if isinstance(v, dict) else v for k, v in options.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}
