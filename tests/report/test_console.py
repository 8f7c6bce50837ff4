"""What a person reads."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from qcompile.report import results
from qcompile.report.console import render
from qcompile.report.console_results import (
    render_bench,
    render_calibration,
    render_comparison,
    render_inspection,
)
from qcompile.report.progress import ConsoleProgress
from qcompile.report.schema import FloatNode, PlanSummary, Report
from qcompile.report.text import KEEP, size
from tests.report.examples import EVERYTHING, SOFTMAX


def shown(content: RenderableType, width: int = 120) -> str:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False).print(content)
    return file.getvalue()


@pytest.mark.parametrize(
    "fact",
    [
        "opset 17, 124 nodes, 269,722 parameters, 1.1 MB",
        "cleaned up: 30 nodes; outputs moved by 3.1e-07 (relative L2)",
        "calib/: 410 samples of 512",
        "102 samples held back",
        "method auto, 31 tensors, 31 from the cache, 3.1 s",
        "chosen: mse 20, minmax 11",
        "int8 for ort-cpu (vnni, built on avx2): 27 of 30 nodes, 99.10 %",
        "Add 8 of 9, Conv 19",
        SOFTMAX,
        "left out by --exclude",
        "18 of 19 expected int8 kernels run: com.microsoft::QLinearConv 18 of 19",
        "planned in int8, run otherwise: /layer1/conv",
        "31.2 dB  [30.8, 31.7]    35.8 dB  0.99932",
        "equal, bit for bit",
        "top-1 agreement with the float model 98.00 % [95.00, 99.00]",
        "80.65 %  80.55 %       -0.10  [-0.40, +0.20]  top-1 accuracy",
        "19.1 dB  activation  Conv  conv_out",
        "float 1.2 ms, engine 0.401 ms: 2.99x as fast [2.9, 3.1]",
        "1 thread, 40 pairs",
        "1.1 MB to 325.0 kB (30%)",
        "MISSED  min-sqnr at least 40: measured 31.23",
        "clip [0, 6] was widened",
        "/builds/net-int8-ort-cpu",
    ],
)
def test_summary_tells(fact: str) -> None:
    assert fact in shown(render(EVERYTHING))


def test_worst_reason_comes_first() -> None:
    text = shown(render(EVERYTHING))
    assert text.index(SOFTMAX) < text.index("left out by --exclude")


def test_missed_gate_says_that_there_is_no_engine() -> None:
    assert "the engine was not put in place" not in shown(render(EVERYTHING))
    failed = EVERYTHING.model_copy(update={"status": "gate failed"})
    assert "the engine was not put in place" in shown(render(failed))


def test_names_cannot_speak_to_the_terminal() -> None:
    text = shown(render(EVERYTHING))
    assert "\x1b" not in text
    assert "w\N{REPLACEMENT CHARACTER}[31m" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lines_fit_the_width(width: int) -> None:
    assert max(map(len, shown(render(EVERYTHING), width).splitlines())) <= width


def test_empty_report_has_no_empty_paragraphs() -> None:
    assert shown(render(Report())).strip() == ""


@pytest.mark.parametrize(
    ("result", "draw", "fact"),
    [
        (
            results.CalibrationReport(
                model="m",
                data="d",
                samples=1,
                method="mse",
                tensors=(
                    results.TensorRow(name="x", low=-1, high=2, range_low=-0.5, range_high=1.5),
                ),
            ),
            render_calibration,
            "[-0.5, 1.5]  x",
        ),
        (
            results.ComparisonReport(
                reference="a.onnx", model="b.onnx", data="d", comparison=EVERYTHING.engine
            ),
            render_comparison,
            "on 102 samples; [95 % interval]",
        ),
        (
            results.Inspection(
                model=EVERYTHING.model,
                plan=EVERYTHING.plan,
                weight_bytes=4000,
                int8_weight_bytes=1000,
            ),
            render_inspection,
            "in float, about",
        ),
        (
            results.BenchReport(
                rows=(
                    results.BenchRow(model="a.onnx", median_ms=2.0, bytes=1000),
                    results.BenchRow(model="b.onnx", median_ms=1.0, bytes=500, ratio=2.0),
                ),
                inputs="made up",
            ),
            render_bench,
            "inputs were made up",
        ),
    ],
)
def test_other_answers_tell(
    result: object, draw: Callable[[object], RenderableType], fact: str
) -> None:
    assert fact in shown(draw(result))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000_000, "2.5 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count).replace(KEEP, " ") == text


def test_progress_without_a_terminal_is_a_line_a_stage() -> None:
    file = io.StringIO()
    with ConsoleProgress(Console(file=file)) as progress:
        for done in range(4):
            progress.step("calibrate", done, 3)
        progress.step("calibrate", 3, 3)
        progress.notice("odd data")
    assert file.getvalue().startswith("calibrate: 3 in ")
    assert file.getvalue().count("\n") == 1
    assert progress.notices == ["odd data"]


def test_notices_are_printed_when_there_will_be_no_answer() -> None:
    file = io.StringIO()
    progress = ConsoleProgress(Console(file=file))

    def fails() -> None:
        with progress:
            progress.notice("odd data")
            raise LookupError

    with pytest.raises(LookupError):
        fails()
    assert file.getvalue() == "note: odd data\n"


def test_progress_on_a_terminal_shows_bars() -> None:
    file = io.StringIO()
    with ConsoleProgress(Console(file=file, force_terminal=True)) as progress:
        progress.step("calibrate", 1, 3)
        progress.step("calibrate", 2, 3)
    assert "2/3" in file.getvalue()


def test_reasons_that_differ_in_a_name_are_one_line() -> None:
    nodes = tuple(
        FloatNode(name=f"n{i}", op="Reshape", reason=reason)
        for i, reason in enumerate(
            [
                "its input /a/b is float",
                "its input c is float",
                "inside If /x: control flow stays in float",
                "inside If /y: control flow stays in float",
                "no int8 kernel",
            ]
        )
    )
    text = shown(render(Report(plan=PlanSummary(float_nodes=nodes))))
    assert "2  its input is float" in text
    assert "2  inside If: control flow stays in float" in text
    assert text.count("Reshape 2") == 2
