"""Times that a bundle's script takes on the device."""

import time

import numpy as np
import pytest

from qcompile.emit.engine_figures import judged
from qcompile.emit.engine_timing import LEAST_RUNS, WARM_UP_RUNS, median_interval, timed, timed_pair


def sleeper(seconds, calls):
    def run():
        calls.append(seconds)
        time.sleep(seconds)

    return run


def test_a_pair_is_timed_in_turn_and_its_ratio_lies_in_its_interval():
    calls = []
    found = timed_pair(sleeper(4e-3, calls), sleeper(1e-3, calls), seconds=0)
    assert 1.5 < found["ratio"] < 5
    assert found["float_ms"] > 4
    assert found["engine_ms"] > 1
    assert found["interval"][0] <= found["ratio"] <= found["interval"][1]
    assert found["pairs"] == LEAST_RUNS
    counted = calls[2 * WARM_UP_RUNS :]
    assert counted[:4] == [4e-3, 1e-3, 1e-3, 4e-3]
    assert counted.count(4e-3) == counted.count(1e-3) == LEAST_RUNS


@pytest.mark.parametrize("count", [20, 100, 1001])
def test_the_interval_covers_the_median_as_often_as_it_says(count):
    rng = np.random.default_rng(count)
    draws = (median_interval(rng.exponential(size=count)) for _ in range(2000))
    share = np.mean([low <= np.log(2) <= high for low, high in draws])
    assert 0.94 < share < 0.99


def test_one_is_timed_alone():
    calls = []
    found = timed(sleeper(1e-3, calls), seconds=0)
    assert found["runs"] == LEAST_RUNS == len(calls) - WARM_UP_RUNS
    assert found["median_ms"] > 1


def test_the_gate_on_speed():
    speed = {
        "float_ms": 2.0,
        "engine_ms": 1.0,
        "ratio": 2.0,
        "interval": [1.9, 2.1],
        "pairs": 50,
    }
    for limit, passed in ((1.5, True), (2.0, True), (2.1, False)):
        (gate,) = judged({"min_speedup": limit}, [], speed)
        assert (gate["passed"], gate["measured"]) == (passed, 2.0)
    assert gate["note"] == "2.0000 ms float to 1.0000 ms, 50 pairs; 95 % interval 1.90 to 2.10"
    (gate,) = judged({"min_speedup": 0.1}, [])
    assert (gate["passed"], gate["measured"]) == (False, None)
