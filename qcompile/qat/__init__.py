"""Quantization-aware training that lands in the engine that the compiler would build.

``prepare`` gives a torch model to train as usual, ``convert`` a QDQ ONNX file that ``build`` takes,
``distill`` does the training where there are no labels. Importing this package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.qat.conversion import convert, converted
    from qcompile.qat.distillation import Distilled, Training, distill
    from qcompile.qat.exported import Inputs
    from qcompile.qat.options import Rounding
    from qcompile.qat.preparation import prepare
    from qcompile.qat.trainable import Trainable

__all__ = [
    "Distilled",
    "Inputs",
    "Rounding",
    "Trainable",
    "Training",
    "convert",
    "converted",
    "distill",
    "prepare",
]

_MODULE_OF = {
    "Distilled": "qcompile.qat.distillation",
    "Inputs": "qcompile.qat.exported",
    "Rounding": "qcompile.qat.options",
    "Trainable": "qcompile.qat.trainable",
    "Training": "qcompile.qat.distillation",
    "convert": "qcompile.qat.conversion",
    "converted": "qcompile.qat.conversion",
    "distill": "qcompile.qat.distillation",
    "prepare": "qcompile.qat.preparation",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (as PEP 562 has it)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'qcompile.qat' has no attribute {name!r}")
    from qcompile.qat.libraries import check_libraries

    check_libraries()
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
