"""How a command ends: every error becomes one line on stderr and an exit code.

0   done
1   a defect of qcompile; of check: the model breaks a rule
2   bad input: a file, an option, the data
3   a gate was missed; the report has been written
130 interrupted
141 whoever read the output has gone
143 terminated
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

import typer

from qcompile.errors import QcompileError
from qcompile.report.text import plain

DEFECT = 1
BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143


class Terminated(BaseException):
    """Passes through as an interrupt does: the blocks that clean up run, no handler stops it.

    No SystemExit, for that of a user's own function is an error of the function.
    """


def exit_code(command: Callable[[], None], *, debug: bool) -> int:
    """Run a command and return its exit code; errors are printed, one line each."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        _drop(1)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _say("interrupted; finished statistics are kept")
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except Exception as error:  # noqa: BLE001 (nothing may end in a traceback)
        code = _failed(error, debug=debug)
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):
            _drop(1)
        return code
    return 0


def _failed(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, QcompileError):
        _say(f"error: {error}")
        return error.exit_code
    if isinstance(error, typer.TyperException):
        _say(f"error: {error.format_message()}{_where_help_is(error)}")
        return BAD_INPUT
    if isinstance(error, OSError):
        _say(f"error: {_reason(error)}")
        return BAD_INPUT
    if isinstance(error, MemoryError):
        _say("error: out of memory; use fewer --jobs")
        return BAD_INPUT
    hint = "" if debug else " (run with --debug and report it)"
    _say(f"error: a defect of qcompile: {type(error).__name__}: {error}{hint}")
    return DEFECT


def _reason(error: OSError) -> str:
    """Return what the system refused, in the form of all other errors: the file first."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


def _where_help_is(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context else ""


def _say(message: str) -> None:
    if sys.stderr is None:
        return
    try:
        print(plain(" ".join(message.split())), file=sys.stderr, flush=True)
    except OSError:  # nobody can be told; the exit code still tells
        _drop(2)


def _drop(descriptor: int) -> None:
    """Let the interpreter's last flush go nowhere: a failure there would change the exit code."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, descriptor)


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated
