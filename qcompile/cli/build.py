"""``qcompile build``: a model becomes an engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from qcompile.cli.options import (
    DATA,
    OUTPUT,
    PRECISION,
    AccuracyLevel,
    Algorithm,
    Asymmetric,
    Calib,
    CalibMethod,
    CalibSamples,
    CpuOption,
    Debug,
    DynamicAxes,
    Ep,
    Epochs,
    GroupSize,
    HighPrecision,
    Int4,
    Jobs,
    Json,
    Metric,
    QatData,
    Quiet,
    RecipeFile,
    SequenceLength,
    Shapes,
    Sm,
    SourceModel,
    Target,
    Tokenizer,
    TrtVersion,
    WeightBits,
    flag,
    numbers,
    said,
)
from qcompile.cli.screen import Screen
from qcompile.errors import GateError, RecipeError
from qcompile.recipe import Qat, recipe_from
from qcompile.remedies import Remedy
from qcompile.report.console import render
from qcompile.report.schema import Report
from qcompile.targets.tensorrt import NO_FP4

SCHEMES = {
    "--int8": "int8",
    "--dynamic": "int8-dynamic",
    "--int4": "weight-only",
    "--weight-bits": "weight-only",
    "--fp8": "fp8",
    "--fp16": "fp16",
    "--bf16": "bf16",
}
GATES = "Gates: a miss ends with exit code 3"

EPILOG = """
Examples:

  qcompile build model.onnx --int8 --calib data/

  qcompile build model.onnx --int8 --calib data/ --eval test/ --max-drop 0.005

  qcompile build encoder.onnx --dynamic -o engine/

  qcompile build llm.onnx --int4 --calib text/ --tokenizer tokenizer.json

  qcompile build model.onnx --int8 --calib data/ --target tensorrt --sm 87

  qcompile build model.onnx --recipe model.toml --exclude '/head/*' --float-last

  qcompile build net.py:make --dynamic-axes batch --int8 --calib data/

  qcompile build net.py:make --qat data/ --epochs 20

  qcompile build hf:my-llm/ --int4 --calib text/

The folder of the engine also holds plan.json (what was decided for each tensor and node, and why;
edit it and give it back with --plan), manifest.json and report.json.

After a missed gate the engine is not put in place, the other files are; an engine that is there
already stays, and they go to OUTPUT.failed.

Exit codes: 0 built, 2 bad input, 3 a gate was missed, 130 interrupted, 1 a defect of qcompile.
"""


def build(
    model: SourceModel,
    *,
    int8: Annotated[
        bool,
        flag(
            "--int8",
            "Weights and activations in int8, ranges from --calib. The default.",
            PRECISION,
        ),
    ] = False,
    dynamic: Annotated[
        bool,
        flag(
            "--dynamic",
            "Int8 with activations quantized while running: for transformers. Needs no "
            "calibration data; with data, remedies are tried where much is lost.",
            PRECISION,
        ),
    ] = False,
    fp8: Annotated[
        bool,
        flag("--fp8", "Weights and activations in FP8 (E4M3), ranges from --calib.", PRECISION),
    ] = False,
    fp4: Annotated[bool, typer.Option("--fp4", hidden=True)] = False,
    fp16: Annotated[
        bool,
        flag("--fp16", "Half precision, but for nodes that would overflow or lose.", PRECISION),
    ] = False,
    bf16: Annotated[bool, flag("--bf16", "The same in bfloat16.", PRECISION)] = False,
    high_precision: HighPrecision = None,
    half_ports: Annotated[
        bool,
        flag("--half-ports", "Inputs and outputs take the half type, too.", PRECISION),
    ] = False,
    int4: Int4 = False,
    weight_bits: WeightBits = None,
    algorithm: Algorithm = None,
    group_size: GroupSize = None,
    asymmetric: Asymmetric = False,
    accuracy_level: AccuracyLevel = None,
    calib: Calib = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="DATA",
            help="Samples for the comparison, in the same forms.",
            show_default="a fifth of --calib, held back",
            rich_help_panel=DATA,
        ),
    ] = None,
    qat: QatData = None,
    epochs: Epochs = None,
    calib_method: CalibMethod = None,
    calib_samples: CalibSamples = None,
    tokenizer: Tokenizer = None,
    sequence_length: SequenceLength = None,
    dynamic_axes: DynamicAxes = None,
    target: Target = None,
    cpu: CpuOption = None,
    sm: Sm = None,
    ep: Ep = None,
    trt_version: TrtVersion = None,
    shapes: Shapes = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave nodes of this name in float; * and ? are wildcards. Repeatable.",
            rich_help_panel=PRECISION,
        ),
    ] = None,
    exclude_op: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OP",
            help="Leave all nodes of this operator in float. Repeatable.",
            rich_help_panel=PRECISION,
        ),
    ] = None,
    float_first: Annotated[
        bool,
        flag(
            "--float-first",
            "Leave the first weighted layer behind each input in float.",
            PRECISION,
        ),
    ] = False,
    float_last: Annotated[
        bool,
        flag(
            "--float-last",
            "Leave the last weighted layer before each output in float.",
            PRECISION,
        ),
    ] = False,
    no_keep_accuracy: Annotated[
        bool,
        flag(
            "--no-keep-accuracy",
            "Quantize all that the target can, without measuring what each layer costs.",
            PRECISION,
        ),
    ] = False,
    recipe: RecipeFile = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Follow this plan (of an earlier build, edited) instead of making one.",
            rich_help_panel=PRECISION,
        ),
    ] = None,
    metric: Metric = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Least signal to quantization noise of the worst output, in dB.",
            rich_help_panel=GATES,
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="Least top-1 agreement with the float model, 0 to 1.",
            rich_help_panel=GATES,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            help="Largest loss against the float model, of accuracy as a share (0.005 is half a "
            "point), or by --metric in its unit; the fewest layers stay in float that it takes.",
            rich_help_panel=GATES,
        ),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Least ratio of the float model's time to the engine's.",
            show_default="not slower",
            rich_help_panel=GATES,
        ),
    ] = None,
    allow_slower: Annotated[
        bool,
        flag(
            "--allow-slower",
            "Accept an engine that is slower than float.",
            GATES,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder to write; it must not exist.",
            show_default="MODEL-SCHEME-TARGET here",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool,
        flag(
            "--force",
            "Replace the output of an earlier build.",
            OUTPUT,
        ),
    ] = False,
    optimized: Annotated[
        bool,
        flag(
            "--optimized",
            "Also write ONNX Runtime's offline-optimized model, for this host only.",
            OUTPUT,
        ),
    ] = False,
    dump_passes: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the graph as text after each pass.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Turn a model into a smaller, faster engine, and measure what the engine still does.

    The model is cleaned up, calibrated on your samples, planned for the target, rewritten, loaded
    and run; the engine is then compared with the float model on samples that calibration did not
    see, and timed against it.
    """
    if fp4:
        raise RecipeError(f"--fp4: there is {NO_FP4}; take --fp8 or --int4")
    weights = {
        "bits": 4 if int4 else weight_bits,
        "group_size": group_size,
        "asymmetric": asymmetric or None,
        "accuracy_level": accuracy_level,
    }
    options = {
        "scheme": _scheme(
            {
                "--int8": int8,
                "--dynamic": dynamic,
                "--int4": int4,
                "--weight-bits": weight_bits,
                "--fp8": fp8,
                "--fp16": fp16,
                "--bf16": bf16,
            }
        ),
        "weights": weights,
        "target": target,
        "cpu": cpu,
        "sm": numbers("--sm", sm),
        "ep": ep,
        "tensorrt": {"version": trt_version, "shapes": shapes},
        "high_precision": high_precision,
        "half_ports": half_ports or None,
        "qat": {"epochs": epochs},
        "calibration": {"method": calib_method, "samples": calib_samples},
        "text": {"tokenizer": tokenizer, "length": sequence_length},
        "exclude": exclude or None,
        "exclude_ops": exclude_op or None,
        "float_first": float_first or None,
        "float_last": float_last or None,
        "keep_accuracy": False if no_keep_accuracy else None,
        "optimized": optimized or None,
        "gates": {
            "min_sqnr": min_sqnr,
            "min_agreement": min_agreement,
            "max_drop": max_drop,
            "min_speedup": min_speedup,
            "allow_slower": allow_slower or None,
        },
        "metric": metric,
        "jobs": jobs,
    }
    asked = recipe_from(said({**options, **_algorithm(algorithm, said(options), recipe)}), recipe)
    if asked.scheme != "weight-only" and said(weights):
        name = next(iter(said(weights))).replace("_", "-")
        raise RecipeError(f"--{name} is for weights in few bits: add --int4 or --weight-bits N")
    if qat:
        if calib:
            raise RecipeError("--qat: its samples are those of --calib, too: leave out --calib")
        asked = asked.model_copy(update={"qat": asked.qat or Qat()})
    elif epochs:
        raise RecipeError("--epochs is for training: add --qat DATA")
    from qcompile import pipeline  # takes a second: not for a recipe that is refused

    screen = Screen(quiet=quiet, as_json=as_json)
    try:
        with screen.progress() as progress:
            report = pipeline.build(
                model,
                dynamic_axes=dynamic_axes or (),
                calib=qat or calib,
                evaluation=evaluation,
                output=output,
                recipe=asked,
                plan=plan,
                force=force,
                dump_passes=dump_passes,
                progress=progress,
            )
    except GateError as error:
        if isinstance(error.report, Report):
            screen.answer(error.report, render)
        raise
    screen.answer(report, render)


def _algorithm(
    name: str | None, options: dict[str, Any], file: Path | None
) -> dict[str, dict[str, Any]]:
    """Return what ``--algorithm`` means for the scheme that the options or the recipe ask for."""
    if name is None:
        return {}
    if recipe_from(options, file).scheme != "weight-only":
        return {"accuracy": {"algorithms": name}}
    remedies = [part for part in name.split("+") if part in get_args(Remedy)]
    if remedies:
        raise RecipeError(f"--algorithm {remedies[0]}: it is for --int8, --fp8 and --dynamic")
    return {"weights": {**options.get("weights", {}), "algorithm": name}}


def _scheme(asked: Mapping[str, object]) -> str | None:
    """Return the one scheme that was asked for, or None.

    Raises:
        RecipeError: There are several.
    """
    given = [option for option, value in asked.items() if value]
    if len(given) > 1:
        raise RecipeError(f"{' and '.join(given)}: an engine has one scheme; leave out one of them")
    return SCHEMES[given[0]] if given else None
