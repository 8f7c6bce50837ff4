"""What a person reads of weights in few bits."""

import pytest

from qcompile.report.console import render
from qcompile.report.console_weights import WORST, weight_lines
from qcompile.report.progress import ConsoleProgress
from qcompile.report.schema import Report
from qcompile.report.schema_results import WeightRow
from tests.report.examples import EVERYTHING
from tests.report.test_console import shown


def row(name: str, **more: object) -> WeightRow:
    known = {
        "name": name, "op": "MatMul", "shape": (64, 128), "bits": 4, "group_size": 128,
        "algorithm": "gptq", "errors": {"rtn": 0.1, "gptq": 0.04}, "accuracy_level": 4,
        "level_error": 0.005,
    }  # fmt: skip
    return WeightRow.model_validate({**known, **more})


ROWS = (
    row("q", inherited=0.05, left=0.03),
    row(
        "k",
        errors={"rtn": 0.08, "gptq": 0.03, "awq": 0.02},
        algorithm="awq",
        level_error=0.009,
        inherited=0.03,
        left=0.03,
    ),
    row("v", accuracy_level=0, level_error=0.0, inherited=0.0, left=0.0),
    row("head", bits=8, group_size=0, symmetric=False, algorithm="rtn", errors={"rtn": 0.002}),
)


def said(*rows: WeightRow, width: int = 120) -> str:
    content = weight_lines(rows)
    assert content is not None
    return shown(content, width)


@pytest.mark.parametrize(
    "fact",
    [
        "4 bits in groups of 128: 3",
        "8 bits in whole channels, asymmetric: 1",
        "algorithm: gptq 2, awq 1, rtn 1",
        "accuracy level 4 (int8 activations): 3; adds 0.90 % to the output of a layer at most",
        "accuracy level 0 (float activations): 1",
        "held-back samples: 2.55 % on average, 0.36 of plain rounding's 7.05 %",
        "earlier layers: 4.00 % on average, 3.00 % with what weights make up for (1 of 2)",
        "7.05 %  3.67 %  2.00 %         average of 4; the worst:",
        "10.00 %  4.00 %       -  gptq   q",
        "8.00 %  3.00 %  2.00 %  awq    k",
    ],
)
def test_the_summary_tells(fact: str) -> None:
    assert fact in said(*ROWS)


def test_the_worst_come_first_and_no_more_of_them_than_fit() -> None:
    many = [row(f"layer{n:02}", errors={"rtn": 0.5, "gptq": n / 100}) for n in range(30)]
    names = [line.split()[-1] for line in said(*many).splitlines() if "layer" in line.split()[-1]]
    assert names == [f"layer{n:02}" for n in range(29, 29 - WORST, -1)]


def test_without_samples_there_is_no_table_of_errors() -> None:
    text = said(*(row(n, algorithm="rtn", errors={}, level_error=None) for n in "ab"))
    assert "algorithm: rtn 2" in text
    assert "accuracy level 4 (int8 activations): 2" in text
    assert "taken" not in text
    assert "earlier layers" not in text
    assert "%" not in text


def test_standard_operators_leave_the_level_to_the_runtime() -> None:
    text = said(row("a", accuracy_level=None, level_error=None, node="/mlp/up/MatMul"), width=200)
    assert "up to the runtime" in text
    assert "accuracy level" not in text
    assert "a (/mlp/up/MatMul)" in text


def test_plain_rounding_is_not_compared_with_itself() -> None:
    text = said(row("a", algorithm="rtn", errors={"rtn": 0.1}))
    assert "held-back samples: 10.00 % on average\n" in text.replace(" \n", "\n")
    assert "plain rounding" not in text
    assert "the worst" not in text


def test_errors_of_zero_and_unknown_ones_are_no_problem() -> None:
    text = said(row("a", errors={"rtn": 0.0, "gptq": 0.0}), row("b", errors={"rtn": None}))
    assert "0.00 %" in text


def test_no_weights_no_section() -> None:
    assert weight_lines(()) is None
    assert "\nweights " not in shown(render(EVERYTHING))
    report = Report.model_validate({**EVERYTHING.model_dump(), "weights": ROWS})
    text = " ".join(shown(render(report)).split())
    assert "weights 4 bits in groups of 128: 3, 8 bits in whole channels" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_every_line_fits(width: int) -> None:
    long = row("model/layers.17/mlp/down_proj/MatMul." + "weight" * 9)
    assert max(len(line) for line in said(*ROWS, long, width=width).splitlines()) <= width


def test_an_estimate_is_printed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    with ConsoleProgress(Console(stderr=True, width=80)) as progress:
        progress.notice("for the answer")
        progress.announce("estimate: about 2 h \x1b[31m")
        printed = capsys.readouterr().err
    assert "estimate: about 2 h \ufffd[31m" in printed
    assert "for the answer" not in printed
