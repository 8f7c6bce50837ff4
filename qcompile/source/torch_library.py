"""torch itself: imported only when a torch model is named, and kept quiet while it traces."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

from qcompile.errors import RuntimeMissingError

_LOGGERS = (
    "torch",
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "onnxscript",
    "onnx_ir",
    "transformers",
    "torchao",
)


def torch_library() -> ModuleType:
    """Return torch.

    Raises:
        RuntimeMissingError: It is not installed, or too old to trace.
    """
    try:
        import torch
        import torch.export
        import torch.onnx
    except ImportError as error:
        raise RuntimeMissingError(
            f"torch models need torch ({error}): pip install 'qcompile[torch]'"
        ) from error
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise RuntimeMissingError(
            f"torch {torch.__version__} is too old to trace: pip install 'qcompile[torch]'"
        )
    return torch  # type: ignore[no-any-return, unused-ignore]


@contextmanager
def hushed() -> Iterator[None]:
    """Keep what torch and its exporter print, log and warn of away from the terminal.

    What users must know comes back as an error or a notice.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with (
        Path(os.devnull).open("w", encoding="utf-8") as sink,
        redirect_stdout(sink),
        redirect_stderr(sink),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
