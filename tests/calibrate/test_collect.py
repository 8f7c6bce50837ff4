"""Collection: exact against numpy, the same bits for any order, workers or interruption."""

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.calibrate import collect as collect_module
from qcompile.calibrate.cache import StatisticsStore
from qcompile.calibrate.collect import collect
from qcompile.calibrate.readers import open_samples
from qcompile.errors import DataError, StatisticsError
from qcompile.numerics.histogram import add_to_histogram
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory, Subset
from qcompile.statistics import BINS
from tests.assets import asset, needs_assets
from tests.calibrate.nets import CONV_NAMES, conv_net, elementwise, model_of, random_samples, same


class Listener(Silent):
    """Remembers the steps."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def step(self, stage, done, total):
        self.steps.append((stage, done, total))


@pytest.fixture(scope="module")
def reference():
    """Return model, samples and their statistics with one worker and no cache."""
    model, samples = conv_net(), random_samples(12)
    return model, samples, collect(model, samples, CONV_NAMES)


def test_statistics_are_those_of_the_values(reference):
    model, samples, statistics = reference
    fetched = model.clone()
    values = {v.name: v for node in fetched.graph for v in node.outputs}
    fetched.graph.outputs[:] = [values[name] for name in CONV_NAMES[1:]]
    session = Session(fetched, optimize=False)
    outputs = [session.run(feeds) | dict(feeds) for feeds in samples.feeds]
    for name in CONV_NAMES:
        every = np.concatenate([output[name].ravel() for output in outputs])
        found = statistics.tensors[name]
        assert (found.low, found.high) == (float(every.min()), float(every.max()))
        assert found.elements == every.size == found.counts.sum()
        counts = np.zeros(BINS, np.int64)
        add_to_histogram(counts, every, found.low, found.high)
        np.testing.assert_array_equal(found.counts, counts)
    assert statistics.samples == 12
    assert statistics.tensors["r"].low == 0.0


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(12)), jobs=st.sampled_from([1, 2, 4]))
def test_order_and_workers_change_no_bit(reference, order, jobs):
    model, samples, wanted = reference
    assert same(collect(model, Subset(samples, order), CONV_NAMES, jobs=jobs), wanted)


@pytest.mark.parametrize("size", [2, 5, 12])
def test_batch_size_changes_no_bit(reference, tmp_path, size):
    model, samples, wanted = reference
    for start in range(0, 12, size):
        batch = [feeds["x"] for feeds in samples.feeds[start : start + size]]
        np.savez(tmp_path / f"{start:02d}.npz", x=np.concatenate(batch))
    session = Session(model)
    batched = open_samples(tmp_path, session.inputs, session=session)
    assert len(batched) == 12
    assert same(collect(model, batched, CONV_NAMES, jobs=2), wanted)


def test_groups_change_no_bit(reference, monkeypatch):
    model, samples, wanted = reference
    monkeypatch.setattr(collect_module, "FETCH_BYTES", 4 * 8 * 16 * 16)
    heard = Listener()
    assert same(collect(model, samples, CONV_NAMES, progress=heard), wanted)
    assert len({stage for stage, _, _ in heard.steps}) > 2


def test_the_model_is_left_alone(reference):
    model = reference[0]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert len(list(model.graph)) == 5


def test_ranges_alone(reference):
    model, samples, wanted = reference
    heard = Listener()
    found = collect(model, samples, ["a", "a", "x"], histograms=False, progress=heard)
    assert list(found.tensors) == ["a", "x"]
    assert found.tensors["a"].counts.size == 0
    assert found.tensors["a"].high == wanted.tensors["a"].high
    assert heard.steps[0] == ("calibrate: ranges", 0, 12)
    assert heard.steps[-1] == ("calibrate: ranges", 12, 12)


def matrices(*arrays):
    return InMemory([{"x": np.asarray(array, np.float32)} for array in arrays])


def test_infinite_elements_make_a_tensor_unbounded():
    found = collect(elementwise("Log(x)"), matrices([[1, 2]], [[0, 3]]), ["x", "y"])
    assert found.tensors["y"].unbounded
    assert (found.tensors["y"].low, found.tensors["y"].high) == (0, 0)
    assert found.tensors["y"].counts.size == 0
    assert found.tensors["x"].counts.sum() == 4


@pytest.mark.parametrize("row", [[1, 2, -1], [-1, 2, 1], [1, -1, 1], [-1, -1, -1]])
@pytest.mark.parametrize("histograms", [False, True])
def test_nan_names_tensor_and_sample(row, histograms):
    with pytest.raises(DataError, match=r"sample 1: 'y' becomes NaN"):
        collect(elementwise("Log(x)"), matrices([[1, 2]], [row]), ["y"], histograms=histograms)


def test_empty_tensors_count_nothing():
    samples = matrices(np.zeros((0, 3)), [[1, -2, 3]])
    found = collect(elementwise("Neg(x)"), samples, ["y"]).tensors["y"]
    assert (found.low, found.high, found.elements) == (-3, 2, 3)
    nothing = collect(elementwise("Neg(x)"), matrices(np.zeros((0, 3))), ["y"]).tensors["y"]
    assert (nothing.low, nothing.high, nothing.elements, nothing.unbounded) == (0, 0, 0, False)


def test_scalars_and_huge_masks():
    model = model_of(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N, M] x) => (float y) {
            low = Constant<value_float = -3.4e38>()
            big = Add(x, low)
            y = ReduceMax<keepdims = 0>(big)
        }"""
    )
    found = collect(model, matrices([[1, 2]], np.ones((3, 5))), ["big", "y"])
    assert found.tensors["y"].elements == 2
    assert not found.tensors["big"].unbounded
    assert found.tensors["big"].counts.sum() == 17


def test_what_cannot_be_collected_is_named(reference):
    model, samples, _ = reference
    with pytest.raises(StatisticsError, match="'nowhere' is no activation"):
        collect(model, samples, ["nowhere"])
    with pytest.raises(StatisticsError, match="'axes' is INT64"):
        collect(model, samples, ["axes"])
    with pytest.raises(DataError, match="no samples"):
        collect(model, InMemory([]), ["a"])


def test_a_second_collection_reads_the_cache(reference, tmp_path):
    model, samples, wanted = reference
    store, heard = StatisticsStore(tmp_path), Listener()
    assert same(collect(model, samples, ["a", "y"], store=store), Part(wanted, ["a", "y"]))
    shuffled = Subset(samples, [*range(6, 12), *range(6)])
    assert same(collect(model, shuffled, CONV_NAMES, store=store, progress=heard), wanted)
    assert heard.steps
    heard = Listener()
    assert same(collect(model, samples, CONV_NAMES, store=store, progress=heard), wanted)
    assert not heard.steps
    assert [path.suffixes for path in tmp_path.iterdir()] == [[".npz"]]
    heard = Listener()
    collect(model, Subset(samples, range(11)), CONV_NAMES, store=store, progress=heard)
    assert heard.steps, "other samples are other statistics"


class Part:
    """Some tensors of other statistics."""

    def __init__(self, whole, names):
        self.tensors = {name: whole.tensors[name] for name in names}


class Stops(InMemory):
    """Samples that raise when they have been read so many times."""

    def __init__(self, feeds, after, error):
        super().__init__(feeds)
        object.__setattr__(self, "left", after)
        object.__setattr__(self, "error", error)

    def __getitem__(self, index):
        object.__setattr__(self, "left", self.left - 1)
        if self.left < 0:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("after", [5, 17, 23])
def test_an_error_keeps_what_was_saved(reference, tmp_path, after):
    model, samples, wanted = reference
    store = StatisticsStore(tmp_path, seconds=0.0)
    stops = Stops(samples.feeds, after, DataError("disk gone"))
    with pytest.raises(DataError, match="disk gone"):
        collect(model, stops, CONV_NAMES, store=store)
    heard = Listener()
    assert same(collect(model, samples, CONV_NAMES, store=store, jobs=2, progress=heard), wanted)
    assert any("continues after" in notice for notice in heard.notices)
    assert not list(tmp_path.glob("*.partial.npz"))


SCRIPT = """
import sys, time
from pathlib import Path
from qcompile.calibrate.cache import StatisticsStore
from qcompile.calibrate.collect import collect
from qcompile.samples import InMemory
from tests.calibrate.nets import CONV_NAMES, conv_net, random_samples

class Slow(InMemory):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)

class Loud:
    def step(self, stage, done, total):
        print(stage, done, flush=True)
    def notice(self, message):
        print(message, flush=True)

samples = Slow(random_samples(12).feeds)
store = StatisticsStore(Path(sys.argv[1]), seconds=0.1)
collect(conv_net(), samples, CONV_NAMES, jobs=2, store=store, progress=Loud())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("stage", ["ranges", "histograms"])
def test_a_killed_run_continues_with_the_same_bits(reference, tmp_path, how, stage):
    model, samples, wanted = reference
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a shell ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        for line in run.stdout:
            if line.startswith(f"calibrate: {stage} 8"):
                run.send_signal(how)
                break
        _, errors = run.communicate(timeout=60)
    assert run.returncode, errors
    heard = Listener()
    store = StatisticsStore(tmp_path)
    assert same(collect(model, samples, CONV_NAMES, store=store, progress=heard), wanted)
    assert any(f"{stage}: continues after" in notice for notice in heard.notices), heard.notices
    assert not list(tmp_path.glob("*.partial.npz"))


@needs_assets
@pytest.mark.assets
def test_memory_does_not_grow_with_samples(tmp_path):
    """Peak memory over 40 samples is that over 8, within a tenth."""
    script = """
import sys, numpy as np, onnx_ir as ir
from qcompile.calibrate.collect import collect
from onnx_ir.passes.common import ShapeInferencePass
model = ir.load(sys.argv[1])
ShapeInferencePass()(model)

class Made:
    def __len__(self): return int(sys.argv[2])
    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return {"images": rng.uniform(0, 255, (1, 3, 416, 416)).astype(np.float32)}
    def name(self, i): return str(i)
    def label(self, i): return None

names = [v.name for n in model.graph for v in n.outputs if n.op_type == "Conv"]
collect(model, Made(), names, jobs=2)
from tests.memory import peak_kib
print(peak_kib())
"""
    model = str(asset("models", "yolox_nano_coco.onnx"))

    def peak(count: int) -> int:
        return int(subprocess.check_output([sys.executable, "-c", script, model, str(count)]))

    # Two threads that happen to be at their largest together add a tenth; growth is in every try.
    assert any(peak(40) < 1.1 * peak(8) for _ in range(3))
