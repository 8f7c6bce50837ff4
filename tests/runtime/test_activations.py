"""The store of activations: what goes in comes out, what was not kept is not there."""

import json
import resource
import signal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.errors import EngineError, OutputError
from qcompile.runtime.activations import ActivationStore

DTYPES = (np.float16, np.float32, np.float64, np.int64, np.int8, np.uint8, np.bool_)


@given(
    arrays=st.sampled_from(DTYPES).flatmap(
        lambda dtype: st.lists(
            hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)),
            min_size=1,
            max_size=5,
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_what_goes_in_comes_out(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("store")
    store = ActivationStore(folder)
    for index, array in enumerate(arrays):
        store.put("a/b", index, array)
    store.keep()
    for again in (store, ActivationStore(folder)):
        assert again.names == ("a/b",)
        assert again.holds("a/b", len(arrays))
        assert not again.holds("a/b", len(arrays) + 1)
        for index, array in enumerate(arrays):
            found = again.get("a/b", index)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()
            assert not found.flags.writeable


def test_large_arrays_are_mapped_and_outlive_their_file(tmp_path):
    store = ActivationStore(tmp_path / "new" / "folder")
    big = np.arange(1 << 18, dtype=np.float32).reshape(4, -1)
    half = big[:, ::2].astype(ml_dtypes.bfloat16)
    for index in range(3):
        store.put("x", index, big[:, ::2] + index)
        store.put("y", index, half)
    store.keep()
    found, other = store.get("x", 2), store.get("y", 1)
    assert isinstance(found.base, np.memmap)
    store.drop("x")
    store.drop("x")
    np.testing.assert_array_equal(found, big[:, ::2] + 2)
    np.testing.assert_array_equal(other, half)
    assert store.bytes() == 3 * half.nbytes
    assert len(list(store.folder.iterdir())) == 2
    with pytest.raises(OutputError, match="'x' is not there"):
        store.get("x", 0)


def test_rank_is_known_where_samples_agree(tmp_path):
    store = ActivationStore(tmp_path)
    for index, shape in enumerate([(1, 2), (3, 4)]):
        store.put("same", index, np.zeros(shape, np.float16))
        store.put("other", index, np.zeros(shape[:index], np.int64))
    store.keep()
    assert store.type("same")[0].name == "FLOAT16"
    assert store.type("same")[1] == (None, None)
    assert store.type("other")[1] is None


def test_what_was_not_kept_is_swept_away(tmp_path):
    store = ActivationStore(tmp_path)
    store.put("kept", 0, np.ones(3))
    store.keep()
    store.put("half", 0, np.ones(1 << 20))
    again = ActivationStore(tmp_path)  # as after a kill
    assert again.names == ("kept",)
    assert len(list(tmp_path.iterdir())) == 2
    again.put("half", 0, np.ones(3))
    again.discard()
    assert len(list(tmp_path.iterdir())) == 2
    assert again.names == ("kept",)
    store.discard()


@pytest.mark.parametrize("damage", ["short", "index", "no data", "lie"])
def test_damage_is_as_if_it_was_never_there(tmp_path, damage):
    store = ActivationStore(tmp_path)
    store.put("x", 0, np.ones(100))
    store.keep()
    (data,), (index,) = tmp_path.glob("*.data"), tmp_path.glob("*.json")
    if damage == "short":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "index":
        index.write_text('{"name": "x", "dtype"')
    elif damage == "no data":
        data.unlink()
    else:
        shapes = json.loads(index.read_text()) | {"shapes": [[10**12]]}
        index.write_text(json.dumps(shapes))
    assert ActivationStore(tmp_path).names == ()
    assert list(tmp_path.iterdir()) == []


def test_lost_data_is_an_error_with_a_way_out(tmp_path):
    store = ActivationStore(tmp_path)
    store.put("x", 0, np.ones(1 << 14))
    store.keep()
    next(tmp_path.glob("*.data")).write_bytes(b"12")
    with pytest.raises(OutputError, match="remove the folder"):
        store.get("x", 0)
    with pytest.raises(OutputError, match="sample 1"):
        store.get("x", 1)


def test_wrong_types(tmp_path):
    store = ActivationStore(tmp_path)
    with pytest.raises(EngineError, match="'s' holds strings"):
        store.put("s", 0, np.array(["a"], object))
    store.put("x", 0, np.ones(2))
    with pytest.raises(EngineError, match="expected is DOUBLE"):
        store.put("x", 1, np.ones(2, np.float32))
    store.put("x", 0, np.ones(3))
    store.keep()
    assert store.get("x", 0).size == 3


def test_full_disk_is_one_clear_line(tmp_path):
    """A limit on file size is what a test can have of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = ActivationStore(tmp_path)

    def fill():
        for index in range(3):
            store.put("x", index, np.ones(1 << 16))
        store.keep()

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot be kept \(File too large\).* Free space"):
            fill()
        store.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be kept"):
        ActivationStore(tmp_path / "file" / "store")
