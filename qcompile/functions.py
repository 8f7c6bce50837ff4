"""``module:callable``: functions that the user names, for data and for metrics."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qcompile.errors import QcompileError


def function_named(name: str, error: type[QcompileError]) -> Callable[..., Any]:
    """Import what ``module:callable`` names.

    The module is looked for in the current directory first. Its code runs with the user's rights:
    only name what you trust.

    Args:
        name: ``package.module:callable``; the part behind the colon may have dots too.
        error: What to raise.

    Raises:
        QcompileError: ``error``: it cannot be imported, the module ends the process, or it is no
            callable.
    """
    module, _, attributes = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (Exception, SystemExit) as problem:
        raise error(
            f"{name}: cannot be imported ({type(problem).__name__}: {problem})"
        ) from problem
    finally:
        sys.path.remove(here)
        if here not in sys.path:  # for what the function imports when it is called
            sys.path.append(here)
    if not callable(found):
        raise error(f"{name}: is not callable")
    return found  # type: ignore[no-any-return]
