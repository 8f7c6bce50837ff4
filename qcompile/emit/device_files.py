"""What every bundle carries that is finished on another machine: scripts, samples, a float model.

Beside the model go a description in JSON, ``samples.npz`` (inputs, and what the float model makes
of them), the script that reads them with its helpers, and ``float.onnx`` where a gate on speed is
to be judged there.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.emit.engine_request import FORMAT
from qcompile.emit.ort_file import write_engine
from qcompile.errors import OutputError
from qcompile.progress import Progress
from qcompile.recipe import Gates
from qcompile.samples import Array, Feeds, Port, Samples, content_order
from qcompile.targets.profiles import Profile, fits

HELPERS = ("engine_figures.py", "engine_request.py", "engine_timing.py")
"""Of both scripts; they need numpy alone."""

SAMPLES, FLOAT_MODEL = "samples.npz", "float.onnx"
MOST_SAMPLES = 256
MOST_BYTES = 1 << 25
"""Of ``samples.npz``: it is copied to small devices."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

Runner = Callable[[Feeds], dict[str, Array]]
"""Runs the float model once: feeds to output name to array."""


@dataclass(frozen=True)
class DeviceRequest:
    """Something to finish elsewhere.

    Attributes:
        model: Name of the ONNX file, which is in the folder.
        inputs: The model's inputs.
        outputs: Names of its outputs.
        profiles: Shapes of the dynamic inputs; samples outside of them are left out.
        gates: What it must reach; those that need labels are written down and named as not judged.
        float_model: Name of the float model in the folder, for a gate on speed; None without one.
    """

    scripts: ClassVar[tuple[str, ...]]
    description: ClassVar[str]

    model: str
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    profiles: Mapping[str, Profile] = field(default_factory=dict, kw_only=True)
    gates: Gates = field(default_factory=Gates, kw_only=True)
    float_model: str | None = field(default=None, kw_only=True)

    def own_fields(self) -> Mapping[str, object]:
        """Return what only this kind of description says."""
        raise NotImplementedError

    def shell_scripts(self) -> Mapping[str, str]:
        """Return scripts that are made for the request: name to text."""
        return {}


def write_device_files(
    folder: Path, request: DeviceRequest, samples: Samples, reference: Runner, progress: Progress
) -> None:
    """Write everything but the models into a folder that exists.

    The same request and samples give the same bytes, whatever the order of the samples.

    Args:
        folder: The bundle, with the model in it.
        request: What to finish.
        samples: To compare on; the first by content are taken, as many as fit.
        reference: The float model.
        progress: Told which samples were left out.

    Raises:
        DataError: A sample cannot be read.
        OutputError: The disk refuses.
    """
    try:
        for name in (*request.scripts, *HELPERS):
            (folder / name).write_bytes(Path(__file__).with_name(name).read_bytes())
        for name, text in request.shell_scripts().items():
            (folder / name).write_text(text, "utf-8")
            (folder / name).chmod(0o755)
        count = _write_samples(folder / SAMPLES, request, samples, reference, progress)
        (folder / request.description).write_text(_described(request, count), "utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error


def write_float_model(
    folder: Path, model: ir.Model, gates: Gates, progress: Progress
) -> str | None:
    """Write the float model that an engine's speed is judged against on the device.

    Args:
        folder: The bundle.
        model: The float graph; it is not changed.
        gates: Without one on speed nothing is written.
        progress: Told how large it is.

    Returns:
        The file's name; None without a gate on speed.

    Raises:
        OutputError: The disk refuses.
    """
    if gates.min_speedup is None:
        return None
    write_engine(model.clone(), folder / FLOAT_MODEL)
    size = sum(file.stat().st_size for file in folder.glob(f"{FLOAT_MODEL}*"))
    progress.notice(
        f"{FLOAT_MODEL} ({size / 1e6:.2f} MB) is in the bundle, too: --min-speedup is judged on "
        "the device, against it"
    )
    return FLOAT_MODEL


def _described(request: DeviceRequest, samples: int) -> str:
    described = {
        "version": FORMAT,
        "model": request.model,
        "float_model": request.float_model,
        **request.own_fields(),
        "gates": request.gates.model_dump(exclude_none=True, exclude={"allow_slower"}),
        "samples": samples,
        "inputs": [port.name for port in request.inputs],
        "outputs": list(request.outputs),
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def _write_samples(
    path: Path, request: DeviceRequest, samples: Samples, reference: Runner, progress: Progress
) -> int:
    """Write as many samples as fit, with the float model's outputs; return how many."""
    count = size = outside = 0
    large = False
    with zipfile.ZipFile(path, "w") as archive:
        for index in content_order(samples):
            feeds = samples[index]
            if not fits(feeds, request.profiles):
                outside += 1
                continue
            arrays = dict(_arrays(count, request, feeds, reference(feeds)))
            size += sum(array.nbytes for array in arrays.values())
            large = size > MOST_BYTES
            if large:
                break
            for name, array in arrays.items():
                _write_array(archive, name, array)
            count += 1
            if count == MOST_SAMPLES:
                break
    if outside:
        progress.notice(f"{outside} sample(s) are outside the engine's shapes, not in {path.name}")
    if count + outside < len(samples):
        limit = f"{MOST_BYTES >> 20} MiB" if large else f"{MOST_SAMPLES} samples"
        progress.notice(f"{path.name} holds {count} of {len(samples)} samples: at most {limit}")
    if not count:
        progress.notice(f"{path.name} is empty: the engine will be built, but not compared")
    return count


def _arrays(
    index: int, request: DeviceRequest, feeds: Feeds, outputs: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a sample under the names by which ``read_samples`` finds them."""
    for number, port in enumerate(request.inputs):
        yield f"{index}.input.{number}", _plain(feeds[port.name])
    for number, name in enumerate(request.outputs):
        yield f"{index}.output.{number}", _plain(outputs[name])


def _plain(array: Array) -> Array:
    """Return an array of a type that numpy alone knows: bfloat16 and FP8 become float32."""
    known = array.dtype.kind in "biuf" and array.dtype.isbuiltin == 1
    return np.asarray(array if known else array.astype(np.float32), order="C")


def _write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    """Write one array of an ``.npz``; numpy's own writer would put the time in it."""
    entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
