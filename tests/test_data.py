"""Splitting samples: by content, never by order; nothing is calibrated on and compared on."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.data import Split, split_data
from qcompile.errors import DataError
from qcompile.frontend import Loaded, load
from qcompile.progress import Silent
from qcompile.recipe import Calibration, Recipe
from qcompile.runtime.made_up import made_up_feeds
from qcompile.samples import Port, Subset
from tests.planning.tools import graph_of, normal


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    ir.save(graph_of("float[N, 4] x", "[n] y = MatMul(x, w)", w=normal(0, 4, 4)), path)
    return load(path, "ort-cpu", "int8", threads=1, dump_dir=None, progress=Silent())


def folder(path: Path, seeds: list[int], names: list[int] | None = None) -> Path:
    """Write one sample for each seed; equal seeds are equal samples."""
    path.mkdir()
    for name, seed in zip(names or range(len(seeds)), seeds, strict=True):
        np.savez(path / f"{name:03d}.npz", x=normal(seed, 1, 4))
    return path


def digests(samples: Subset | None) -> list[str]:
    return [] if samples is None else [samples.digest(i) for i in range(len(samples))]


def split(
    loaded: Loaded,
    calib: Path | None,
    evaluation: Path | None = None,
    progress: Silent | None = None,
    **recipe: object,
) -> Split:
    given_recipe = Recipe.model_validate(recipe)
    return split_data(
        str(calib) if calib else None,
        str(evaluation) if evaluation else None,
        loaded,
        given_recipe,
        progress or Silent(),
    )


def test_a_share_is_held_back(loaded, tmp_path):
    done = split(loaded, folder(tmp_path / "a", list(range(20))))
    used, held = digests(done.calibration), digests(done.evaluation)
    assert (len(used), len(held)) == (16, 4)
    assert not set(used) & set(held)
    assert len({*used, *held}) == 20
    assert done.facts.held_back
    assert (done.facts.found, done.facts.calibration_samples) == (20, 16)
    assert done.facts.evaluation_samples == 4


def test_the_split_depends_on_content_not_on_order(loaded, tmp_path):
    one = split(loaded, folder(tmp_path / "a", list(range(12))))
    other = split(loaded, folder(tmp_path / "b", list(range(12)), list(range(12))[::-1]))
    assert digests(one.calibration) == digests(other.calibration)
    assert digests(one.evaluation) == digests(other.evaluation)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_equal_samples_stay_together(loaded, tmp_path, share):
    seeds = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0, 0]
    recipe = {"calibration": {"holdback": share}}
    done = split(loaded, folder(tmp_path / "a", seeds), **recipe)
    used, held = set(digests(done.calibration)), set(digests(done.evaluation))
    assert used
    assert not used & held
    assert len(used | held) == 5


def test_a_share_of_nothing_holds_nothing_back(loaded, tmp_path):
    done = split(loaded, folder(tmp_path / "a", list(range(8))), calibration={"holdback": 0})
    assert (len(done.calibration), done.evaluation) == (8, None)


def test_the_limit_takes_the_same_samples_of_any_order(loaded, tmp_path):
    calibration = {"calibration": {"samples": 5}}
    one = split(loaded, folder(tmp_path / "a", list(range(12))), **calibration)
    other = split(
        loaded, folder(tmp_path / "b", list(range(12)), [*range(6, 12), *range(6)]), **calibration
    )
    assert len(digests(one.calibration)) == 5
    assert digests(one.calibration) == digests(other.calibration)
    progress = Silent()
    split(loaded, tmp_path / "a", progress=progress, calibration={"samples": 99})
    assert any("--calib-samples 99: there are only 10" in n for n in progress.notices)


def test_evaluation_samples_that_calibration_saw_are_left_out(loaded, tmp_path):
    calib = folder(tmp_path / "a", list(range(6)))
    progress = Silent()
    done = split(loaded, calib, folder(tmp_path / "b", [4, 5, 6, 7]), progress)
    assert len(digests(done.calibration)) == 6, "nothing is held back beside --eval"
    assert len(digests(done.evaluation)) == 2
    assert not done.facts.held_back
    assert any("2 evaluation samples are calibration samples too" in n for n in progress.notices)
    progress = Silent()
    nothing = split(loaded, calib, folder(tmp_path / "c", [1, 2]), progress)
    assert nothing.evaluation is None
    assert any("no samples to compare on" in n for n in progress.notices)


def test_static_int8_never_invents_data(loaded, tmp_path):
    with pytest.raises(DataError, match=r"static int8 needs calibration data.*--dynamic"):
        split(loaded, None)
    progress = Silent()
    done = split(loaded, None, progress=progress, scheme="int8-dynamic")
    assert done.calibration is None
    assert done.evaluation is None
    assert any("no samples to compare on" in n for n in progress.notices)
    only = split(loaded, None, folder(tmp_path / "e", [1, 2]), scheme="int8-dynamic")
    assert only.calibration is None
    assert len(digests(only.evaluation)) == 2


def test_one_sample_cannot_be_split(loaded, tmp_path):
    progress = Silent()
    done = split(loaded, folder(tmp_path / "a", [3]), progress=progress)
    assert len(digests(done.calibration)) == 1
    assert done.evaluation is None
    assert any("no samples to compare on" in n for n in progress.notices)


def test_default_of_the_recipe_holds_a_fifth_back():
    assert Calibration().holdback == 0.2


DIMS = st.one_of(st.integers(1, 4), st.just("N"), st.none())
KINDS = st.sampled_from(["float32", "float64", "float16", "int64", "int32", "uint8", "bool", "O"])


@given(st.lists(DIMS, max_size=4), KINDS)
def test_made_up_feeds_have_the_ports_shapes_and_types(dims, kind):
    port = Port(name="x", dtype=np.dtype(kind), shape=tuple(dims))
    first, second = made_up_feeds((port,))["x"], made_up_feeds((port,))["x"]
    assert first.shape == tuple(d if isinstance(d, int) else 1 for d in dims)
    assert first.dtype == np.dtype(kind)
    np.testing.assert_array_equal(first, second)
    if not np.issubdtype(first.dtype, np.floating):
        assert all(not element for element in first.reshape(-1).tolist())


def test_made_up_feeds_of_an_unknown_rank():
    port = Port(name="x", dtype=np.dtype(np.float32), shape=None)
    assert made_up_feeds((port,))["x"].shape == ()
