"""Every form in which calibration data may come, and what is said of data that looks wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.cli import process
from tests.cli.conftest import Run
from tests.cli.nets import CALIB, MODEL, arrays
from tests.cli.process import answer

COUNT = 40
IMAGES = arrays(CALIB)["image"][:COUNT]
"""float32 (40, 1, 8, 8): sixteenths from 0 to 1, so that pictures can hold them exactly."""


def archives(folder: Path) -> tuple[str, ...]:
    """A file each; one holds a batch."""
    (folder / "data").mkdir()
    np.savez(folder / "data" / "rest.npz", image=IMAGES[10:])
    for index in range(10):
        np.savez(folder / "data" / f"{index}.npz", image=IMAGES[index : index + 1], label=index)
    return ("data",)


def plain_arrays(folder: Path) -> tuple[str, ...]:
    (folder / "data").mkdir()
    for index in range(4):
        np.save(folder / "data" / f"{index}.npy", IMAGES[10 * index : 10 * index + 10])
    return ("data",)


def pictures(folder: Path) -> tuple[str, ...]:
    (folder / "data").mkdir()
    for index, image in enumerate(IMAGES):
        Image.fromarray((16 * image[0]).astype(np.uint8)).save(folder / "data" / f"{index}.png")
    (folder / "recipe.toml").write_text("[preprocess]\nchannels = 'gray'\nscale = 0.0625\n")
    return ("data", "--recipe", "recipe.toml")


def yielded(folder: Path) -> tuple[str, ...]:
    np.save(folder / "images.npy", IMAGES)
    (folder / "digits_data.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for image in np.load('images.npy'):\n"
        "        yield {'image': image[None]}\n"
    )
    return ("digits_data:samples",)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose cache knows the statistics."""
    return tmp_path_factory.mktemp("known")


@pytest.fixture(scope="module")
def expected(known: Path) -> Any:
    """What ``calibrate`` says of all images in one archive."""
    np.savez(known / "all.npz", image=IMAGES)
    return answer(process.run(known, "calibrate", MODEL, "--calib", "all.npz", "--json", "-q"))


@pytest.mark.parametrize("form", [archives, plain_arrays, pictures, yielded])
def test_every_form_gives_the_same_statistics(
    known: Path, expected: Any, form: Callable[[Path], tuple[str, ...]]
) -> None:
    folder = known / form.__name__
    folder.mkdir()
    command = ("calibrate", MODEL, "--calib", *form(folder), "--json", "-q")
    found = answer(process.run(folder, *command, QCOMPILE_CACHE=str(known / "cache")))
    assert (found["found"], found["samples"]) == (COUNT, expected["samples"]) == (40, 32)
    assert found["tensors"] == expected["tensors"]
    assert found["reused"] == len(found["tensors"]) > 0  # known by their content


def nhwc_net() -> onnx.ModelProto:
    """Two convolutions behind an input ``x`` (n, 8, 8, 3)."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(64, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(size=(64, 64, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64, 4, 4])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_pictures_are_preprocessed_as_the_recipe_says(run: Run, tmp_path: Path) -> None:
    onnx.save(nhwc_net(), tmp_path / "net.onnx")
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    expected = []
    for index in range(COUNT):
        halves = rng.integers(0, 256, (10, 12, 3), np.uint8)
        pixels = halves.repeat(2, axis=0).repeat(2, axis=1)  # halved by "nearest": as it was
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
        blue_first = halves[1:9, 2:10, ::-1].astype(np.float32) * np.float32(0.5)
        expected.append((blue_first - np.float32([1, 2, 3])) / np.float32([4, 5, 8]))
    np.savez(tmp_path / "expected.npz", x=np.array(expected, np.float32))
    (tmp_path / "recipe.toml").write_text(
        "[preprocess]\nresize = 10\ncrop = 8\ninterpolation = 'nearest'\nchannels = 'bgr'\n"
        "scale = 0.5\nmean = [1, 2, 3]\nstd = [4, 5, 8]\nlayout = 'nhwc'\n"
    )
    command = ("calibrate", "net.onnx", "--json", "-q", "--calib")
    by_recipe = answer(run(*command, "pictures", "--recipe", "recipe.toml"))["tensors"]
    by_numpy = answer(run(*command, "expected.npz"))["tensors"]
    assert [row["name"] for row in by_recipe] == [row["name"] for row in by_numpy] != []
    assert ranges(by_recipe) == pytest.approx(ranges(by_numpy), rel=1e-4)


def ranges(tensors: Any) -> list[float]:
    return [row[end] for row in tensors for end in ("low", "high")]


NOISE = np.random.default_rng(0).normal(size=(COUNT, 8, 8, 3)).astype(np.float32)
SMOOTH = NOISE.cumsum(axis=1).cumsum(axis=2)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (SMOOTH, []),
        (
            SMOOTH[:1].repeat(COUNT, axis=0),
            [
                "all 40 samples are equal",
                "no samples to compare on: give --eval, or more calibration samples",
            ],
        ),
        (SMOOTH[:5], ["too few samples (5): ranges are shaky below 32"]),
        (NOISE, ["input 'x' looks like random noise; calibrate on real data"]),
    ],
    ids=["good", "equal", "few", "noise"],
)
def test_data_that_looks_wrong_is_noticed(
    run: Run, tmp_path: Path, samples: np.ndarray, said: list[str]
) -> None:
    onnx.save(nhwc_net(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=samples)
    done = run("calibrate", "net.onnx", "--calib", "data.npz")
    assert done.code == 0, done.err
    notices = done.out.partition("\nnotices ")[2].splitlines()
    assert [notice.strip().removeprefix("- ") for notice in notices] == said
