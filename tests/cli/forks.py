"""The command in a process that need not import anything: ``python -m tests.cli.forks``.

Imports and the start of numba take two seconds, most commands much less.
"""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnxscript import rewriter

from qcompile import checking, commands, pipeline
from qcompile.cli.main import main
from qcompile.numerics.kernels import Search, find_grids
from tests.brief import time_briefly
from tests.forks import Request, serve

LIMIT_SECONDS = 120
"""A command that hangs is killed."""


def _load(scripts: Path) -> None:
    """Import all but what starts threads as it is imported: a fork would miss them."""
    assert all((checking, commands, pipeline, rewriter))
    find_grids(np.ones((1, 1)), np.ones(1), np.ones(1), Search(1, 15, True, True, 24, 1e-30))
    assert not {"onnxruntime", "torch"} & sys.modules.keys()
    time_briefly(scripts)


def _command(asked: Request) -> None:
    signal.alarm(LIMIT_SECONDS)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    streams = [(os.devnull, os.O_RDONLY), (asked["out"], os.O_WRONLY), (asked["err"], os.O_WRONLY)]
    for number, (path, mode) in enumerate(streams):
        os.dup2(os.open(path, mode), number)
    sys.path[0] = asked["folder"]
    sys.argv = ["qcompile", *asked["arguments"]]
    main()


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    _load(folder)
    serve(_command)  # only the server comes back
    shutil.rmtree(folder)
