"""Rule L43: what a Python script uses of TensorRT's API that TensorRT 11 lacks."""

import ast
from collections.abc import Iterator

from qcompile.lint.removed import ASSIGNED, ATTRIBUTES, CLASSES, MEMBERS
from qcompile.lint.rule import Place, Setting

_MASKS = "the numbers of flags differ between TensorRT 10 and 11: write 1 << int(trt.<Flag>.<NAME>)"


def removed_names(tree: ast.Module, setting: Setting) -> Iterator[Place]:
    """Yield each use of something that TensorRT 11 lacks, with its line as the place.

    A script that does not import tensorrt is not judged, nor is code that first asks which version
    there is: below an ``if`` with ``__version__``, ``hasattr`` or a name like ``MAJOR``, or in a
    ``try`` that catches AttributeError.
    """
    modules, names = _imports(tree)
    if setting.version < 11 or not (modules or names):
        return
    guarded = _guarded(tree)
    for node in ast.walk(tree):
        if node in guarded:
            continue
        for what in _uses(node, modules, names):
            yield Place(str(getattr(node, "lineno", 0)), what)


def _imports(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return the names that tensorrt's modules, and what is imported of them, have here."""
    modules, names = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = (a for a in node.names if a.name.startswith("tensorrt"))
            modules |= {a.asname or a.name.split(".")[0] for a in found}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt"):
            names |= {a.name for a in node.names}
    return modules, names


def _guarded(tree: ast.Module) -> set[ast.AST]:
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp) and _asks_version(node.test):
            found |= set(ast.walk(node))
        elif isinstance(node, ast.Try) and any(_catches(h) for h in node.handlers):
            found |= {inner for line in node.body for inner in ast.walk(line)}
    return found


def _asks_version(test: ast.expr) -> bool:
    words = {_last_name(node).lower() for node in ast.walk(test)}
    return any("version" in word or "major" in word or word == "hasattr" for word in words)


def _catches(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or any(
        _last_name(node) in {"AttributeError", "Exception"} for node in ast.walk(handler.type)
    )


def _last_name(node: ast.AST | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _uses(node: ast.AST, modules: set[str], names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield from _attribute(node, modules)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt"):
        for alias in node.names:
            if alias.name in CLASSES:
                yield _gone(alias.name, CLASSES[alias.name])
    elif isinstance(node, ast.Assign | ast.AugAssign):
        yield from _assignment(node, modules, names)
    elif isinstance(node, ast.Call):
        yield from _call(node)


def _attribute(node: ast.Attribute, modules: set[str]) -> Iterator[str]:
    members = MEMBERS.get(_last_name(node.value), {})
    if node.attr in members:
        yield _gone(f"{_last_name(node.value)}.{node.attr}", members[node.attr])
    elif node.attr in CLASSES and _last_name(node.value) in modules:
        yield _gone(node.attr, CLASSES[node.attr])
    elif node.attr in ATTRIBUTES:
        yield _gone(node.attr, ATTRIBUTES[node.attr])


def _gone(name: str, remedy: str) -> str:
    return f"{name} is not in TensorRT 11: {remedy}"


def _assignment(
    node: ast.Assign | ast.AugAssign, modules: set[str], names: set[str]
) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        if not isinstance(target, ast.Attribute):
            continue
        from_tensorrt = any(_last_name(n) in modules | names for n in ast.walk(node.value))
        if target.attr in ASSIGNED and from_tensorrt:
            yield _gone(target.attr, ASSIGNED[target.attr])
        elif target.attr == "flags" and _is_number(node.value):
            yield f"flags gets the number {ast.unparse(node.value)}; {_MASKS}"


def _call(node: ast.Call) -> Iterator[str]:
    name = _last_name(node.func)
    if name in {"create_network", "set_flag", "clear_flag", "get_flag"}:
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        for value in values:
            if _is_number(value) and ast.unparse(value) != "0":
                yield f"{name}({ast.unparse(value)}) takes a number; {_MASKS}"


def _is_number(node: ast.expr) -> bool:
    """Return whether an expression is made of whole numbers alone."""
    parts = list(ast.walk(node))
    whole = (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant)
    return all(isinstance(part, whole) for part in parts) and all(
        isinstance(part.value, int) for part in parts if isinstance(part, ast.Constant)
    )
