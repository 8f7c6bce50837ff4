"""The shapes that an engine is built for: given, or those of the samples."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.data import Split
from qcompile.errors import RecipeError
from qcompile.frontend import Loaded, load
from qcompile.profiles import LOOKED_AT, profiles_of
from qcompile.progress import Silent
from qcompile.report.schema_source import Data
from qcompile.samples import InMemory
from qcompile.targets.profiles import Profile
from tests.planning.tools import graph_of


def loaded(folder: Path, inputs: str = "float[N, 4, H] x", body: str = "y = Relu(x)") -> Loaded:
    path = folder / "net.onnx"
    ir.save(graph_of(inputs, body), path)
    return load(path, "tensorrt", "int8", threads=1, dump_dir=None, progress=Silent())


def data(calibration: list[dict], evaluation: list[dict] | None = None) -> Split:
    def samples(shapes: list[dict]) -> InMemory | None:
        feeds = [{n: np.zeros(s, np.float32) for n, s in one.items()} for one in shapes]
        return InMemory(feeds) if feeds else None

    return Split(samples(calibration), samples(evaluation or []), Data())


def test_bounds_of_all_samples_and_the_most_frequent_shape(tmp_path):
    seen = [{"x": (1, 4, 9)}, {"x": (2, 4, 5)}, {"x": (2, 4, 5)}]
    progress = Silent()
    found = profiles_of(None, loaded(tmp_path), data(seen, [{"x": (3, 4, 7)}]), progress)
    assert found == {"x": Profile((1, 4, 5), (2, 4, 5), (3, 4, 9))}
    assert progress.notices == [
        "the engine takes the shapes that the samples have: --shapes 'x:1x4x5,2x4x5,3x4x9'"
    ]
    told = progress.notices[0].partition("--shapes '")[2].removesuffix("'")
    assert profiles_of(told, loaded(tmp_path), data([]), Silent()) == found


def test_only_inputs_with_dynamic_axes_have_a_profile(tmp_path):
    net = loaded(tmp_path, "float[2, 3] x, float[M, 3] z", "y = Add(x, z)")
    found = profiles_of(None, net, data([{"x": (2, 3), "z": (1, 3)}]), Silent())
    assert found == {"z": Profile((1, 3), (1, 3), (1, 3))}
    given = profiles_of("x:2x3,2x3,2x3 z:1x3,2x3,4x3", net, data([]), Silent())
    assert given == {"z": Profile((1, 3), (2, 3), (4, 3))}


def test_a_fixed_model_and_a_scalar_need_none(tmp_path):
    progress = Silent()
    net = loaded(tmp_path, "float[2, 3] x, float z", "y = Add(x, z)")
    assert profiles_of(None, net, data([]), progress) == {}
    assert progress.notices == []


def test_no_more_samples_than_needed_are_read(tmp_path):
    class Counted(InMemory):
        read = 0

        def __getitem__(self, index):
            Counted.read += 1
            return super().__getitem__(index)

    many = Counted([{"x": np.zeros((1, 4, 2), np.float32)}] * (LOOKED_AT + 50))
    profiles_of(None, loaded(tmp_path), Split(many, None, Data()), Silent())
    assert Counted.read == LOOKED_AT


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("z:1x4x2,1x4x2,1x4x2", "--shapes z: no such input; there are: x"),
        ("x:1x4,1x4,1x4", "--shapes x: 1x4 has 2 dimensions, the model's input (Nx4xH) has 3"),
        ("x:1x5x2,1x5x2,1x5x2", "dimension 1 of 1x5x2 is 5, but the model fixes it to 4"),
        ("x:2x4x2,1x4x2,3x4x2", "it must not shrink"),
        ("x:1x4x2", "1 shapes, not three"),
        (None, "input x has dynamic axes: give --shapes NAME:MIN,BEST,MAX, or samples"),
    ],
)
def test_shapes_that_are_refused(tmp_path, shapes, message):
    with pytest.raises(RecipeError) as found:
        profiles_of(shapes, loaded(tmp_path), data([]), Silent())
    assert message in str(found.value)


def test_every_dynamic_input_needs_its_shapes(tmp_path):
    net = loaded(tmp_path, "float[N, 3] x, float[N, 3] z", "y = Add(x, z)")
    with pytest.raises(RecipeError, match="--shapes: input z has dynamic axes: give its shapes"):
        profiles_of("x:1x3,1x3,1x3", net, data([]), Silent())
