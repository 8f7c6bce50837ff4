"""``module:callable``: functions that the user names, for models, data and metrics."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from qcompile.errors import QcompileError


def function_named(name: str, error: type[QcompileError]) -> Callable[..., Any]:
    """Import what ``module:callable`` names.

    The module is looked for in the current directory first; ``folder/file.py:callable`` names a
    file, whose folder is where its own imports look first. The code runs with the user's rights:
    only name what you trust.

    Args:
        name: ``package.module:callable``; the part behind the colon may have dots too.
        error: What to raise.

    Raises:
        QcompileError: ``error``: it cannot be imported, the module ends the process, or it is no
            callable.
    """
    module, _, attributes = name.rpartition(":")
    file = Path(module).resolve() if module.endswith(".py") else None
    here = str(file.parent if file else Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = _loaded(file) if file else importlib.import_module(module)
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


def _loaded(file: Path) -> ModuleType:
    """Run a file as a module of its own; its name cannot hide an installed one."""
    name = f"_qcompile_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module
