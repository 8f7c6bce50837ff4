"""Commands of a README in this process, which has torch: one of their own loads it for seconds."""

import runpy
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qcompile.cli.main import main
from tests.assets import ROOT


def run_here(lines: Sequence[str], folder: Path) -> None:
    """Run ``python FILE ...`` and ``qcompile ...`` in turn, each as a shell would.

    Raises:
        SystemExit: One ended with another code than 0.
    """
    link_samples(folder)
    terminate = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as changed:
        changed.chdir(folder)
        changed.setenv("QCOMPILE_CACHE", str(folder / "cache"))
        for line in lines:
            program, *arguments = shlex.split(line)
            script = program == "python"
            changed.setattr(sys, "argv", arguments if script else [program, *arguments])
            try:
                _ = runpy.run_path(arguments[0], run_name="__main__") if script else main()
            except SystemExit as ended:
                if ended.code:
                    raise
            finally:
                signal.signal(signal.SIGTERM, terminate)


def link_samples(folder: Path) -> None:
    """Let a folder look like the top of the repository."""
    (folder / "samples").unlink(missing_ok=True)
    (folder / "samples").symlink_to(ROOT / "samples")
