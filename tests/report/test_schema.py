"""Reports as data: they survive their JSON and hold no number that JSON cannot."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qcompile.compare.results import Agreement, Comparison, OutputError, Score
from qcompile.numerics.intervals import Interval
from qcompile.report.json_text import json_text
from qcompile.report.schema import PlanSummary, Report
from qcompile.report.schema_results import ComparisonSection, OutputRow
from tests.report.examples import EVERYTHING


@pytest.mark.parametrize("report", [Report(), EVERYTHING])
def test_report_survives_its_json(report: Report) -> None:
    assert Report.model_validate_json(json_text(report)) == report


@given(st.floats(), st.floats(), st.text())
def test_any_float_gives_valid_json(sqnr: float, low: float, name: str) -> None:
    row = OutputRow(name=name, sqnr_db=sqnr, sqnr_interval=(low, sqnr))
    text = json_text(row)
    json.loads(text, parse_constant=pytest.fail)
    assert OutputRow.model_validate_json(text) == row


@given(st.permutations(["Conv", "Add", "Gemm"]))
def test_text_does_not_depend_on_the_order_of_counting(order: list[str]) -> None:
    ops = {op: {"int8": len(op)} for op in order}
    text = json_text(PlanSummary(by_op=ops, nodes=dict.fromkeys(order, 1)))
    assert text == json_text(
        PlanSummary(
            by_op={op: ops[op] for op in sorted(ops)}, nodes=dict.fromkeys(sorted(order), 1)
        )
    )


def test_misspelt_key_is_an_error() -> None:
    with pytest.raises(ValidationError, match="sqnr_dB"):
        OutputRow.model_validate({"name": "y", "sqnr_dB": 3.0})


def test_comparison_results_fit_the_section() -> None:
    interval = Interval(1.0, 2.0)
    comparison = Comparison(
        samples=3,
        outputs=(OutputError(name="y", dtype="float32", identical=False, sqnr_interval=interval),),
        agreements=(Agreement(name="top-1", output="y", share=1.0, interval=interval, count=3),),
        scores=(
            Score(
                name="m:f",
                float_value=1.0,
                engine_value=0.5,
                difference=-0.5,
                interval=interval,
                count=3,
            ),
        ),
        notes=("a note",),
    )
    section = ComparisonSection.model_validate(comparison.model_dump())
    assert json.loads(json_text(section)) == comparison.model_dump(mode="json")


def test_engine_bytes_count_external_data_and_nothing_else() -> None:
    assert EVERYTHING.engine_bytes() == 325_000
