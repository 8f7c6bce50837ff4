"""Where the real models and data are, and how tests that need them skip."""

import os
from pathlib import Path

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
