"""Bad input, as processes: one clear line, exit code 2, nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from tests.cli.conftest import Run
from tests.cli.nets import model_of, perceptron, write_data

Spoil = Callable[[Path], None]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a model and data, all of it good."""
    onnx.save(perceptron(16), tmp_path / "net.onnx")
    write_data(tmp_path / "data")
    return tmp_path


def refused(run: Run, folder: Path, named: str, *arguments: str) -> None:
    """Assert that a command ends with one line that names the culprit, and leaves no trace."""
    before = tree(folder)
    done = run(*arguments, "--quiet")
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert named in done.err
    assert tree(folder) == before


def tree(folder: Path) -> dict[Path, int]:
    """Return everything in a folder; files with the time of their last change."""
    paths = folder.rglob("*")
    return {path: path.lstat().st_mtime_ns if path.is_file() else 0 for path in paths}


def build_refused(run: Run, folder: Path, named: str, *arguments: str) -> None:
    refused(run, folder, named, "build", "net.onnx", "--int8", "-o", "out", *arguments)


@pytest.mark.slow
def test_the_good_inputs_build(run: Run, inputs: Path) -> None:
    done = run("build", "net.onnx", "--calib", "data", "-o", "out", "--allow-slower")
    assert (done.code, (inputs / "out" / "model.onnx").exists()) == (0, True), done.err


# -- the model -------------------------------------------------------------------------------


def no_model(folder: Path) -> None:
    (folder / "net.onnx").unlink()


def model_is_a_folder(folder: Path) -> None:
    no_model(folder)
    (folder / "net.onnx").mkdir()


def model_is_text(folder: Path) -> None:
    (folder / "net.onnx").write_text("not a model, but long enough to look like one")


def model_is_empty(folder: Path) -> None:
    (folder / "net.onnx").write_bytes(b"")


def model_is_truncated(folder: Path) -> None:
    content = (folder / "net.onnx").read_bytes()
    (folder / "net.onnx").write_bytes(content[: len(content) // 2])


def weight_is_nan(folder: Path) -> None:
    model = onnx.load(folder / "net.onnx")
    weight = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[3, 2] = np.nan
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "w1"))
    onnx.save(model, folder / "net.onnx")


def weight_claims_too_much(folder: Path) -> None:
    model = onnx.load(folder / "net.onnx")
    model.graph.initializer[1].dims[0] = 1 << 40
    onnx.save(model, folder / "net.onnx")


def operator_is_unknown(folder: Path) -> None:
    onnx.save(perceptron(16, op="Frobnicate"), folder / "net.onnx")


def domain_is_unknown(folder: Path) -> None:
    onnx.save(perceptron(16, op="Frobnicate", domain="my.ops"), folder / "net.onnx")


def save_external(folder: Path, **options: str) -> onnx.ModelProto:
    """Store the weights beside the model; return the model as it is in the file."""
    (folder / "net.onnx").unlink()
    onnx.save(
        perceptron(64, **options),
        folder / "net.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return onnx.load(folder / "net.onnx", load_external_data=False)


def external_is_missing(folder: Path) -> None:
    save_external(folder)
    (folder / "weights.bin").unlink()


def external_is_short(folder: Path) -> None:
    save_external(folder)
    content = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(content[: len(content) // 2])


def external_is_above(folder: Path) -> None:
    model = save_external(folder)
    place = next(p for p in model.graph.initializer[1].external_data if p.key == "location")
    place.value = "../secret.bin"
    onnx.save(model, folder / "net.onnx")
    (folder.parent / "secret.bin").write_bytes(b"\0" * 65536)


def external_is_a_link_outside(folder: Path) -> None:
    save_external(folder)
    (folder.parent / "secret.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("../secret.bin")


BAD_MODELS = [
    (no_model, "net.onnx: no such file"),
    (model_is_a_folder, "net.onnx: is a folder"),
    (model_is_text, "net.onnx: not an ONNX file"),
    (model_is_empty, "net.onnx: the file is empty"),
    (model_is_truncated, "net.onnx: not an ONNX file, or cut short"),
    (weight_is_nan, "w1 holds NaN"),
    (weight_claims_too_much, "tensor w1 [1099511627776, 16] needs"),
    (operator_is_unknown, "Frobnicate"),
    (domain_is_unknown, "my.ops.Frobnicate"),
    (external_is_missing, "external data of tensor w0 is missing: no file"),
    (external_is_short, "of weights.bin, which has only"),
    (external_is_above, "points outside the model's folder: '../secret.bin'"),
    (external_is_a_link_outside, "points outside the model's folder: 'weights.bin'"),
]


@pytest.mark.slow
def test_good_external_data_and_an_operator_of_the_runtime_build(run: Run, inputs: Path) -> None:
    save_external(inputs, op="QuickGelu", domain="com.microsoft")
    done = run("build", "net.onnx", "--calib", "data", "-o", "out", "--allow-slower", "--json")
    assert done.code == 0, done.err
    report = done.json()
    size = sum((inputs / name).stat().st_size for name in ("net.onnx", "weights.bin"))
    assert report["model"]["bytes"] == size
    assert "QuickGelu" in {node["op"] for node in report["plan"]["float_nodes"]}


# -- the data --------------------------------------------------------------------------------


def no_data(folder: Path) -> None:
    for path in (folder / "data").iterdir():
        path.unlink()


def data_of_other_kinds(folder: Path) -> None:
    no_data(folder)
    (folder / "data" / "readme.md").write_text("soon")


def spoilt(**arrays: np.ndarray) -> Spoil:
    def spoil(folder: Path) -> None:
        np.savez(folder / "data" / "07.npz", **arrays)

    return spoil


def data_is_truncated(folder: Path) -> None:
    content = (folder / "data" / "07.npz").read_bytes()
    (folder / "data" / "07.npz").write_bytes(content[: len(content) // 2])


def data_is_pickled(folder: Path) -> None:
    no_data(folder)
    np.save(folder / "data" / "07.npy", np.array([Planted(folder / "planted")], object))


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def data_is_pictures(folder: Path) -> None:
    no_data(folder)
    Image.new("L", (8, 1)).save(folder / "data" / "a.png")


def data_is_mixed(folder: Path) -> None:
    np.save(folder / "data" / "07.npy", GOOD)


GOOD = np.ones((1, 8), np.float32)


BAD_DATA = [
    (no_data, "data: no samples"),
    (data_of_other_kinds, "data: no samples"),
    (spoilt(z=GOOD), "07.npz: input 'x' is missing; the sample has z"),
    (spoilt(x=GOOD, z=GOOD), "07.npz: the model has no input 'z'"),
    (spoilt(x=np.ones((1, 9), np.float32)), "07.npz: input 'x' must have shape (n, 8), not (1, 9)"),
    (spoilt(x=np.ones((1, 8), np.complex64)), "07.npz: input 'x' must be float32, not complex64"),
    (spoilt(x=np.full((1, 8), "1")), "07.npz: input 'x' must be float32, not <U1"),
    (spoilt(x=np.full((1, 8), np.nan, np.float32)), "07.npz: input 'x' is nan"),
    (spoilt(x=np.array([{"a": 1}], object)), "07.npz: x.npy: holds Python objects"),
    (data_is_truncated, "07.npz: cannot be read"),
    (data_is_pickled, "07.npy: holds Python objects"),
    (data_is_pictures, "data: pictures need [preprocess] in a recipe"),
    (data_is_mixed, "data: mixes npy and npz files"),
]


@pytest.mark.parametrize(("spoil", "named"), BAD_MODELS + BAD_DATA)
def test_bad_model_or_data(run: Run, inputs: Path, spoil: Spoil, named: str) -> None:
    spoil(inputs)
    build_refused(run, inputs, named, "--calib", "data")
    assert not (inputs / "planted").exists()


# -- the output ------------------------------------------------------------------------------


def output_exists(folder: Path) -> None:
    (folder / "out").mkdir()


def output_is_a_file(folder: Path) -> None:
    (folder / "out").write_text("mine")


@pytest.mark.parametrize("spoil", [output_exists, output_is_a_file])
@pytest.mark.parametrize("arguments", [(), ("--force",)], ids=["plain", "force"])
def test_output_that_is_no_bundle_stays(
    run: Run, inputs: Path, spoil: Spoil, arguments: tuple[str, ...]
) -> None:
    spoil(inputs)
    build_refused(run, inputs, "out", "--calib", "data", *arguments)


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("net.onnx/out", "net.onnx: cannot be made"),
        ("/proc/nowhere/out", "/proc/nowhere: cannot be made"),
        ("/proc/out", "/proc/out: cannot be written"),
        ("/", "/: cannot be an output folder"),
    ],
)
def test_output_that_cannot_be_made(run: Run, inputs: Path, output: str, named: str) -> None:
    build_refused(run, inputs, named, "--calib", "data", "-o", output)


# -- the options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--dynamic"),
        (("--calib", "nowhere"), "nowhere"),
        (("--calib", "data", "--eval", "nowhere"), "nowhere"),
        (("--calib", "no.such.module:samples"), "no.such.module"),
        (("--calib", "data", "--target", "abacus"), "abacus"),
        (("--calib", "data", "--plan", "none.json"), "none.json"),
        (("--calib", "data", "--plan", "net.onnx"), "net.onnx"),
        (("--calib", "data", "--recipe", "none.toml"), "none.toml"),
        (("--calib", "data", "--metric", "no.such.module:score"), "no.such.module"),
    ],
)
def test_bad_options(run: Run, inputs: Path, arguments: tuple[str, ...], named: str) -> None:
    build_refused(run, inputs, named, *arguments)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("sceme = 'int8'", "sceme"),
        ("[calibration]\nsampels = 3", "calibration.sampels"),
        ("[calibration]\nmethod = 'kl'", "calibration.method"),
        ("[gates]\nmin_agreement = 2", "gates.min_agreement"),
        ("scheme = ", "recipe.toml"),
    ],
)
def test_bad_recipe(run: Run, inputs: Path, content: str, named: str) -> None:
    (inputs / "recipe.toml").write_text(content)
    build_refused(run, inputs, named, "--calib", "data", "--recipe", "recipe.toml")


# -- the other commands ----------------------------------------------------------------------


INSPECT = ("inspect", "net.onnx")
CALIBRATE = ("calibrate", "net.onnx", "--calib", "data")
COMPARE = ("compare", "good.onnx", "net.onnx", "--data", "data")
BENCH = ("bench", "good.onnx", "net.onnx")


# Each command meets a model that cannot be read, and one that cannot be run.
@pytest.mark.parametrize(
    ("arguments", "spoil"),
    [
        (INSPECT, no_model),
        (INSPECT, domain_is_unknown),
        (CALIBRATE, model_is_truncated),
        (CALIBRATE, weight_is_nan),
        (COMPARE, no_model),
        (COMPARE, weight_is_nan),
        (BENCH, model_is_truncated),
        (BENCH, domain_is_unknown),
    ],
)
def test_bad_model_in_other_commands(
    run: Run, inputs: Path, spoil: Spoil, arguments: tuple[str, ...]
) -> None:
    (inputs / "good.onnx").write_bytes((inputs / "net.onnx").read_bytes())
    spoil(inputs)
    refused(run, inputs, "net.onnx", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [("compare", "net.onnx", "other.onnx", "--data", "data"), ("bench", "net.onnx", "other.onnx")],
)
def test_models_with_other_inputs_are_refused(
    run: Run, inputs: Path, arguments: tuple[str, ...]
) -> None:
    nodes = [helper.make_node("Identity", ["z"], ["y"])]
    other = model_of(nodes, [])
    other.graph.input[0].name = "z"
    other.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(other, inputs / "other.onnx")
    named = "other.onnx: its inputs (z float32) are not those of net.onnx (x float32)"
    refused(run, inputs, named, *arguments)
