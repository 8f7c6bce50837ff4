"""Compiles trained ONNX models into int8 and int4 engines, and proves what the engines still do.

Importing this package loads neither a runtime nor the compiler: each name comes with its module
when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.commands import bench, inspect
    from qcompile.errors import GateError, QcompileError
    from qcompile.pipeline import build
    from qcompile.plan import Plan, read_plan
    from qcompile.recipe import Calibration, Gates, Preprocess, Recipe, Text, Weights, recipe_from
    from qcompile.report.schema import Report
    from qcompile.tracing import export

__all__ = [
    "Calibration",
    "GateError",
    "Gates",
    "Plan",
    "Preprocess",
    "QcompileError",
    "Recipe",
    "Report",
    "Text",
    "Weights",
    "bench",
    "build",
    "export",
    "inspect",
    "read_plan",
    "recipe_from",
]

_MODULE_OF = {
    "Calibration": "qcompile.recipe",
    "GateError": "qcompile.errors",
    "Gates": "qcompile.recipe",
    "Plan": "qcompile.plan",
    "Preprocess": "qcompile.recipe",
    "QcompileError": "qcompile.errors",
    "Recipe": "qcompile.recipe",
    "Report": "qcompile.report.schema",
    "Text": "qcompile.recipe",
    "Weights": "qcompile.recipe",
    "bench": "qcompile.commands",
    "build": "qcompile.pipeline",
    "export": "qcompile.tracing",
    "inspect": "qcompile.commands",
    "read_plan": "qcompile.plan",
    "recipe_from": "qcompile.recipe",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (as PEP 562 has it)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'qcompile' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
