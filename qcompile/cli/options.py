"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from qcompile.recipe import Cpu, Method

DATA = "Data"
PRECISION = "Precision"
OUTPUT = "Output"


def flag(name: str, text: str, panel: str, short: str | None = None) -> Any:  # noqa: ANN401 (typer's own type)
    """Return an option that is on when given, without a value."""
    names = (name,) if short is None else (name, short)
    return typer.Option(*names, help=text, metavar="", rich_help_panel=panel, show_default=False)


ModelFile = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="An ONNX file, opset 7 or later.", show_default=False),
]
Calib = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Calibration samples: a folder of .npz, .npy or pictures, one .npz, or "
        "module:callable. 100 to 500 typical inputs.",
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
        rich_help_panel=PRECISION,
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
        rich_help_panel=PRECISION,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Worker threads.", show_default="all cores"),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CALLABLE",
        help="A score of your own, evaluated for both models on the same samples; imported from "
        "the current folder or the Python path.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Quiet = Annotated[bool, flag("--quiet", "Print errors only.", OUTPUT, "-q")]
Json = Annotated[
    bool, flag("--json", "Print the result alone, as JSON; progress stays on stderr.", OUTPUT)
]
Debug = Annotated[bool, flag("--debug", "Show the traceback of an error.", OUTPUT)]


def said(options: dict[str, Any]) -> dict[str, Any]:
    """Return only what the user said: without the options that are None."""
    nested = {k: said(v) if isinstance(v, dict) else v for k, v in options.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}
