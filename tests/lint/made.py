"""Cases of builders that take arguments."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.lint.rule import Setting
from tests.lint.cases import Case

RTX = Setting("tensorrt-rtx")


def devices(*sms: int) -> Setting:
    """Return the setting of TensorRT on these."""
    return Setting(sms=sms)


def case(
    make: Callable[..., ir.Model],
    *args: Any,
    setting: Setting | None = None,
    also: Iterable[str] = (),
    **more: Any,
) -> Case:
    """Return the case of a builder with these arguments, which are in its name."""
    setting = setting or Setting()
    words = [make.__name__, *map(_word, args), *(f"{k}={_word(v)}" for k, v in more.items())]
    words += ["rtx"] * (setting.flavour == "tensorrt-rtx") + [f"sm{sm}" for sm in setting.sms]
    return Case(partial(make, *args, **more), setting, "-".join(words), frozenset(also))


def _word(argument: object) -> str:
    if isinstance(argument, np.ndarray):
        return argument.dtype.name
    return str(getattr(argument, "__name__", argument)).replace(" ", "")
