"""The lint of scripts: L43 and L46 for Python, L44 for shell. Scripts are read, never run."""

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qcompile.errors import ModelError
from qcompile.lint.ort_options import L46 as OF_MODELS
from qcompile.lint.ort_options import wrong_options
from qcompile.lint.python_api import removed_names
from qcompile.lint.rule import Finding, Place, Setting, Severity
from qcompile.lint.trtexec import removed_options

PYTHON = frozenset({".py"})
SHELL = frozenset({".sh", ".bash", ".txt"})
"""Suffixes of scripts that can be checked."""

_MAX_BYTES = 10 << 20


@dataclass(frozen=True)
class ScriptRule:
    """A rule of scripts: as ``Rule``, without a check of graphs."""

    name: str
    title: str
    severity: Severity
    source: str


L43 = ScriptRule(
    "L43",
    "Python code uses no names that TensorRT 11 lacks, and no numbers for flags",
    Severity.ERROR,
    "bindings of 10.16 and 11.4 compared; those of TensorRT-RTX 1.7.1 lack the same names",
)
L44 = ScriptRule(
    "L44",
    "trtexec gets no options that its version lacks, or that contradict --stronglyTyped",
    Severity.ERROR,
    "trtexec's source, release 11.1; --stronglyTyped with types is refused from 10.12 on",
)
L46 = ScriptRule(OF_MODELS.name, OF_MODELS.title, OF_MODELS.severity, OF_MODELS.source)

RULES = (L43, L44, L46)


def check_script(path: Path, setting: Setting) -> list[Finding]:
    """Return everything in a script that breaks a rule, in the order of its lines.

    Args:
        path: Python (``.py``), or shell or text with trtexec commands (``.sh``, ``.bash``,
            ``.txt``).
        setting: What it is checked for; the version decides most.

    Raises:
        ModelError: The file cannot be read, is no text, or no valid Python.
    """
    text = _read(path)
    checks: tuple[tuple[ScriptRule, Iterator[Place]], ...]
    if path.suffix.lower() in PYTHON:
        tree = _parse(text, path)
        checks = ((L43, removed_names(tree, setting)), (L46, wrong_options(tree, setting)))
    elif path.suffix.lower() in SHELL:
        checks = ((L44, removed_options(text, setting)),)
    else:
        known = ", ".join(sorted(PYTHON | SHELL))
        raise ModelError(f"{path}: scripts that can be checked end in {known}")
    found = [entry for rule, places in checks for entry in _numbered(rule, places)]
    return [_finding(rule, path, place) for rule, place in sorted(found, key=_line)]


def _numbered(rule: ScriptRule, places: Iterator[Place]) -> list[tuple[ScriptRule, Place]]:
    return [(rule, place) for place in dict.fromkeys(places)]


def _line(entry: tuple[ScriptRule, Place]) -> int:
    return int(entry[1].where)


def _finding(rule: ScriptRule, path: Path, place: Place) -> Finding:
    return Finding(rule.name, rule.severity, f"{path.name}:{place.where}", place.what)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path}: over {_MAX_BYTES >> 20} MiB; this is no script")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: not a text file in UTF-8") from None


def _parse(text: str, path: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the script's own escapes and comparisons
            return ast.parse(text, filename=str(path))
    except SyntaxError as error:
        raise ModelError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ModelError(f"{path}: not valid Python, or nested too deeply") from None
