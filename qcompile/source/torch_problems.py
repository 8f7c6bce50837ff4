"""Why a module cannot be traced or run, in one line that names the user's code."""

import linecache
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qcompile.errors import ModelError
from qcompile.source.torch_library import hushed, torch_library

_PACKAGE = str(Path(__file__).resolve().parents[1])
_OVERLOAD = re.compile(r"op='(\w+)[.:]+(\w+)'")
_SPECIALIZED = re.compile(
    r"\['?(\w+)'?\](\S*)\.size\(\)\[(\d+)\].*?specialized it to be a constant \((\d+)\)", re.DOTALL
)
_STACK = re.compile(r'File "([^"]+)", line (\d+)')


def tracing_problem(name: str, error: BaseException) -> ModelError:
    """Return what to raise where ``torch.export`` failed."""
    text = str(error)
    where = _code_of(error)
    fixed = _SPECIALIZED.search(text)
    if fixed:
        argument, inside, axis, size = fixed.groups()
        return ModelError(
            f"{name}: dimension {axis} of input {argument}{inside} cannot be dynamic: the code "
            f"fixes its size to {size} (a comparison, an assert, a reshape); leave it out of the "
            "dynamic axes, or write the code without that size"
        )
    if "data-dependent" in text:
        return ModelError(
            f"{name}: {where or 'forward'} depends on values in a tensor, which a traced graph "
            "cannot do: use torch.where or torch.cond, or compute it outside of forward"
        )
    at = f" at {where}" if where else ""
    return ModelError(
        f"{name}: torch.export cannot trace it{at}: {type(error).__name__}: {_first_line(text)}"
    )


def translation_problem(name: str, program: Any, error: BaseException) -> ModelError:  # noqa: ANN401
    """Return what to raise where ``torch.onnx`` failed on an exported program."""
    for cause in _causes(error):
        found = _OVERLOAD.search(str(cause))
        if found:
            operator = ".".join(found.groups())
            where = _line_of_operator(program, operator)
            at = f", which {where} needs" if where else ""
            return ModelError(
                f"{name}: torch.onnx has no translation of operator {operator}{at}: write it with "
                "other operators, or compute it outside of the model"
            )
    last = list(_causes(error))[-1]
    return ModelError(
        f"{name}: torch.onnx cannot translate it: {type(last).__name__}: {_first_line(str(last))}"
    )


def running_problem(name: str, what: str, error: BaseException) -> ModelError:
    """Return what to raise where the user's own code failed."""
    where = _code_of(error)
    at = f" at {where}" if where else ""
    return ModelError(f"{name}: {what}{at}: {type(error).__name__}: {_first_line(str(error))}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line), "no reason given")


def _code_of(error: BaseException) -> str:
    """Return the innermost line of the user's code in a traceback: ``net.py:6 `if x.sum():```."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if _is_users(file):
            found = _shown(file, trace.tb_lineno)
        trace = trace.tb_next
    return found


def _line_of_operator(program: Any, operator: str) -> str:  # noqa: ANN401
    """Return the line that made the first node of an operator, be it by a decomposition."""
    with hushed():
        nodes = [*program.graph.nodes, *program.run_decompositions().graph.nodes]
    for node in nodes:
        if node.op == "call_function" and str(node.target).startswith(f"{operator}."):
            places = _STACK.findall(node.meta.get("stack_trace") or "")
            mine = [(file, int(line)) for file, line in places if _is_users(file)]
            return _shown(*mine[-1]) if mine else ""
    return ""


def _is_users(file: str) -> bool:
    standard = sysconfig.get_paths()["stdlib"]
    torch = str(Path(str(torch_library().__file__)).parent)
    inside = (torch, _PACKAGE, "<")
    own = file.startswith(standard) and "site-packages" not in file
    return not own and not file.startswith(inside)


def _shown(file: str, line: int) -> str:
    code = linecache.getline(file, line).strip()
    return f"{Path(file).name}:{line}" + (f" `{code}`" if code else "")
