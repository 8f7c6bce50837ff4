"""What a bundle asks TensorRT to build, ``build.json``, and how its scripts tell what they did.

Travels in the bundle beside ``build_engine.py`` or ``run_session.py``; needs numpy alone.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
"""Of ``build.json`` and ``result.json``."""


class Refused(Exception):  # noqa: N818
    """Something is wrong with what was given, or TensorRT refuses it: a line for people.

    Attributes:
        errors: Each with ``node``, ``operator`` and ``message``, where TensorRT named them.
    """

    def __init__(self, message: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.errors = errors or []


_NODE = re.compile(r"\bfor node (.+?)\.?(?=\)|\. | In /|$)", re.MULTILINE)
"""The builder's: "Could not find any implementation for node {ForeignNode[a...b]}."."""

_BUILD: dict[str, tuple[type, ...]] = {
    "tensorrt": (int,),
    "profiles": (dict,),
    "workspace_bytes": (int, type(None)),
    "optimization_level": (int,),
    "version_compatible": (bool,),
    "hardware_compatible": (str,),
    "weight_streaming": (bool,),
    "strip": (bool,),
    "refit": (bool,),
}
"""Keys of ``build.json`` to the types that they may have."""

_COMMON: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "float_model": (str, type(None)),
    "gates": (dict,),
    "samples": (int,),
    "inputs": (list,),
    "outputs": (list,),
}


def read_build(path: Path) -> dict[str, Any]:
    """Return what ``build.json`` asks for.

    Raises:
        Refused: It is missing or damaged, or names a file outside its folder.
    """
    return read_request(path, _BUILD, ())


def read_request(
    path: Path, kinds: dict[str, tuple[type, ...]], files: tuple[str, ...]
) -> dict[str, Any]:
    """Return what a description asks for.

    Args:
        path: The JSON file.
        kinds: Its keys besides the common ones, with the types that they may have.
        files: Those of its keys that name a file, besides the models.

    Raises:
        Refused: It is missing or damaged, or names a file outside its folder.
    """
    kinds = {**_COMMON, **kinds}
    try:
        request: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if request["version"] != FORMAT:
            raise Refused(f"{path}: has format {request['version']}, not {FORMAT}")
        wrong = [key for key, kind in kinds.items() if not isinstance(request[key], kind)]
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError) as error:
        raise Refused(f"{path}: is damaged ({error!r}): copy the bundle again") from error
    if wrong:
        raise Refused(f"{path}: {wrong[0]} cannot be {request[wrong[0]]!r}")
    for name in (request[key] for key in ("model", "float_model", *files)):
        if name is not None and Path(name).name != name:
            raise Refused(f"{path}: {name!r} must be in the folder itself")
    return request


def read_samples(
    path: Path, request: dict[str, Any]
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield inputs and the float model's outputs of each sample, by name.

    Raises:
        Refused: The file is damaged or does not belong to ``build.json``.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            for sample in range(request["samples"]):
                feeds = {n: archive[f"{sample}.input.{i}"] for i, n in enumerate(request["inputs"])}
                outputs = enumerate(request["outputs"])
                yield feeds, {n: archive[f"{sample}.output.{i}"] for i, n in outputs}
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise Refused(f"{path}: {error}; copy the bundle again") from error


def node_errors(messages: list[str]) -> list[dict[str, str]]:
    """Return the messages of the builder that name a node; the operator it does not say."""
    found = [(message, _NODE.search(message)) for message in messages]
    return [
        {"node": node.group(1), "operator": "", "message": message}
        for message, node in found
        if node
    ]


def fitting(
    name: str, shape: tuple[int, ...], profiles: dict[str, list[list[int]]]
) -> list[tuple[int, ...]]:
    """Return the least, best and largest shape of an input.

    Args:
        name: The input.
        shape: As the model has it, -1 for a dynamic dimension.
        profiles: Input to its three shapes.

    Raises:
        Refused: There are none, or they contradict the model.
    """
    if name not in profiles:
        raise Refused(f"{name}: {list(shape)} has dynamic dimensions: give it a profile (--shapes)")
    shapes = [tuple(each) for each in profiles[name]]
    fits = len(shapes) == 3 and all(_fits(each, shape) for each in shapes)
    if not fits or not all(a <= b <= c for a, b, c in zip(*shapes)):  # noqa: B905
        raise Refused(
            f"{name}: the profile {profiles[name]} does not fit the model's {list(shape)}"
        )
    return shapes


def _fits(sizes: tuple[object, ...], shape: tuple[int, ...]) -> bool:
    """Return whether these are sizes of the shape, which has -1 for what is dynamic."""
    whole = all(isinstance(size, int) and size >= 0 for size in sizes)
    same = all(want in {-1, size} for want, size in zip(shape, sizes))  # noqa: B905
    return whole and same and len(sizes) == len(shape)


def concluded(path: Path, result: dict[str, Any], work: Callable[[], int]) -> int:
    """Do the work of a script and write what came of it.

    Args:
        path: Of ``result.json``.
        result: Filled in by the work; says why, where something is refused.
        work: Returns the exit code.

    Returns:
        The exit code; 2 where something is refused.
    """
    try:
        code = work()
    except Refused as error:
        result.pop("engine", None)
        result.update(status="refused", message=str(error), errors=error.errors)
        sys.stderr.write(f"error: {error}\n")
        code = 2
    try:
        write(path, json.dumps(result, indent=2).encode())
    except Refused as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    return code


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole or not at all.

    Raises:
        Refused: The disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror})") from error
