"""What training needs beside the compiler: torch and torchao, and quiet while they load."""

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from qcompile.errors import RuntimeMissingError

NEEDED = ("torch", "torchao")


def check_libraries() -> None:
    """Check that torch and torchao are installed, and load them.

    Raises:
        RuntimeMissingError: One is not; the message says how to get both.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeMissingError(
            f"training needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            "not installed: pip install 'qcompile[qat]'"
        )
    with quiet():
        importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of torch's exporters from the terminal: they are about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
