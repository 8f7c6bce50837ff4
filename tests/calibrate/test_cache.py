"""The store: what is damaged is noticed and never used; nothing is pickled."""

import numpy as np
import pytest

from qcompile.calibrate.cache import StatisticsStore, default_cache
from qcompile.progress import Silent
from qcompile.statistics import BINS, TensorStatistics


def tensor(seed, *, counted=True):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 2**20, BINS) if counted else np.zeros(0, np.int64)
    return TensorStatistics(-1.5, 2.25, int(counts.sum()), unbounded=not counted, counts=counts)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path):
    store, heard = StatisticsStore(tmp_path / "new"), Silent()
    tensors = {"a": tensor(1), "ünï/2:0": tensor(2, counted=False), "": tensor(3)}
    store.save("k", tensors, heard)
    loaded = store.load("k", heard)
    assert loaded.keys() == tensors.keys()
    for name, wanted in tensors.items():
        np.testing.assert_array_equal(loaded[name].counts, wanted.counts)
        assert loaded[name].counts.dtype == np.int64
        assert (loaded[name].low, loaded[name].high) == (wanted.low, wanted.high)
        assert (loaded[name].elements, loaded[name].unbounded) == (
            wanted.elements,
            wanted.unbounded,
        )
    assert not heard.notices


def test_counts_beyond_32_bits_are_kept(tmp_path):
    counts = np.zeros(BINS, np.int64)
    counts[5] = 2**40
    store = StatisticsStore(tmp_path)
    store.save("k", {"a": TensorStatistics(0, 1, 2**40, unbounded=False, counts=counts)}, Silent())
    assert store.load("k", Silent())["a"].counts[5] == 2**40


def test_saving_adds_and_a_range_never_replaces_a_histogram(tmp_path):
    store = StatisticsStore(tmp_path)
    store.save("k", {"a": tensor(1)}, Silent())
    store.save("k", {"b": tensor(2), "a": tensor(1, counted=False)}, Silent())
    loaded = store.load("k", Silent())
    assert loaded["a"].counts.size == loaded["b"].counts.size == BINS


def test_an_unknown_key_is_empty(tmp_path):
    assert StatisticsStore(tmp_path).load("k", Silent()) == {}


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def garbage(path):
    path.write_bytes(b"not a zip")


def other_arrays(path):
    np.savez(path, names=np.zeros(3))


def pickled(path):
    np.savez(path, names=np.asarray([{}], object))


@pytest.mark.parametrize("damage", [truncated, flipped, garbage, other_arrays, pickled])
def test_a_damaged_entry_is_ignored_with_a_notice(tmp_path, damage):
    store, heard = StatisticsStore(tmp_path), Silent()
    store.save("k", {"a": tensor(1)}, heard)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    assert store.load("k", heard) == {}
    assert len(heard.notices) == 1
    assert "damaged" in heard.notices[0]
    store.save("k", {"a": tensor(1)}, heard)
    assert store.load("k", Silent())["a"].elements == tensor(1).elements


def test_a_histogram_that_does_not_add_up_is_refused(tmp_path):
    store, heard = StatisticsStore(tmp_path), Silent()
    wrong = TensorStatistics(0, 1, 7, unbounded=False, counts=np.ones(BINS, np.int64))
    store.save("k", {"a": wrong}, heard)
    assert store.load("k", heard) == {}
    assert "does not add up" in heard.notices[0]


@pytest.mark.parametrize("damage", [truncated, flipped, garbage, other_arrays])
def test_a_damaged_checkpoint_starts_anew(tmp_path, damage):
    arrays = {"done": np.zeros(4, np.bool_), "counts": np.arange(100)}
    checkpoint = StatisticsStore(tmp_path).checkpoint("k", "stage", ["a"])
    checkpoint.save(arrays, Silent())
    assert checkpoint.load(arrays, Silent()) is not None
    damage(checkpoint.path)
    assert checkpoint.load(arrays, Silent()) is None
    checkpoint.remove()
    checkpoint.remove()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_notice(tmp_path):
    (tmp_path / "file").write_text("x")
    heard = Silent()
    StatisticsStore(tmp_path / "file").save("k", {"a": tensor(1)}, heard)
    assert "not kept" in heard.notices[0]


def test_the_place_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("QCOMPILE_CACHE")
    assert default_cache().parts[-2:] == (".cache", "qcompile")
