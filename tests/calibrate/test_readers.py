"""Folders, archives, pictures and callables; what is damaged, hostile or does not fit is named."""

import gc
import io
import struct
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from qcompile.calibrate import images, npz, recent
from qcompile.calibrate.checks import check_samples
from qcompile.calibrate.npz import read_npy, read_npz
from qcompile.calibrate.readers import open_samples
from qcompile.calibrate.split import rows_are_independent
from qcompile.errors import DataError
from qcompile.progress import Silent
from qcompile.recipe import Preprocess
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory, Port
from tests.assets import asset, needs_assets
from tests.calibrate.nets import elementwise, model_of

F32, I64, U8 = np.dtype("float32"), np.dtype("int64"), np.dtype("uint8")
X = (Port("x", F32, ("N", 3)),)
RNG = np.random.default_rng(5)


def reals(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# --- what is read


def test_a_folder_of_npz_with_labels(tmp_path):
    arrays = [reals(1, 3) for _ in range(4)]
    for number, array in enumerate(arrays):
        np.savez(tmp_path / f"{number}.npz", x=array, label=number)
    samples = open_samples(tmp_path, X)
    assert len(samples) == 4
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(samples[index]["x"], array)
        assert samples[index].keys() == {"x"}
        assert samples.label(index) == index
    assert samples.name(2).endswith("2.npz")
    assert samples.digest(1) == InMemory([{"x": arrays[1]}]).digest(0)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_npz_is_a_batch(tmp_path, save):
    batch = reals(5, 3)
    save(tmp_path / "all.npz", x=batch, label=np.arange(5) * 10)
    samples = open_samples(tmp_path / "all.npz", X)
    assert len(samples) == 5
    np.testing.assert_array_equal(samples[3]["x"], batch[3:4])
    assert samples.label(3) == 30
    assert samples.name(3).endswith("all.npz[3]")


def test_npy_files_feed_the_only_input(tmp_path):
    np.save(tmp_path / "a.npy", reals(1, 3))
    np.save(tmp_path / "b.npy", np.asfortranarray(reals(4, 3)))
    (tmp_path / "labels.csv").write_text("file,class\na.npy,7\n")
    (tmp_path / "notes.txt").write_text("hello")
    heard = Silent()
    samples = open_samples(tmp_path, X, progress=heard)
    assert len(samples) == 5
    assert samples.label(0) == 7
    assert samples.label(1) is None
    assert len(heard.notices) == 1
    assert "notes.txt" in heard.notices[0]
    two = (*X, Port("z", F32, (1,)))
    with pytest.raises(DataError, match="inputs x, z"):
        open_samples(tmp_path, two)


def test_a_model_that_fixes_its_batch_takes_rows(tmp_path):
    np.savez(tmp_path / "b.npz", x=reals(6, 3))
    assert len(open_samples(tmp_path, (Port("x", F32, (1, 3)),))) == 6


def test_scalars_stay_with_each_row_and_other_layouts_stay_whole(tmp_path):
    np.savez(tmp_path / "b.npz", x=reals(6, 3), rate=np.asarray(16000))
    samples = open_samples(tmp_path, (*X, Port("rate", I64, ())))
    assert len(samples) == 6
    assert samples[5]["rate"] == 16000
    state = Port("state", F32, (2, "N", 4))
    np.savez(tmp_path / "b.npz", x=reals(6, 3), state=reals(2, 6, 4))
    assert len(open_samples(tmp_path, (*X, state))) == 1


MIXING = """<ir_version: 10, opset_import: ["" : 21]>
    net (float[N, M] x) => (float[N, M] y) {
        axes = Constant<value_ints = [0]>()
        mean = ReduceMean(x, axes)
        y = Sub(x, mean)
    }"""


def test_rows_that_depend_on_each_other_are_not_cut(tmp_path):
    np.savez(tmp_path / "b.npz", x=reals(6, 3))
    apart, mixing = Session(elementwise("Exp(x)")), Session(model_of(MIXING))
    feeds = {"x": reals(6, 3)}
    assert rows_are_independent(apart, feeds)
    assert not rows_are_independent(mixing, feeds)
    assert len(open_samples(tmp_path, apart.inputs, session=apart)) == 6
    heard = Silent()
    assert len(open_samples(tmp_path, mixing.inputs, progress=heard, session=mixing)) == 1
    assert "other outputs than its rows" in heard.notices[0]


def test_a_row_of_the_batch_that_was_tried_whole_has_a_digest_of_its_own(tmp_path):
    row = reals(1, 3)
    np.savez(tmp_path / "b.npz", x=np.repeat(row, 6, axis=0))
    apart = Session(elementwise("Exp(x)"))
    samples = open_samples(tmp_path, apart.inputs, session=apart)
    assert {samples.digest(i) for i in range(6)} == {InMemory([{"x": row}]).digest(0)}


@pytest.fixture
def batches(tmp_path):
    """Samples in four files of five rows, and the files that were read, labels apart."""
    for number in range(4):
        np.savez(tmp_path / f"{number}.npz", x=reals(5, 3), label=np.arange(5) + 10 * number)
    opened, loads, labels = open_samples(tmp_path, X, progress=Silent()), [], []

    def load(path):
        loads.append(path.name)
        return opened.load(path)

    def load_label(path):
        labels.append(path.name)
        return opened.load_label(path)

    return replace(opened, load=load, load_label=load_label), loads, labels


MIXED = [row + 5 * file for row in range(5) for file in range(4)]


def test_rows_of_several_files_are_asked_for_in_any_order_and_each_file_is_read_once(batches):
    samples, loads, labels = batches
    assert [int(samples.label(i)) for i in MIXED] == [i % 5 + i // 5 * 10 for i in MIXED]
    assert len({samples[i]["x"].tobytes() for i in MIXED}) == 20
    names = ["0.npz", "1.npz", "2.npz", "3.npz"]
    assert (sorted(loads), sorted(labels)) == (names, names)
    assert not samples.progress.notices


def test_what_is_kept_of_files_is_limited_with_a_notice(batches, monkeypatch):
    monkeypatch.setattr(recent, "KEPT_BYTES", 2 * 5 * 3 * 4)
    samples, loads, _ = batches
    for index in range(20):
        samples[index]
    assert len(loads) == 4
    for index in MIXED:
        samples[index]
    assert len(loads) > 12
    assert len(samples.progress.notices) == 1
    assert "over and over" in samples.progress.notices[0]


@pytest.mark.parametrize("count", [4, 6])
def test_a_batch_has_as_many_labels_as_rows(tmp_path, count):
    np.savez(tmp_path / "b.npz", x=reals(5, 3), label=np.arange(count))
    samples = open_samples(tmp_path, X)
    with pytest.raises(DataError, match=f"b.npz: 'label' has {count} rows, the inputs have 5"):
        samples.label(0)


@pytest.mark.parametrize(
    ("dtype", "what"), [("O", "strings"), (np.dtype([("a", "f4")]), "'a'"), ("V2", "V2")]
)
def test_inputs_that_no_sample_can_hold_say_how_to_build(tmp_path, dtype, what):
    np.savez(tmp_path / "a.npz", x=reals(1, 3))
    port = Port("x", np.dtype(dtype), ("N", 3))
    with pytest.raises(DataError, match=f"input 'x' takes .*{what}.*build with --dynamic"):
        open_samples(tmp_path, (port,))


def test_lossless_conversions_are_noticed_once(tmp_path):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=np.ones((1, 3)), n=np.ones(1, np.int32))
    heard = Silent()
    samples = open_samples(tmp_path, (*X, Port("n", I64, (None,))), progress=heard)
    assert [samples[i]["x"].dtype for i in range(3)] == [F32] * 3
    assert samples[0]["n"].dtype == I64
    assert len(heard.notices) == 2


def test_a_callable_is_called_once_and_its_files_go(tmp_path, monkeypatch):
    (tmp_path / "feed_me.py").write_text(
        "import numpy as np\n"
        "calls = []\n"
        "def data():\n"
        "    calls.append(1)\n"
        "    for i in range(4):\n"
        "        yield {'x': np.full((1, 3), i, np.float32), 'label': i}\n"
        "def broken():\n"
        "    yield {'x': np.zeros((1, 3))}\n"
        "    raise OSError('no more')\n"
        "def lists():\n"
        "    return [[1, 2]]\n"
        "def objects():\n"
        "    return [{'x': [object()]}]\n"
        "def nothing():\n"
        "    return []\n"
        "def ends():\n"
        "    yield {'x': np.zeros((1, 3))}\n"
        "    raise SystemExit(0)\n"
    )
    (tmp_path / "ends_at_once.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    samples = open_samples("feed_me:data", X)
    assert [float(samples[i]["x"][0, 0]) for i in (3, 0, 3)] == [3, 0, 3]
    assert samples.label(2) == 2
    folder = samples.owner.folder
    assert folder.is_dir()
    del samples
    gc.collect()
    assert not folder.exists()
    for name, message in {
        "broken": "no more",
        "lists": r"lists\[0\]: is list, not a dict",
        "objects": "no array of numbers",
        "nothing": "yields no samples",
        "absent": "cannot be imported",
        "ends": r"failed \(SystemExit: 0\)",
    }.items():
        with pytest.raises(DataError, match=message):
            open_samples(f"feed_me:{name}", X)
    with pytest.raises(DataError, match="cannot be imported"):
        open_samples("no_such_module_here:data", X)
    with pytest.raises(DataError, match=r"cannot be imported \(SystemExit: 0\)"):
        open_samples("ends_at_once:data", X)


# --- pictures

PICTURE = (Port("x", F32, ("N", 3, 4, 6)),)


def picture(path, size=(12, 8), color=(10, 20, 30)):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_pictures_are_preprocessed_in_the_recipes_order(tmp_path):
    picture(tmp_path / "3" / "a.png")
    picture(tmp_path / "11" / "b.png", color=(200, 0, 0))
    preprocess = Preprocess(
        resize=4, crop=(4, 6), channels="bgr", scale=0.5, mean=(1, 2, 3), std=(1, 2, 4)
    )
    samples = open_samples(tmp_path, PICTURE, preprocess)
    found = {int(samples.label(i)): samples[i]["x"] for i in range(2)}
    assert found[3].shape == (1, 3, 4, 6)
    np.testing.assert_allclose(found[3][0, :, 2, 2], [(15 - 1) / 1, (10 - 2) / 2, (5 - 3) / 4])
    np.testing.assert_allclose(found[11][0, :, 0, 0], [-1, -1, (100 - 3) / 4])


def test_crop_is_central_and_layout_and_gray_are_kept(tmp_path):
    ramp = np.arange(100, dtype=np.uint8).reshape(10, 10)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    port = (Port("x", F32, (1, 4, 2, 1)),)
    preprocess = Preprocess(crop=(4, 2), channels="gray", scale=1, layout="nhwc")
    found = open_samples(tmp_path, port, preprocess)[0]["x"]
    np.testing.assert_array_equal(found[0, :, :, 0], ramp[3:7, 4:6])


def test_integer_inputs_take_raw_pixels_alone(tmp_path):
    picture(tmp_path / "a.png", size=(6, 4))
    port = (Port("x", U8, (1, 3, 4, 6)),)
    assert open_samples(tmp_path, port, Preprocess(scale=1))[0]["x"].dtype == U8
    with pytest.raises(DataError, match="set scale = 1"):
        open_samples(tmp_path, port, Preprocess())[0]


def test_pictures_that_cannot_be_used(tmp_path):
    picture(tmp_path / "a.png", size=(6, 4))
    with pytest.raises(DataError, match=r"need \[preprocess\] in a recipe"):
        open_samples(tmp_path, PICTURE)
    with pytest.raises(DataError, match="smaller than the crop"):
        open_samples(tmp_path, PICTURE, Preprocess(crop=99))[0]
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:40])
    with pytest.raises(DataError, match=r"a\.png: cannot be read as a picture"):
        open_samples(tmp_path, PICTURE, Preprocess())[0]
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        open_samples(tmp_path, PICTURE, Preprocess())[0]


@pytest.mark.parametrize("side", [11_000, 40_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side):
    data = io.BytesIO()
    Image.new("1", (8, 8)).save(data, "BMP")
    bomb = bytearray(data.getvalue())
    bomb[18:26] = side.to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(bomb)
    with pytest.raises(DataError, match="pixels"):
        open_samples(tmp_path, PICTURE, Preprocess())[0]


def test_a_thin_picture_is_refused_before_it_is_resized(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 1_000_000)
    Image.new("L", (1, 100)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: 1x100 pixels; resize makes 224x22400"):
        open_samples(tmp_path, PICTURE, Preprocess(resize=224))[0]


def test_pictures_stand_upright_as_exif_says(tmp_path):
    upright = Image.new("RGB", (6, 4))
    upright.paste((250, 0, 0), (0, 0, 6, 2))  # red above
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned back, clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    found = open_samples(tmp_path, PICTURE, Preprocess(scale=1))[0]["x"]
    np.testing.assert_array_equal(found[0, 0], np.repeat([250, 250, 0, 0], 6).reshape(4, 6))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB"])
def test_alpha_that_is_dropped_is_noticed_once(tmp_path, mode):
    for name in "ab":
        Image.new(mode, (6, 4)).save(tmp_path / f"{name}.png")
    heard = Silent()
    samples = open_samples(tmp_path, PICTURE, Preprocess(), heard)
    assert samples[0]["x"].shape == samples[1]["x"].shape
    dropped = [] if mode == "RGB" else ["pictures have an alpha channel: it is dropped"]
    assert heard.notices == dropped


def test_labels_csv_is_checked(tmp_path):
    picture(tmp_path / "a.png", size=(6, 4))
    (tmp_path / "labels.csv").write_text("a.png,3\nb.png,4\n")
    with pytest.raises(DataError, match=r"line 2 names 'b\.png'"):
        open_samples(tmp_path, PICTURE, Preprocess())
    (tmp_path / "labels.csv").write_text("a.png,3\na.png\n")
    with pytest.raises(DataError, match="line 2 is not"):
        open_samples(tmp_path, PICTURE, Preprocess())


# --- what does not fit


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": reals(1, 3)}, "input 'x' is missing; the sample has y"),
        ({"x": reals(1, 3), "y": reals(1, 3)}, "no input 'y'; it needs x"),
        ({"x": reals(3)}, r"shape \(N, 3\), not \(3\); add the batch dimension"),
        ({"x": reals(1, 4)}, r"shape \(N, 3\), not \(1, 4\)"),
        ({"x": np.ones((1, 3), np.uint8)}, "must be float32, not uint8; convert it as in training"),
        ({"x": np.ones((1, 3), np.complex64)}, "must be float32, not complex64"),
        ({"x": np.asarray([[1, np.nan, 2]], np.float32)}, r"'x' is nan at \[0, 1\]"),
        ({"x": np.asarray([[1, 2, -np.inf]], np.float32)}, r"'x' is -inf at \[0, 2\]"),
        ({"x": np.asarray([[1, 2, 1e300]])}, r"'x' is inf at \[0, 2\]"),
    ],
)
def test_samples_that_do_not_fit_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(DataError, match=r"odd\.npz.*" + message):
        check_samples(open_samples(tmp_path, X), X, Silent())


def test_integers_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", n=np.asarray([2**40]))
    with pytest.raises(DataError, match="beyond int32"):
        open_samples(tmp_path, (Port("n", np.dtype("int32"), (None,)),))[0]


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="no samples here"):
        open_samples(tmp_path, X)
    with pytest.raises(DataError, match="no such file"):
        open_samples(tmp_path / "gone", X)
    np.savez(tmp_path / "a.npz", x=reals(1, 3))
    np.save(tmp_path / "a.npy", reals(1, 3))
    with pytest.raises(DataError, match="mixes npy and npz"):
        open_samples(tmp_path, X)


# --- what is damaged or hostile


def member(header_shape, payload, *, name="x.npy", compression=zipfile.ZIP_STORED):
    """Return an archive whose array claims a shape that its payload may not have."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": header_shape}
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr(name, head.getvalue() + payload)
    return out.getvalue()


@pytest.mark.parametrize("shape", [(2**40, 3), (2**62, 2**62, 4), (9, 3), (-1, 3)])
def test_a_header_that_claims_more_than_there_is(tmp_path, shape):
    (tmp_path / "a.npz").write_bytes(member(shape, bytes(12)))
    with pytest.raises(DataError, match=r"a\.npz"):
        open_samples(tmp_path, X)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), ",
        "((((" * 50,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9 ** 9,)}\n",
        "  x\n y\n",
        "{'descr': ((),), 'fortran_order': False, 'shape': (1,)}\n",
        "{'descr': {}, 'fortran_order': False, 'shape': (1,)}\n",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}\n",
        "{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,)}\n",
        "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,)}\n",
    ],
)
def test_damaged_headers_are_named(tmp_path, header):
    size = struct.pack("<H", len(header))
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + header.encode() + bytes(64))
    with pytest.raises(DataError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")


def test_any_damage_to_a_header_is_an_error_or_harmless(tmp_path):
    np.save(tmp_path / "a.npy", reals(1, 3))
    whole = (tmp_path / "a.npy").read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(0, 70)] = rng.integers(0, 256)
        (tmp_path / "a.npy").write_bytes(data)
        with warnings.catch_warnings(action="ignore"):
            try:
                read_npy(tmp_path / "a.npy")
            except DataError:
                refused += 1
    assert refused > 200


def test_a_zip_bomb_is_measured_against_memory(tmp_path, monkeypatch):
    rows = 2**21
    bomb = member((rows, 3), bytes(12 * rows), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 40_000
    (tmp_path / "a.npz").write_bytes(bomb)
    monkeypatch.setattr(npz, "free_memory", lambda: 10 * rows)
    with pytest.raises(DataError, match="more than half of the free memory"):
        open_samples(tmp_path, X)


def test_a_directory_that_lies_about_sizes(tmp_path):
    data = bytearray(member((1, 3), bytes(12)))
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match="claims more data than the file has"):
        read_npz(tmp_path / "a.npz")


def test_pickles_are_refused_and_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))

    evil = np.asarray([Evil()], object)
    np.savez(tmp_path / "a.npz", x=evil)
    np.save(tmp_path / "b.npy", evil)
    with pytest.raises(DataError, match="never loaded"):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match="never loaded"):
        read_npy(tmp_path / "b.npy")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kept", [0, 10, 100, 500, -30, -1])
def test_truncated_files_are_named(tmp_path, kept):
    np.savez(tmp_path / "a.npz", x=reals(100, 3))
    np.save(tmp_path / "b.npy", reals(100, 3))
    for name, read in (("a.npz", read_npz), ("b.npy", read_npy)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(DataError, match=name):
            read(path)


def test_a_flipped_byte_fails_the_checksum(tmp_path):
    np.savez(tmp_path / "a.npz", x=reals(100, 3))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[600] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        read_npz(tmp_path / "a.npz")


def test_foreign_members_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(member((1, 3), bytes(12), name="../x.txt"))
    with pytest.raises(DataError, match=r"\.\./x\.txt is not an array"):
        read_npz(tmp_path / "a.npz")


# --- what looks wrong


def notices(feeds, inputs):
    heard = Silent()
    check_samples(InMemory(feeds), inputs, heard)
    return heard.notices


WIDE = (Port("x", F32, (1, 3, 16, 16)),)


@pytest.mark.parametrize("draw", [RNG.random, RNG.standard_normal])
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 200)])
def test_noise_is_noticed(draw, shape):
    inputs = (Port("x", F32, shape),)
    feeds = [{"x": (3 * draw(shape) - 1).astype(np.float32)} for _ in range(40)]
    assert any("looks like random noise" in text for text in notices(feeds, inputs))


def test_equal_and_few_samples_are_noticed():
    smooth = np.cumsum(reals(1, 3, 16, 16), axis=3)
    assert notices([{"x": smooth}] * 40, WIDE) == ["all 40 samples are equal"]
    assert notices([{"x": smooth}, {"x": smooth + 1}], WIDE) == [
        "too few samples (2): ranges are shaky below 32"
    ]
    with pytest.raises(DataError, match="no samples"):
        notices([], WIDE)


def test_in_memory_samples_are_checked_too():
    with pytest.raises(DataError, match=r"sample 1: input 'x' must be float32, not float64"):
        notices([{"x": reals(1, 3)}, {"x": np.ones((1, 3))}], X)


@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize(
    ("file", "key", "divisor"),
    [
        ("cifar10_dev.npz", "calib_x", 255),
        ("kws_mfcc.npz", "calib_x", 1),
        ("kwt_mfcc40.npz", "calib_x", 1),
        ("espcn_x3.npz", "calib_lr", 255),
        ("kws_audio_int16.npz", "calib_x", 32768),
    ],
)
def test_real_data_is_not_taken_for_noise(file, key, divisor):
    with np.load(asset("data", file)) as archive:
        if key not in archive:
            pytest.skip(f"{file} has no {key}")
        data = archive[key][:64]
    feeds = [{"x": row[None].astype(np.float32) / divisor} for row in data]
    inputs = (Port("x", F32, feeds[0]["x"].shape),)
    assert not any("noise" in text for text in notices(feeds, inputs))
