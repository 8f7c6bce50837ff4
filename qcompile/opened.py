"""Models that are run as they lie there, for compare and bench: what each was built for counts.

The manifest of a bundle says what its files are for. A graph for another machine is simulated, as
the build did it; a file that only the device can run is refused with what can be run in its place.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from qcompile.bundle import ENGINE, MANIFEST, Manifest
from qcompile.errors import ModelError
from qcompile.progress import Progress
from qcompile.runtime.host import host_cpu
from qcompile.runtime.ort import Session
from qcompile.samples import Port
from qcompile.source.files import model_files
from qcompile.source.onnx_file import check_file, load_model
from qcompile.source.ports import with_head_sizes

_MANIFEST_BYTES = 1 << 26
_ORT_MARK = slice(4, 8), b"ORTM"
_TENSORRT_MARK = slice(1, 4), b"trt"
_TENSORRT_SUFFIXES = {".engine", ".plan", ".trt"}


@dataclass(frozen=True)
class Opened:
    """A model to run, after the checks that any model goes through.

    Attributes:
        path: Its file.
        bytes: Of its file and what external data is in.
        session: Runs it.
        inputs: As far as the file knows their sizes.
        foreign: What it was built for, where this machine is something else; empty otherwise.
    """

    path: Path
    bytes: int
    session: Session
    inputs: tuple[Port, ...]
    foreign: str = ""

    @classmethod
    def of(cls, path: Path, threads: int, progress: Progress) -> "Opened":
        """Open a file; say where it is run in another way than on its device.

        Raises:
            ModelError: Not a model, or one that does not run here.
            EngineError: ONNX Runtime refuses it.
        """
        refuse_tensorrt(path)
        foreign = _foreign(path)
        if is_ort(path):
            progress.notice(
                f"{path}: in ORT format: run here by the CPU's kernels, without the rewrites that "
                "it may have saved, which ONNX Runtime does not check"
            )
            session = Session(path, threads=threads, optimize=False)
            return cls(path, path.stat().st_size, session, session.inputs, foreign)
        loaded = load_model(path, progress)
        if foreign:
            progress.notice(
                f"{path}: built for {foreign}: simulated here, with ONNX Runtime's optimizations "
                "off, as the build did it"
            )
        size = sum(file.stat().st_size for file in model_files(path))
        session = Session(path, threads=threads, optimize=not foreign)
        return cls(path, size, session, with_head_sizes(session.inputs, loaded), foreign)


def is_ort(path: Path) -> bool:
    """Say whether a file is a model in ORT format."""
    place, mark = _ORT_MARK
    return _head(path)[place] == mark


def refuse_tensorrt(path: Path) -> None:
    """Refuse a TensorRT engine: it loads only where a GPU of its kind is.

    Raises:
        ModelError: The file is one.
    """
    place, mark = _TENSORRT_MARK
    if path.suffix in _TENSORRT_SUFFIXES or _head(path)[place] == mark:
        check_file(path)
        raise ModelError(
            f"{path}: a TensorRT engine: it cannot be loaded without the GPU that it is for; "
            f"{path.parent / ENGINE} is the graph that it was built from, which can be simulated"
        )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError:
        return b""  # whoever reads the model says what is wrong


def _foreign(path: Path) -> str:
    """Return target and device of the bundle that holds a file; nothing if that is this machine."""
    manifest = _manifest_of(path)
    if manifest is None:
        return ""
    target, device = str(manifest.recipe.get("target", "")), manifest.cpu.get("engine", "")
    arm = host_cpu() == "arm"
    here = {"onnx": True, "ort-cpu": arm or device != "arm", "ort-mobile": arm and device == "cpu"}
    return "" if not target or here.get(target, False) else f"{target} ({device})"


def _manifest_of(path: Path) -> Manifest | None:
    """Return the manifest beside a file, if it lists the file."""
    place = path.parent / MANIFEST
    try:
        if place.stat().st_size > _MANIFEST_BYTES:
            return None
        found = Manifest.model_validate_json(place.read_bytes())
        listed = found.artifacts.get(path.name)
        return found if listed is not None and listed.bytes == path.stat().st_size else None
    except (OSError, ValidationError):
        return None
