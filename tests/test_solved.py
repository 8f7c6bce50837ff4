"""Solved weights on disk: whole or not there, and never quietly wrong."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qcompile.errors import OutputError
from qcompile.numerics.groups import SolvedWeight, WeightFormat
from qcompile.solved import SolvedStore

FULL = """
import resource, signal, sys
from pathlib import Path
from qcompile.errors import OutputError
from qcompile.solved import SolvedStore
from tests.test_solved import some
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
store = SolvedStore(Path(sys.argv[1]))
try:
    store.save("w", some(), {})
except OutputError as error:
    print(error)
"""


def some(seed=0, *, order=False, scaled=False, scale_type="float32"):
    rng = np.random.default_rng(seed)
    form = WeightFormat(3, 16, symmetric=False, scale_type=scale_type)
    return SolvedWeight(
        form,
        rng.integers(0, 8, (5, 40)).astype(np.uint8),
        rng.uniform(0.1, 1, (5, 3)).astype(scale_type),
        rng.integers(0, 8, (5, 3)).astype(np.uint8),
        rng.permutation(40) if order else None,
        rng.uniform(0.5, 2, 40).astype(np.float32) if scaled else None,
    )


def same(a, b):
    if a.format != b.format:
        return False
    names = ("codes", "scales", "zeros", "order", "input_scale")
    for x, y in ((getattr(a, name), getattr(b, name)) for name in names):
        if (x is None) != (y is None):
            return False
        if x is not None and (x.dtype != y.dtype or not np.array_equal(x, y)):
            return False
    return True


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("scale_type", ["float32", "float16"])
def test_what_is_saved_comes_back(tmp_path, order, scaled, scale_type):
    weight = some(1, order=order, scaled=scaled, scale_type=scale_type)
    SolvedStore(tmp_path / "a" / "b").save("w", weight, {"bits": 3, "errors": {"rtn": 0.5}})
    store = SolvedStore(tmp_path / "a" / "b")
    assert same(store.load("w"), weight)
    assert store.record("w") == {"bits": 3, "errors": {"rtn": 0.5}}


@pytest.mark.parametrize(
    "name", ["", ".", "../../escape", "/etc/passwd", "a/b:c", "x" * 5000, "\N{SNOWMAN}\0\n"]
)
def test_any_name_stays_in_the_folder(tmp_path, name):
    store = SolvedStore(tmp_path / "store")
    assert name not in store
    store.save(name, some(), {})
    assert name in store
    assert f"{name}x" not in store
    assert same(store.load(name), some())
    assert [path.parent for path in tmp_path.rglob("*.npz")] == [tmp_path / "store"]


def test_the_same_weight_gives_the_same_bytes_and_the_last_one_counts(tmp_path):
    a, b = SolvedStore(tmp_path / "a"), SolvedStore(tmp_path / "b")
    a.save("w", some(1), {"n": 1})
    a.save("w", some(2), {"n": 2})
    b.save("w", some(2), {"n": 2})
    (first,), (second,) = (list(store.folder.iterdir()) for store in (a, b))
    assert first.read_bytes() == second.read_bytes()
    assert same(a.load("w"), some(2))


def damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "empty":
        data = bytearray()
    elif how == "cut":
        data = data[: len(data) // 2]
    elif how == "cut a little":
        data = data[:-1]
    elif how == "other file":
        data = bytearray(b"\x93NUMPY nonsense" * 9)
    elif how == "text":
        data = bytearray(b"hello")
    elif how == "an array":
        file = io.BytesIO()
        np.save(file, np.zeros(3))
        data = file.getvalue()
    else:
        data[how] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "cut", "cut a little", "other file", "text", "an array"])
def test_a_damaged_weight_is_named(tmp_path, how):
    store = SolvedStore(tmp_path)
    store.save("model.layers.0.up", some(), {"bits": 3})
    (path,) = tmp_path.iterdir()
    damaged(path, how)
    for read in (store.load, store.record):
        with pytest.raises(OutputError, match=r"'model.layers.0.up' is lost or damaged") as found:
            read("model.layers.0.up")
        assert "\n" not in str(found.value)
        assert str(tmp_path) in str(found.value)


def test_no_flipped_byte_gives_another_weight(tmp_path):
    store, weight = SolvedStore(tmp_path), some(order=True, scaled=True)
    store.save("w", weight, {"bits": 3})
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        damaged(path, position)
        try:
            found, record = store.load("w"), store.record("w")
        except OutputError:
            continue
        finally:
            path.write_bytes(whole)
        # what zip keeps twice or not at all (dates, the copies of names) may change
        assert same(found, weight)
        assert record == {"bits": 3}


def test_a_lost_weight_is_named(tmp_path):
    with pytest.raises(OutputError, match="'up' is lost or damaged"):
        SolvedStore(tmp_path).load("up")


def test_half_a_weight_is_none(tmp_path):
    store = SolvedStore(tmp_path)
    store.save("w", some(), {})
    (path,) = tmp_path.iterdir()
    path.rename(path.with_suffix(".half"))
    assert "w" not in SolvedStore(tmp_path)
    store.save("w", some(), {})
    assert [p.suffix for p in tmp_path.iterdir()] == [".npz"]


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: cannot be made \(File exists\)"):
        SolvedStore(tmp_path / "file")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path}: cannot be written (File too large)"
    assert not list(tmp_path.iterdir())
