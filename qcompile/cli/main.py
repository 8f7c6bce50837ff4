"""The command line: ``qcompile COMMAND``; also ``python -m qcompile``."""

import logging
import sys
from collections.abc import Callable
from inspect import cleandoc
from typing import Annotated

import typer

from qcompile.bundle import versions
from qcompile.cli import (
    bench,
    build,
    calibrate,
    check,
    compare,
    dequantize,
    doctor,
    export,
    inspect,
    passes,
    sensitivity,
    targets,
)
from qcompile.cli.exits import exit_code

EPILOG = """
Start with: qcompile build model.onnx --int8 --calib data/

Exit codes: 0 done, 2 bad input, 3 a gate was missed, 130 interrupted, 1 a defect of qcompile; of
check, 1: the model breaks a rule.
"""

LIBRARIES = ("onnx", "onnx_ir", "onnxscript")
"""Loggers of what rewrites graphs; ``--debug`` shows what they say."""

app = typer.Typer(
    name="qcompile",
    epilog=EPILOG,
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _paragraphs(text: str) -> str:
    """Join the lines of each paragraph, so that the terminal's width wraps them."""
    joined = (" ".join(part.split()) for part in cleandoc(text).split("\n\n"))
    return "\n\n".join(joined)


def _add(command: Callable[..., None], epilog: str) -> None:
    app.command(help=_paragraphs(command.__doc__ or ""), epilog=_paragraphs(epilog))(command)


_add(build.build, build.EPILOG)
_add(export.export, export.EPILOG)
_add(dequantize.dequantize, dequantize.EPILOG)
_add(calibrate.calibrate, calibrate.EPILOG)
_add(compare.compare, compare.EPILOG)
_add(inspect.inspect, inspect.EPILOG)
_add(check.check, check.EPILOG)
_add(bench.bench, bench.EPILOG)
_add(sensitivity.sensitivity, sensitivity.EPILOG)
_add(passes.passes, passes.EPILOG)
_add(targets.targets, targets.EPILOG)
_add(doctor.doctor, doctor.EPILOG)


def _print_version(value: bool) -> None:
    if value:
        print(f"qcompile {versions().get('qcompile', '(not installed)')}")
        raise typer.Exit


@app.callback()
def qcompile(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Compile trained ONNX models into int8 engines, and prove what the engines still do."""


def _hush_libraries() -> None:
    """Keep the log lines of libraries off stderr: what users must know is a notice."""
    for name in LIBRARIES:
        logging.getLogger(name).addHandler(logging.NullHandler())


def main() -> None:
    """Run the command of ``sys.argv`` and exit with its code."""
    arguments = sys.argv[1:] or ["--help"]
    if "--debug" not in arguments:
        _hush_libraries()
    command = typer.main.get_command(app)

    def run() -> None:
        with command.make_context("qcompile", arguments) as context:
            command.invoke(context)

    sys.exit(exit_code(run, debug="--debug" in arguments))
