"""Each end of a command has its exit code and its line: also those that no input brings about."""

import signal
from collections.abc import Callable, Iterator

import pytest
import typer

from qcompile.cli.exits import exit_code
from qcompile.errors import DataError, GateError, PassError


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def raises(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("calib/:\n no \x1b[31msamples"), 2, "error: calib/: no \ufffd[31msamples"),
        (PassError("pass x lied"), 1, "error: pass x lied"),
        (GateError("min-sqnr: 31 dB"), 3, "error: min-sqnr: 31 dB"),
        (OSError(28, "No space left", "out/m.onnx"), 2, "error: out/m.onnx: No space left"),
        (OSError(28, "No space left"), 2, "error: No space left"),
        (OSError("odd"), 2, "error: odd"),
        (MemoryError(), 2, "error: out of memory; use fewer --jobs"),
        (KeyboardInterrupt(), 130, "interrupted; finished statistics are kept"),
        (
            ZeroDivisionError("oh"),
            1,
            "error: a defect of qcompile: ZeroDivisionError: oh (run with --debug and report it)",
        ),
        (typer.Exit(5), 5, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_code_and_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str | None
) -> None:
    assert exit_code(raises(error), debug=False) == code
    assert capsys.readouterr() == ("", f"{line}\n" if line else "")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raises(ZeroDivisionError("oh")), debug=True) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("error: a defect of qcompile: ZeroDivisionError: oh\n")


def test_done_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: None, debug=False) == 0
    assert capsys.readouterr() == ("", "")
