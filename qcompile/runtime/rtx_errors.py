"""Turns what TensorRT's parser and builder say into a sentence for people."""

import re
from typing import Any

_NO_DRIVER = re.compile(r"cudaError \d+|CUDA driver version is insufficient")
"""A line that follows other errors on machines without a GPU and has nothing to do with them."""
_FUNCTION = re.compile(r"^(?:[\w:]+: |\[[^\]]*\] )?Error Code \d+: [\w ]+\((.*)\)$")
_SOURCE = re.compile(
    r"\.?\s*In \w+ at /\S+?:\d+\)?|\[[\w.]+(?:::\w+)*: ?\w+: \w+\] |\[\w+\.\w+::\S+\] "
)
_ASSERTION = re.compile(r"Assertion failed: .*?: (?=[A-Z])|Assertion \S.*? failed\. ")
_CONDITION = re.compile(r'^.* && "(.*)"$')
"""A condition of the parser's source that did not hold, and what its author says of it."""
_NO_IMPORTER = re.compile(r"Plugin not found|was not found in plugin registry")
_LOG_SOURCE = re.compile(r"^\w+\.[ch]pp:\d+: ")
_MOST_ERRORS = 3


def sentence(text: str) -> str:
    """Return an error message without source locations, codes and lines that mislead."""
    lines = [line for line in text.splitlines() if not _NO_DRIVER.search(line)]
    told = [line for line in lines if not line.startswith("Invalid Node - ")] or lines
    return " ".join(_plain(line) for line in told).strip()


def _plain(line: str) -> str:
    line = _LOG_SOURCE.sub("", line)
    if function := _FUNCTION.match(line):
        line = function[1]
    if condition := _CONDITION.match(line):
        line = condition[1]
    line = _ASSERTION.sub("", _SOURCE.sub("", line))
    return " ".join(line.split()).rstrip(".;) ")


def parser_error(error: Any) -> str:  # noqa: ANN401 (the library has no types)
    """Return one ``ParserError``: the node, its operator, and what the parser says of it."""
    operator = error.node_operator()
    said = error.desc()
    if not operator:
        return sentence(said)
    if said in ("false", "") or _NO_IMPORTER.search(said):
        said = f"TensorRT for RTX has no operator {operator}"
    return f"node {error.node_name()!r} ({operator}): {sentence(said)}"


def first_few(told: list[str]) -> str:
    """Join the first of several errors; say how many more there are."""
    different = list(dict.fromkeys(told))
    shown = "; ".join(different[:_MOST_ERRORS])
    more = len(different) - _MOST_ERRORS
    return f"{shown}; and {more} more" if more > 0 else shown
