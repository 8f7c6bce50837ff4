"""Exported programs (``.pt2``): read only what cannot run code.

``torch.export.load`` unpickles some of its parts, evaluates expressions for sizes, and resolves
operators by attribute below ``torch``. So the archive is looked through first, with torch's own
reader, and is refused where it holds more than tensors as bytes, sizes as sums and products, and
operators from a list of namespaces.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qcompile.errors import ModelError
from qcompile.source.onnx_file import check_file
from qcompile.source.torch_export import TorchModel
from qcompile.source.torch_inputs import Inputs
from qcompile.source.torch_library import hushed, torch_library

_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(trunc|ceil|floor|sqrt)|torch\.sym_\w+|torch\._sym_sqrt"
)
_FILES = re.compile(r"torch\.ops\.aten\.from_file\b")
_SYMBOL = re.compile(r"_{0,3}[a-z]{1,4}\d+")
_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod",
    "FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat",
    "RoundToInt", "RoundDecimal", "ToFloat", "IntTrueDiv", "FloatTrueDiv", "PowByNatural",
    "FloatPow", "ModularIndexing", "Where", "LShift", "RShift", "Identity", "Eq", "Ne", "Lt",
    "Le", "Gt", "Ge", "And", "Or", "Not", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "Abs",
}  # fmt: skip
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name,
    ast.Constant, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_MOST_TEXT = 1 << 12


def read_program(path: Path) -> TorchModel:
    """Load an exported program with the inputs that it was exported on.

    Raises:
        ModelError: There is no such file, it is none of torch's, it holds what would run code, or
            it has no example inputs.
    """
    check_file(path)
    torch = torch_library()
    _look_through(path)
    try:
        with hushed():
            program = torch.export.load(path)
            program._guards_code = []  # noqa: SLF001 (text of the file that torch would execute)
            module = program.module(check_guards=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: torch {torch.__version__} cannot load it: {type(error).__name__}: {reason}"
        ) from error
    if program.example_inputs is None:
        raise ModelError(f"{path}: holds no example inputs; export it again with them")
    args, kwargs = program.example_inputs
    names = program.module_call_graph[0].signature.forward_arg_names or ()
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    inputs = Inputs.of(module, given if len(given) == len(args) + len(kwargs) else args, str(path))
    return TorchModel(str(path), module, inputs, program=program)


def _look_through(path: Path) -> None:
    """Refuse an archive that could run code, or claims more memory than it has bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path}: not an exported program, or cut short ({error})") from error
    names = [entry.filename for entry in entries]
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed or len(set(names)) != len(names):
        raise ModelError(f"{path}: is no archive that torch.export.save writes; export it again")
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        with hushed(), PT2ArchiveReader(str(path)) as reader:
            records = reader.get_file_names()
            for name in records:
                _check_record(path, name, reader)
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not an exported program that torch reads: {reason}") from error
    if "models/model.json" not in records:
        raise ModelError(f"{path}: is of an old format or no exported program; export it again")


def _check_record(path: Path, name: str, reader: Any) -> None:  # noqa: ANN401
    where = f"{path}: {name}"
    if name.startswith("models/"):
        _check_graph(where, json.loads(reader.read_string(name)))
    elif name.endswith("_config.json"):
        for key, entry in json.loads(reader.read_string(name))["config"].items():
            plain = str(entry.get("path_name", "")).startswith(("weight_", "tensor_"))
            if entry.get("use_pickle") or not plain:
                raise ModelError(f"{where}: {key} is pickled, which is not loaded: {_REMEDY}")
            _check_size(where, key, entry, reader, name.rpartition("/")[0])
    elif name.startswith("data/sample_inputs/"):
        try:
            torch_library().load(io.BytesIO(reader.read_bytes(name)), weights_only=True)
        except Exception as error:
            raise ModelError(f"{where}: holds more than tensors: {_REMEDY}") from error
    elif name.startswith(("data/aotinductor", "data/weights/model.pt", "data/constants/model.pt")):
        raise ModelError(f"{where}: is compiled code or a pickle, which is not loaded: {_REMEDY}")


_REMEDY = "name the function that makes the module instead (module:callable)"


def _check_size(where: str, key: str, entry: Any, reader: Any, folder: str) -> None:  # noqa: ANN401
    """Refuse a tensor of a shape that its record does not have the bytes for: torch makes zeros."""
    record = f"{folder}/{entry['path_name']}"
    sizes = [int(size.get("as_int", 1)) for size in entry["tensor_meta"]["sizes"]]
    empty = 0 in sizes
    if not empty and reader.archive_file.get_record_size(record) == 0:
        raise ModelError(f"{where}: {key} claims the shape {sizes}, but its record is empty")


def _check_graph(where: str, graph: Any) -> None:  # noqa: ANN401
    """Refuse operators, expressions and guards beyond those that torch writes for a plain model."""
    for key, value in _entries(graph):
        text = value if isinstance(value, str) else ""
        if key == "target" and (not _OPERATOR.fullmatch(text) or _FILES.match(text)):
            raise ModelError(f"{where}: calls {text[:80]}, which is not allowed: {_REMEDY}")
        if key == "expr_str" and not _is_arithmetic(text):
            raise ModelError(f"{where}: has the size {text[:80]!r}, which is no arithmetic")
        if key in {"in_spec", "out_spec"} and "__enum__" in text:
            raise ModelError(f"{where}: its arguments hold an enum: {_REMEDY}")


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield every key of every object, with its value."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _is_arithmetic(text: str) -> bool:
    """Say whether an expression, which sympy evaluates, has numbers, symbols and functions only."""
    if len(text) > _MOST_TEXT:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _NODES) and _is_known(node) for node in nodes)


def _is_known(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bool(_SYMBOL.fullmatch(node.value))
    return True
