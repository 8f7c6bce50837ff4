import pytest

from qcompile.compare.drop import DISAGREEMENT, measured_drop
from qcompile.compare.gates import GateResult, check_gates
from qcompile.compare.results import Agreement, Comparison, OutputError, Score
from qcompile.numerics.intervals import Interval
from qcompile.recipe import Gates
from qcompile.runtime.timing import Timing


def timing(ratio, low, high):
    return Timing(
        first_ms=ratio,
        second_ms=1.0,
        ratio=ratio,
        interval=Interval(low, high),
        pairs=10,
        threads=1,
    )


def output(name, sqnr, **fields):
    return OutputError(name=name, dtype="float32", sqnr_db=sqnr, **{"identical": False} | fields)


def score(name, difference, output=""):
    return Score(
        name=name,
        output=output,
        float_value=0.9,
        engine_value=None if difference is None else 0.9 + difference,
        difference=difference,
        interval=None if difference is None else Interval(difference - 0.01, difference + 0.02),
        count=100,
        note="not defined" if difference is None else "",
    )


def comparison(outputs=(), agreements=(), scores=()):
    return Comparison(samples=10, outputs=outputs, agreements=agreements, scores=scores)


def only(results):
    (result,) = results
    return result


@pytest.mark.parametrize(
    ("outputs", "measured", "passed"),
    [
        ([output("a", 40.0), output("b", 29.9)], 29.9, False),
        ([output("a", 40.0), output("b", 30.0)], 30.0, True),
        ([output("a", None, identical=True)], None, True),
        ([output("a", 50.0), output("b", None, broken=3)], None, False),
        ([output("a", 50.0), output("b", None, mismatched=3)], None, False),
        ([output("a", 50.0), output("i", None, equal=0.1)], 50.0, True),
        ([output("i", None, equal=0.1)], None, False),
        ([], None, False),
    ],
)
def test_min_sqnr_judges_the_worst_float_output(outputs, measured, passed):
    result = only(check_gates(Gates(min_sqnr=30), comparison(tuple(outputs)), None))
    assert (result.name, result.measured, result.passed) == ("min-sqnr", measured, passed)
    assert result.note


def agreement(share, name="top-1"):
    return Agreement(name=name, output="y", share=share, interval=None, count=50)


@pytest.mark.parametrize(
    ("agreements", "passed"),
    [
        ([agreement(0.99), agreement(1.0, "top-5")], True),
        ([agreement(0.99), agreement(0.97)], False),
        ([agreement(1.0, "top-5")], False),
        ([], False),
    ],
)
def test_min_agreement_judges_top_1(agreements, passed):
    found = comparison(agreements=tuple(agreements))
    assert only(check_gates(Gates(min_agreement=0.98), found, None)).passed == passed


@pytest.mark.parametrize(
    ("scores", "measured", "passed"),
    [
        ([score("top-1 accuracy", -0.004, "y"), score("top-5 accuracy", -0.1, "y")], 0.004, True),
        ([score("top-1 accuracy", -0.02, "y")], 0.02, False),
        ([score("top-1 accuracy", 0.02, "y")], -0.02, True),
        ([score("m:mAP", -0.001), score("top-1 accuracy", -0.5, "y")], 0.001, True),
        ([score("m:mAP", None)], None, False),
        ([], None, False),
    ],
)
def test_max_drop_judges_the_metric_or_the_accuracy(scores, measured, passed):
    result = only(check_gates(Gates(max_drop=0.01), comparison(scores=tuple(scores)), None))
    assert result.measured == (None if measured is None else pytest.approx(measured))
    assert result.passed == passed
    if result.interval:
        assert result.interval.low < result.measured < result.interval.high


@pytest.mark.parametrize(("share", "passed"), [(1.0, True), (0.995, True), (0.98, False)])
def test_without_labels_decisions_that_differ_bound_the_drop(share, passed):
    agreements = (agreement(share), agreement(1.0), agreement(0.5, "top-5"))
    found = comparison(agreements=agreements)
    result = only(check_gates(Gates(max_drop=0.01), found, None))
    assert result.measured == pytest.approx(1 - share)
    assert result.passed == passed
    assert result.bound
    assert result.note.startswith("without labels: decisions that differ, top-1 of output 'y', 50")
    drop = measured_drop(found)
    assert (drop.score, drop.value) == (DISAGREEMENT, result.measured)


@pytest.mark.parametrize(
    ("gates", "time", "names"),
    [
        (Gates(), timing(2.0, 1.9, 2.1), {"not-slower": True}),
        (Gates(), timing(0.98, 0.95, 1.01), {"not-slower": True}),
        (Gates(), timing(0.98, 0.97, 0.99), {"not-slower": False}),
        (Gates(), timing(0.5, 0.4, 0.6), {"not-slower": False}),
        (Gates(allow_slower=True), timing(0.5, 0.4, 0.6), {}),
        (Gates(min_speedup=1.5), timing(1.49, 1.4, 1.6), {"min-speedup": False}),
        (Gates(min_speedup=1.5), timing(1.51, 1.4, 1.6), {"min-speedup": True}),
        (Gates(min_speedup=0.5, allow_slower=True), timing(0.6, 0.5, 0.7), {"min-speedup": True}),
        (Gates(min_speedup=1.5), None, {"min-speedup": False}),
        (Gates(), None, {}),
    ],
)
def test_speed(gates, time, names):
    results = check_gates(gates, None, time)
    assert {r.name: r.passed for r in results} == names


def test_no_comparison_fails_what_was_asked_for():
    gates = Gates(min_sqnr=1, min_agreement=0.1, max_drop=1)
    results = check_gates(gates, None, None)
    assert [r.name for r in results] == ["min-sqnr", "min-agreement", "max-drop"]
    assert not any(r.passed for r in results)
    for result in results:
        assert GateResult.model_validate_json(result.model_dump_json()) == result
