"""Where the real models and data are, and how tests that need them skip."""

import importlib
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("QCOMPILE_ASSETS", ROOT.parent / "shared" / "assets"))

needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(),
    reason=f"no model assets at {ASSETS} (set QCOMPILE_ASSETS)",
)


def asset(*parts: str) -> Path:
    """Return the path of an asset."""
    return ASSETS.joinpath(*parts)


@cache
def tool(name: str) -> ModuleType:
    """Import ``score`` or ``calib`` from the assets."""
    if str(ASSETS) not in sys.path:
        sys.path.insert(0, str(ASSETS))
    return importlib.import_module(name)
