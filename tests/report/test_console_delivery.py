"""What a person reads of an engine for another device."""

import io

import pytest
from rich.console import Console

from qcompile.report.console import render
from qcompile.report.console_delivery import ROWS, delivery_lines
from qcompile.report.schema import Delivery, EngineLayer, Finding, Report

EVIL = "evil\x1b[31m"


def layer(name: str, obtained: str = "int8", rule: str = "") -> EngineLayer:
    return EngineLayer(node=name, op="Conv", wanted="int8", obtained=obtained, rule=rule)


BUILT = Delivery(
    kind="TensorRT for RTX engine for compute capability 8.9",
    state="built",
    path="model.engine",
    bytes=3_200_000,
    seconds=1.84,
    library="TensorRT for RTX 1.7.1.116",
    layers=(
        layer(EVIL, "fp16", "L19: the scale has rank 1"),
        layer("head", "not found", "unknown"),
        *(layer(f"c{number}") for number in range(19)),
        EngineLayer(node="m", op="MatMul", wanted="int4 weights", obtained="int4 weights"),
    ),
    findings=(Finding(rule="L31", severity="may cost speed", where="c1", what="few channels"),),
    notes=("something else must be known",),
)


def shown(delivery: Delivery, width: int = 120) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False)
    console.print(delivery_lines(delivery))
    return file.getvalue()


def one_line(delivery: Delivery) -> str:
    return " ".join(shown(delivery).split())


@pytest.mark.parametrize(
    "fact",
    [
        "8.9 model.engine, 3.2 MB in 1.8 s, by TensorRT for RTX 1.7.1.116; it cannot run on this",
        "layers that compute as planned: int8 19 of 21, int4 weights 1 of 1",
        "planned obtained of node (2 in all) likely rule",
        "L19: the scale has rank 1",
        "int8 not found Conv head unknown",
        "L31 may cost speed c1 few channels",
        "something else must be known",
    ],
)
def test_what_is_told_of_an_engine(fact: str) -> None:
    assert fact in one_line(BUILT)


def test_an_engine_that_ran_says_nothing_of_other_machines() -> None:
    assert "cannot run" not in one_line(BUILT.model_copy(update={"state": "run"}))


def test_what_is_yet_to_be_built() -> None:
    delivery = Delivery(kind="TensorRT 11 engine", notes=("run build_engine.py",))
    assert one_line(delivery) == "TensorRT 11 engine: yet to be built run build_engine.py"


def test_long_lists_are_cut_and_counted() -> None:
    missed = tuple(layer(f"c{number}", "fp16") for number in range(30))
    text = shown(BUILT.model_copy(update={"layers": missed, "findings": ()}))
    assert "node (30 in all)" in text
    assert text.count(" fp16 ") == ROWS


def test_placement_on_a_phone() -> None:
    delivery = Delivery(
        kind="ORT-format model", placed={"CPU": 2, "NNAPI": 9}, fallen={"no kernel": 2}
    )
    text = one_line(delivery)
    assert "predicted placement, no device was asked: " in text
    assert "2 no kernel" in text


def test_nothing_is_said_where_the_file_is_the_engine() -> None:
    assert delivery_lines(None) is None


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_and_names_cannot_speak_to_the_terminal(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False)
    console.print(render(Report(delivery=BUILT)))
    assert max(map(len, file.getvalue().splitlines())) <= width
    assert "\x1b" not in file.getvalue()
