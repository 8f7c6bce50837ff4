"""Files that compare, bench and inspect are given: for this machine, for another, or no graphs."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.bundle import MANIFEST, Manifest, file_digest
from qcompile.commands import bench, compare, inspect
from qcompile.emit.ort_mobile import write_ort
from qcompile.errors import ModelError
from qcompile.opened import Opened
from qcompile.progress import StageLog
from qcompile.runtime.host import host_cpu
from qcompile.runtime.ort import Session
from tests.emit.nets import convolution, float_model, samples

NO_ARM = pytest.mark.skipif(host_cpu() == "arm", reason="this machine is what the file is for")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the float model, its int8 form in both formats, and samples."""
    folder = tmp_path_factory.mktemp("bundle")
    float_model(folder)
    onnx.save(convolution(codes=True), folder / "model.onnx")
    write_ort(folder / "model.onnx", folder, "Fixed")
    np.savez(folder / "data.npz", x=np.concatenate([feeds["x"] for feeds in samples()]))
    return folder


def list_for(folder: Path, target: str, device: str) -> None:
    """Write the manifest of a bundle for a device."""
    files = {path.name: file_digest(path) for path in folder.iterdir() if path.name != MANIFEST}
    manifest = Manifest(recipe={"target": target}, cpu={"engine": device}, artifacts=files)
    (folder / MANIFEST).write_text(manifest.text(), "utf-8")


def noted(found) -> str:
    return " ".join(found.notices)


@NO_ARM
@pytest.mark.parametrize(
    ("target", "device"),
    [("ort-mobile", "xnnpack"), ("ort-cpu", "arm"), ("tensorrt", "87"), ("ort-cuda", "cuda")],
)
def test_what_is_for_another_machine_is_simulated_and_not_timed(folder, target, device):
    list_for(folder, target, device)
    opened = Opened.of(folder / "model.onnx", 1, StageLog(None))
    feeds = {"x": np.load(folder / "data.npz")["x"][:1]}
    simulated = Session(folder / "model.onnx", optimize=False).run(feeds)["y"]
    np.testing.assert_array_equal(opened.session.run(feeds)["y"], simulated)
    found = compare(folder / "float.onnx", folder / "model.onnx", folder / "data.npz")
    assert f"built for {target} ({device}): simulated here" in noted(found)
    assert found.comparison.outputs[0].sqnr_db > 20
    with pytest.raises(ModelError, match=rf"built for {target} \({device}\)"):
        bench([folder / "float.onnx", folder / "model.onnx"])


@pytest.mark.parametrize("manifest", ["none", "here", "another's", "broken"])
def test_what_is_for_this_machine_or_for_none_is_run_as_an_engine(folder, manifest):
    list_for(folder, "ort-mobile" if manifest == "another's" else "ort-cpu", "vnni")
    place = folder / MANIFEST
    if manifest == "none":
        place.unlink()
    if manifest == "broken":
        place.write_text("{", "utf-8")
    if manifest == "another's":
        listed = Manifest.model_validate_json(place.read_text("utf-8"))
        place.write_text(listed.model_copy(update={"artifacts": {}}).text(), "utf-8")
    found = compare(folder / "float.onnx", folder / "model.onnx", folder / "data.npz")
    assert "simulated" not in noted(found)


def test_files_in_ort_format_are_compared_and_not_planned(folder):
    (folder / MANIFEST).unlink(missing_ok=True)
    found = compare(folder / "float.onnx", folder / "model.ort", folder / "data.npz")
    assert "in ORT format: run here by the CPU's kernels" in noted(found)
    assert found.comparison.outputs[0].sqnr_db > 20
    with pytest.raises(ModelError, match="name the ONNX file"):
        inspect(folder / "model.ort")


@pytest.mark.parametrize("name", ["model.engine", "model.bin"])
def test_engines_of_tensorrt_are_refused_with_what_can_be_run(folder, name):
    path = folder / name
    path.write_bytes(b"vtrt" + bytes(64))
    for command in (
        lambda: compare(folder / "float.onnx", path, folder / "data.npz"),
        lambda: bench([path]),
        lambda: inspect(path),
    ):
        with pytest.raises(ModelError, match=r"a TensorRT engine: .*model\.onnx is the graph"):
            command()
    path.unlink()
    with pytest.raises(ModelError, match="no such file"):
        inspect(path)
