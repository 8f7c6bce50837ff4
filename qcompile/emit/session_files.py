"""Writes what a machine with onnxruntime-gpu needs to run and judge a bundle by itself.

Beside the model go ``session_options.json`` (providers with their options), ``samples.npz``
(inputs, and what the float model makes of them) and ``run_session.py`` with its helpers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qcompile.emit.engine_request import FORMAT
from qcompile.emit.tensorrt_files import Runner, write_samples
from qcompile.errors import OutputError
from qcompile.progress import Progress
from qcompile.recipe import Gates
from qcompile.runtime.provider import Provider
from qcompile.samples import Port, Samples
from qcompile.targets.profiles import Profile

SCRIPTS = ("run_session.py", "engine_figures.py", "engine_request.py")
CONTEXT = "model_ctx.onnx"


@dataclass(frozen=True)
class SessionRequest:
    """A session to make elsewhere.

    Attributes:
        model: Name of the ONNX file, which is in the folder.
        inputs: The model's inputs.
        outputs: Names of its outputs.
        provider: Who runs it; its paths are relative to the folder.
        profiles: Shapes that its engines take; samples outside of them are left out.
        context: An EPContext model is to be written and run.
        gates: What it must reach; those that need labels or a timed float model are written down
            and named as not judged.
    """

    model: str
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    provider: Provider
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    context: bool = False
    gates: Gates = field(default_factory=Gates)


def write_session_files(
    folder: Path, request: SessionRequest, samples: Samples, reference: Runner, progress: Progress
) -> None:
    """Write everything but the model into a folder that exists.

    The same request and samples give the same bytes, whatever the order of the samples.

    Args:
        folder: The bundle, with the model in it.
        request: What to run.
        samples: To compare on; the first by content are taken, as many as fit.
        reference: The float model.
        progress: Told which samples were left out.

    Raises:
        DataError: A sample cannot be read.
        OutputError: The disk refuses.
    """
    try:
        for name in SCRIPTS:
            (folder / name).write_bytes(Path(__file__).with_name(name).read_bytes())
        count = write_samples(folder / "samples.npz", request, samples, reference, progress)
        (folder / "session_options.json").write_text(_description(request, count), "utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error


def _description(request: SessionRequest, samples: int) -> str:
    described = {
        "version": FORMAT,
        "model": request.model,
        "providers": [[name, dict(options)] for name, options in request.provider.chain],
        "session": dict(request.provider.entries),
        "rewrites": request.provider.rewrites,
        "context": CONTEXT if request.context else None,
        "gates": request.gates.model_dump(exclude_none=True, exclude={"allow_slower"}),
        "samples": samples,
        "inputs": [port.name for port in request.inputs],
        "outputs": list(request.outputs),
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"
