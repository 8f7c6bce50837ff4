"""Outlier columns found on samples, what stays in float for them, and their share of the work."""

import onnx_ir as ir
import pytest

from qcompile.errors import RecipeError
from qcompile.graph.runner import run_passes
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.planning.outliers import (
    FLOAT,
    check_run_time,
    float_nodes,
    outlier_channels,
    outlier_layers,
)
from qcompile.planning.select import select
from qcompile.planning.select_inputs import select_inputs
from qcompile.planning.wishes import Wishes
from qcompile.progress import Silent
from qcompile.remedies import Outliers, Remedies
from qcompile.samples import InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.tensorrt import TENSORRT
from tests.planning.tools import HOLDS, graph_of, normal

BODY = """[fc1] h = Gemm(x, u, b)
[act] r = Relu(h)
[fc2] p = MatMul(r, w)
[flip] y = Gemm<transB=1>(p, t)"""
WEIGHTS = {
    "u": normal(1, 16, 32, scale=0.1),
    "b": normal(2, 32, scale=0.1),
    "w": normal(3, 32, 16, scale=0.1),
    "t": normal(4, 24, 16),
}


def net() -> ir.Model:
    return graph_of("float[N, 16] x", BODY, **WEIGHTS)


def samples(seed: int, *, loud: int = 5, count: int = 3) -> InMemory:
    """Inputs of several lengths; one value of one sample is an outlier."""
    feeds = [{"x": normal(seed + i, 4 + i, 16).clip(-3, 3)} for i in range(count)]
    feeds[1]["x"][2, loud] = -40
    return InMemory(feeds)


def found(model: ir.Model, data: InMemory, **options) -> dict[str, Outliers]:
    chosen = {"threshold": 6.0, "share": None, "run_time": False, **options}
    log = chosen.pop("log", Silent())
    names = chosen.pop("nodes", ["fc1", "act", "fc2", "flip"])
    return outlier_channels(model, names, data, 2, log, **chosen)


def test_a_single_loud_value_makes_an_outlier():
    outliers = found(net(), samples(0), nodes=["fc1", "act"])
    one = Outliers(channels=[5], columns=16, threshold=6.0)
    assert outliers == {"fc1": one}


def test_the_loudest_share_of_each_layer():
    outliers = found(net(), samples(0), share=0.1)
    assert {name: len(one.channels) for name, one in outliers.items()} == {
        "fc1": 2,
        "fc2": 4,
        "flip": 2,
    }
    assert 5 in outliers["fc1"].channels
    assert outliers["fc1"].threshold < 6


def test_run_time_keeps_the_threshold_alone():
    outliers = found(net(), samples(0), run_time=True, nodes=["fc1", "flip"], threshold=9.0)
    assert outliers == {
        name: Outliers(channels=[], columns=columns, threshold=9.0, run_time=True)
        for name, columns in (("fc1", 16), ("flip", 16))
    }
    by_share = found(net(), samples(0), run_time=True, share=0.01)["fc1"]
    assert by_share.channels == []
    assert by_share.threshold == 40


@pytest.mark.parametrize("run_time", [False, True])
def test_too_many_outliers_are_told(run_time):
    log = Silent()
    data = samples(0)
    for feeds in data.feeds:
        feeds["x"][:, 3:8] = 7
    outliers = found(net(), data, log=log, nodes=["fc1"], run_time=run_time)
    assert outliers == {}
    (said,) = log.notices
    assert "layers left as they are: 1 (fc1); more than 25% of their columns reach" in said


def test_no_layer_to_look_at():
    assert found(net(), samples(0), nodes=["act"]) == {}


def test_what_is_split_off_stays_in_float_and_the_rest_on_codes():
    """Behind codes, too: the mask would be an int8 Mul, and see the whole range."""
    model = net()
    remedies = Remedies(
        outliers={
            "fc1": Outliers(channels=[5], columns=16, threshold=6.0),
            "fc2": Outliers(channels=[1, 2], columns=32, threshold=6.0),
        }
    )
    run_passes(model, [SplitOutliers(remedies=remedies)], holds=HOLDS)
    floats = float_nodes(model, remedies)
    assert set(floats.values()) == {FLOAT}
    assert len(floats) == 8
    for target, choose in ((ORT_CPU, select), (TENSORRT, select_inputs)):
        chosen = choose(model, target, "int8", Wishes(nodes=floats))
        for name in floats:
            assert chosen.nodes[name].precision == "float", (target.name, name)
        assert all(chosen.nodes[n].precision == "int8" for n in ("fc1", "fc2"))
        assert {"x.regular", "r.regular"} <= set(chosen.activations)
        assert not {"x", "r", "h"} & set(chosen.activations)


@pytest.mark.parametrize("split", [False, True])
def test_share_of_the_work(split):
    model = net()
    remedies = Remedies(
        outliers={
            "fc1": Outliers(channels=[5, 7], columns=16, threshold=6.0),
            "fc2": Outliers(channels=[], columns=32, threshold=6.0, run_time=True),
        }
    )
    if split:
        run_passes(model, [SplitOutliers(remedies=remedies)], holds=HOLDS)
    first, second = outlier_layers(model, remedies)
    total = 16 * 32 + 32 * 16 + 16 * 24
    assert (first.node, first.channels, first.columns) == ("fc1", (5, 7), 16)
    assert first.share == 2 / 16
    assert first.of_model == pytest.approx(2 * 32 / total)
    assert second.run_time
    assert second.share is second.of_model is None


def test_targets_without_run_time_outliers():
    check_run_time("ort-cpu")
    with pytest.raises(RecipeError, match="at run time on tensorrt-rtx: their number"):
        check_run_time("tensorrt-rtx")
