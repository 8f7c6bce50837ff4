"""Rule L44: options of trtexec that one major version has and the other lacks."""

import re
import shlex
from collections.abc import Iterator

from qcompile.lint.rule import Place, Setting

_TYPES = frozenset({"fp16", "bf16", "int8", "fp8", "int4", "best"})
_CONSTRAINTS = frozenset({"precisionConstraints", "layerPrecisions", "layerOutputTypes"})
_CALIBRATION = frozenset(
    {"calib", "calibProfile", "minShapesCalib", "optShapesCalib", "maxShapesCalib"}
)
_LIBRARIES = frozenset({"CUBLAS", "CUBLAS_LT", "CUDNN"})
_TRTEXEC = re.compile(r"(^|/|\$\{?\w*)trtexec(\.exe)?\}?$", re.IGNORECASE)
_SEPARATORS = ";&|()\n"


def removed_options(text: str, setting: Setting) -> Iterator[Place]:
    """Yield each option of a trtexec command that fails, with its line as the place.

    Args:
        text: A shell script; only its words are looked at, nothing is expanded or run.
        setting: For TensorRT 11 options that it lacks; for 10 those that contradict others.
    """
    for line, options in commands(text):
        check = _unknown if setting.version >= 11 else _contradicting
        yield from (Place(str(line), what) for what in check(options))


def commands(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the options of each trtexec command, options without their hyphens."""
    for line, whole in _lines(text):
        options: dict[str, str] | None = None
        for word in [*_words(whole), ";"]:
            if word and not word.strip(_SEPARATORS):
                if options is not None:
                    yield line, options
                options = None
            elif _TRTEXEC.search(word):
                options = {}
            elif options is not None and word.startswith("--"):
                name, _, value = word[2:].partition("=")
                options[name] = value


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines, continued ones joined, each with the number of its first."""
    start, held = 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not held:
            start = number
        if line.rstrip().endswith("\\"):
            held += line.rstrip()[:-1] + " "
        else:
            yield start, held + line
            held = ""
    if held:
        yield start, held


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_SEPARATORS.strip())
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # a quotation that ends on another line
        return line.split()


def _unknown(options: dict[str, str]) -> Iterator[str]:
    for name in options:
        if name in _TYPES:
            yield (
                f"trtexec 11 has no --{name}: types come from the network alone, so the ONNX model "
                "must carry casts or Q/DQ; leave the option out"
            )
        elif name in _CONSTRAINTS:
            yield f"trtexec 11 has no --{name}: put casts into the ONNX model, leave the option out"
        elif name in _CALIBRATION:
            yield f"trtexec 11 has no --{name}: put Q/DQ into the ONNX model, leave the option out"
        elif name == "weightless":
            yield "trtexec 11 has no --weightless: its name is --stripWeights now"
    sources = {source.strip("+-") for source in options.get("tacticSources", "").split(",")}
    for source in sorted(sources & _LIBRARIES):
        yield f"trtexec 11 has no tactic source {source}: leave it out of --tacticSources"


def _contradicting(options: dict[str, str]) -> Iterator[str]:
    if "stronglyTyped" in options:
        for name in options:
            if name in _TYPES | _CONSTRAINTS:
                yield (
                    f"--{name} contradicts --stronglyTyped, by which the ONNX model alone decides "
                    f"types: leave out --{name}"
                )
