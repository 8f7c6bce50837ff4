import time
from itertools import pairwise

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.errors import EngineError
from qcompile.runtime import timing as timing_module
from qcompile.runtime.timing import MIN_PAIRS, Timing, _enough, time_one, time_pair


def products(count):
    """``count`` matrix products of 160 x 160 in a row."""
    names = ["X", *[f"h{i}" for i in range(1, count)], "Y"]
    nodes = " ".join(f"{b} = MatMul({a}, X)" for a, b in pairwise(names))
    text = (
        '<ir_version: 10, opset_import: ["" : 21]>'
        f"g (float[160, 160] X) => (float[160, 160] Y) {{ {nodes} }}"
    )
    return ir.from_proto(onnx.parser.parse_model(text))


FEEDS = {"X": np.full((160, 160), 1e-3, np.float32)}


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_times_the_work_is_slower(threads):
    timing = time_pair(products(8), products(1), FEEDS, threads=threads, seconds=0.3)
    assert timing.interval.low > 1
    assert timing.ratio > 1
    assert timing.first_ms > timing.second_ms > 0
    assert timing.pairs >= MIN_PAIRS
    assert timing.threads == threads


def test_the_order_of_the_models_turns_the_ratio_round():
    there = time_pair(products(8), products(1), FEEDS, seconds=0.2)
    back = time_pair(products(1), products(8), FEEDS, seconds=0.2)
    assert there.ratio > 1 > back.ratio


def test_at_least_ten_pairs_without_any_time():
    timing = time_pair(products(1), products(1), FEEDS, seconds=0)
    assert timing.pairs == MIN_PAIRS
    assert timing.interval.low <= timing.ratio <= timing.interval.high


def test_a_settled_ratio_ends_the_measurement(monkeypatch):
    monkeypatch.setattr(timing_module, "SETTLED", 0.5)
    started = time.perf_counter()
    timing = time_pair(products(1), products(1), FEEDS, seconds=3)
    assert 1 <= time.perf_counter() - started < 2.9
    low, high = timing.interval
    assert high - low < timing.ratio
    assert timing.pairs % 50 == 0


STEADY = [1.0, 1.001] * 50


@pytest.mark.parametrize(
    ("ratios", "elapsed", "enough"),
    [
        (STEADY, 1.0, True),
        (STEADY, 0.9, False),
        (STEADY[:-1], 1.0, False),
        ([0.9, 1.1] * 50, 1.0, False),
        ([0.9, 1.1] * 50, 3.0, True),
        ([1.0] * 9, 3.0, False),
        ([0.9, 1.1] * 1000, 0.0, True),
    ],
)
def test_a_measurement_ends_when_the_ratio_is_settled_or_the_time_is_over(ratios, elapsed, enough):
    assert _enough(ratios, elapsed, 3.0) == enough


def test_time_one_sees_the_work():
    assert time_one(products(8), FEEDS, seconds=0.1) > time_one(products(1), FEEDS, seconds=0.1)


def test_models_that_fail_are_errors(tmp_path):
    with pytest.raises(EngineError, match=r"gone.onnx"):
        time_pair(products(1), tmp_path / "gone.onnx", FEEDS)


def test_json_round_trip():
    timing = time_pair(products(1), products(1), FEEDS, seconds=0)
    assert Timing.model_validate_json(timing.model_dump_json()) == timing
