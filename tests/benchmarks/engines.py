"""Builds the engines that are compared: the float model, the peers' and qcompile's."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from qcompile.recipe import Gates, Recipe
from tests.benchmarks.peers import PEERS, Feeds

NAMES = ("FP", *PEERS, "qcompile")
console = Console(stderr=True)


def build_all(
    model: Path, feeds: Sequence[Feeds], folder: Path, *, transformer: bool = False
) -> dict[str, Path]:
    """Return the engines that could be built, by name; peers' files in the folder are kept.

    What fails is printed with its reason and left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    built = {"FP": model}
    for name, peer in PEERS.items():
        path = folder / f"{model.stem}.{name.replace(' ', '-').lower()}.onnx"
        started = time.perf_counter()
        try:
            if not path.exists():
                peer(model, feeds, path, transformer)
            _load(path)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way
            console.print(f"{model.stem}: {name}: {type(error).__name__}: {error}", markup=False)
            continue
        built[name] = path
        console.print(f"{model.stem}: {name}: {time.perf_counter() - started:.1f} s")
    try:
        built["qcompile"] = compiled(model, feeds, folder)
    except Exception as error:  # noqa: BLE001 - the row then shows a gap, the other models go on
        console.print(f"{model.stem}: qcompile: {type(error).__name__}: {error}", markup=False)
    return built


def compiled(
    model: Path, feeds: Sequence[Feeds], folder: Path, recipe: Recipe | None = None
) -> Path:
    """Build with qcompile, by its defaults or a recipe; a slow engine is kept, to be measured."""
    import qcompile

    samples = sample_folder(feeds, folder / f"{model.stem}-calib")
    output = folder / f"{model.stem}-qcompile"
    recipe = recipe or Recipe(gates=Gates(allow_slower=True))
    started = time.perf_counter()
    qcompile.build(model, calib=samples, output=output, recipe=recipe, force=True)
    console.print(f"{model.stem}: qcompile: {time.perf_counter() - started:.1f} s")
    return output / "model.onnx"


def sample_folder(feeds: Sequence[Feeds], folder: Path) -> Path:
    """Write the feeds as one .npz each, once; return the folder."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for index, feed in enumerate(feeds):
            np.savez(folder / f"{index:05d}.npz", **feed)
    return folder


def _load(path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
