"""Rows and ranges of columns that leave the runtime, against plain execution."""

import numpy as np

from qcompile.planning import smooth
from qcompile.planning.column_rows import column_rows
from qcompile.planning.smooth import smoothed
from qcompile.progress import Silent
from qcompile.samples import InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from tests.planning.tools import all_values, feeds_of, graph_of, normal

BODY = "[a] h = MatMul(x, w)\n[t] v = Tanh(h)\n[b] y = MatMul(v, u)"


def net():
    weights = {"w": normal(0, 6, 9), "u": normal(1, 9, 4)}
    weights["w"][:, 3] *= 50
    return graph_of("float[2, 5, 6] x", BODY, **weights)


def test_rows_are_rows_and_ranges_are_exact():
    model, samples = net(), feeds_of(net(), count=3)
    found = column_rows(model, {"x": 6, "v": 9}, InMemory(samples), 4, 2, Silent())
    for name, size in (("x", 6), ("v", 9)):
        for index, values in enumerate(all_values(model, samples)):
            rows = values[name].reshape(-1, size)
            np.testing.assert_array_equal(found[name].rows[index], rows[[0, 2, 5, 7]])
            np.testing.assert_array_equal(found[name].low[index], rows.min(axis=0))
            np.testing.assert_array_equal(found[name].high[index], rows.max(axis=0))
        largest = np.max([np.abs(v[name]).reshape(-1, size) for v in all_values(model, samples)], 0)
        np.testing.assert_array_equal(found[name].magnitude(), largest.max(axis=0))


def test_a_short_sample_repeats_rows():
    model, samples = net(), feeds_of(net(), count=1)
    rows = column_rows(model, {"x": 6}, InMemory(samples), 25, 1, Silent())["x"].rows[0]
    assert rows.shape == (25, 6)
    np.testing.assert_array_equal(
        np.unique(rows, axis=0), np.unique(samples[0]["x"].reshape(-1, 6), axis=0)
    )


def test_little_memory_gives_the_same_scales(monkeypatch):
    model, samples = net(), InMemory(feeds_of(net(), count=2))
    types = ORT_CPU.types("int8", "vnni")

    def found():
        return smoothed(model, ["a", "b"], samples, types, 1, Silent(), strength=0.5)

    whole = found()
    monkeypatch.setattr(smooth, "HELD", 1)
    assert found() == whole
