"""What rounding a layer alone does: measured, kept on disk, and found again."""

import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.planning.effects_store import EffectsStore, KeptTime
from qcompile.planning.sensitivity import Effect, Effects, affordable, held, ranges_of, selection_of
from qcompile.planning.switchboard import Switchboard
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from qcompile.targets.target import Placement
from tests.planning.test_probe import VNNI
from tests.planning.tools import feeds_of, graph_of, normal, quantize_graph

PICTURE = "float[1, 16, 14, 14] x"
CONVS = """
[c1] a = Conv <auto_pad="SAME_UPPER"> (x, v)
[r1] p = Relu(a)
[c2] y = Conv <auto_pad="SAME_UPPER"> (p, w)
[m] i = ArgMax <axis=1> (y)
"""


def weights() -> dict[str, np.ndarray]:
    """Return the weights of two layers; a huge one in the second is read by a silent channel."""
    silent, loud = normal(1, 16, 16, 3, 3, scale=0.1), normal(2, 16, 16, 3, 3, scale=0.1)
    silent[0], loud[:, 0] = 0, 20
    return {"v": silent, "w": loud}


@pytest.fixture(scope="module")
def effects() -> Effects:
    model = graph_of(PICTURE, CONVS, "y, int64[] i", **weights())
    samples = InMemory(feeds_of(model, 4))
    done = quantize_graph(model, samples=samples.feeds)
    selection = selection_of(done.plan, Placement.ISLANDS)
    board = Switchboard(model, selection, done.plan, VNNI, {}, samples, 2, scored=True)
    exact = [Session(model).run(feeds) for feeds in samples.feeds]

    def score(found):
        return float(
            np.mean([np.mean(a["i"] == b["i"]) for a, b in zip(exact, found, strict=True)])
        )

    return Effects(board, partial(board.run, ranges_of(done.plan)), score)


def test_the_fragile_layer_makes_nearly_all_of_the_noise(effects):
    alone = dict(effects.alone(effects.units))
    together = effects.of(effects.units)
    assert list(alone) == ["c1", "c2"]
    assert alone["c2"].noise > 20 * alone["c1"].noise
    assert together.noise == pytest.approx(sum(e.noise for e in alone.values()), rel=0.2)
    assert alone["c2"].sqnr_db == pytest.approx(-10 * math.log10(alone["c2"].noise))


def test_a_score_is_of_the_models_own_outputs(effects):
    assert effects.unrounded == 1.0
    assert effects.of([]) == Effect(0.0, 1.0)
    assert effects.of([]).sqnr_db == math.inf
    assert effects.of(["c2"]).score < effects.of(["c1"]).score < 1.0


def test_only_what_is_left_is_measured(effects):
    assert [unit for unit, _ in effects.alone(["c2"])] == ["c2"]


@given(
    questions=st.integers(0, 10**6),
    samples=st.integers(1, 10**6),
    most=st.floats(1, 1e15),
)
def test_never_less_than_one_sample_nor_more_than_affordable(questions, samples, most):
    model = graph_of("float[7, 32] x", "[g] y = Gemm(x, w)", w=normal(1, 32, 64))
    found = affordable(model, questions, samples, most)
    assert 1 <= found <= samples
    assert found == 1 or found * questions * 7 * 32 * 64 <= most


def test_large_outputs_are_held_of_few_samples():
    assert held({"y": np.zeros(1, np.float32)}) > 10**7
    assert held({"y": np.broadcast_to(np.float32(0), (1 << 30,))}) == 1


def test_a_store_gives_back_what_it_kept(tmp_path):
    path, heard = tmp_path / "new" / "kept.json", Silent()
    store = EffectsStore(path, heard)
    assert store.effect("a") is None
    assert store.times is None
    store.keep("a", Effect(0.1, 0.5))
    store.keep("b\nc", Effect(math.inf))
    store.keep_times({"a": KeptTime(floating=0.1)})
    again = EffectsStore(path, heard)
    assert again.effect("a") == Effect(0.1, 0.5)
    assert again.effect("b\nc") == Effect(math.inf)
    assert again.times == {"a": KeptTime(floating=0.1)}
    assert [p.name for p in path.parent.iterdir()] == ["kept.json"]
    assert not heard.notices


@pytest.mark.parametrize(
    "content",
    ["", "[" * 10**5, '{"effects": {"a": 1}}', '{"effects": {}, "more": 1}', "\xff"],
    ids=["empty", "deep", "odd", "unknown key", "no text"],
)
def test_a_damaged_store_is_told_and_starts_anew(content, tmp_path):
    path, heard = tmp_path / "kept.json", Silent()
    path.write_bytes(content.encode("latin-1"))
    store = EffectsStore(path, heard)
    assert store.effect("a") is None
    assert len(heard.notices) == 1
    assert heard.notices[0].startswith("layers are ranked anew, the cache is damaged: ")
    store.keep("a", Effect(0.1))
    assert list(json.loads(path.read_text())["effects"]) == ["a"]


def test_a_folder_that_refuses_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    heard = Silent()
    EffectsStore(tmp_path / "file" / "kept.json", heard).keep("a", Effect(0.1))
    assert heard.notices[-1].startswith("nothing is kept: ")
