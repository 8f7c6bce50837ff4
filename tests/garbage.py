"""Python looks for garbage in what a test makes, and not in all that was imported before it."""

import gc


def keep_imports() -> None:
    """Leave all that exists alone, and look at the rest less often: it was a fifth of a build."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()
