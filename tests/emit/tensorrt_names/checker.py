"""Checks that Python code uses names of TensorRT that a version really has.

Types come from annotations (``network: trt.INetworkDefinition``), from what functions and members
give, and from assignments. Branches under ``if VERSION < (11, 0)`` belong to those versions alone.
"""

import ast
import functools
import json
from pathlib import Path

FOLDER = Path(__file__).parent
MODULE = "trt"


@functools.cache
def names_of(version: str) -> dict:
    """Return the list of a version such as ``11.4``."""
    return json.loads((FOLDER / f"{version}.json").read_text("utf-8"))


class Checker:
    """Walks over modules; ``problems`` says what the version lacks.

    Attributes:
        problems: One line each.
        seen: Positions of the attributes that were looked up.
    """

    def __init__(self, version: str) -> None:
        names = names_of(version)
        self.version = tuple(map(int, version.split(".")))
        self.classes: dict[str, dict[str, list[str]]] = names["classes"]
        self.functions: dict[str, list[str]] = names["functions"]
        self.problems: list[str] = []
        self.seen: set[tuple[int, int]] = set()

    def check(self, source: str) -> "Checker":
        """Check a module."""
        tree = ast.parse(source)
        self.returns: dict[str, str] = {}
        self.fields: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (kind := self.annotated(node.returns)):
                self.returns[node.name] = kind
        self.block(tree.body, {})
        return self

    def block(self, statements: list[ast.stmt], scope: dict[str, str]) -> bool:
        """Check statements in turn; return whether they certainly leave the function."""
        for statement in statements:
            if isinstance(statement, ast.If) and (live := self.gate(statement.test)) is not None:
                if self.block(statement.body if live else statement.orelse, scope):
                    return True
            elif isinstance(statement, ast.FunctionDef):
                self.function(statement, scope)
            elif isinstance(statement, ast.ClassDef):
                self.subclass(statement)
                self.block(statement.body, dict(scope))
            else:
                self.statement(statement, scope)
            if isinstance(statement, ast.Return | ast.Raise):
                return True
        return False

    def function(self, node: ast.FunctionDef, scope: dict[str, str]) -> None:
        inner = dict(scope)
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            self.visit(argument.annotation, inner)
            if kind := self.annotated(argument.annotation):
                inner[argument.arg] = kind
        self.visit(node.returns, inner)
        self.block(node.body, inner)

    def statement(self, node: ast.stmt, scope: dict[str, str]) -> None:
        if isinstance(node, ast.AnnAssign):
            self.visit(node.annotation, scope)
            self.assign(node.target, self.annotated(node.annotation), scope)
        elif isinstance(node, ast.Assign):
            self.assign(node.targets[0], self.kind(node.value, scope), scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.visit(child, scope)
            elif isinstance(child, ast.withitem):
                self.visit(child.context_expr, scope)
            elif isinstance(child, ast.ExceptHandler):
                self.block(child.body, scope)
        for part in ("body", "orelse", "finalbody"):
            self.block(getattr(node, part, []), scope)

    def assign(self, target: ast.expr, kind: str, scope: dict[str, str]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = kind
        elif isinstance(target, ast.Attribute) and kind:
            self.fields.setdefault(target.attr, kind)

    def visit(self, node: ast.AST | None, scope: dict[str, str]) -> None:
        """Look up every attribute and the named arguments of every call below an expression."""
        if node is None:
            return
        for child in ast.walk(node):
            if isinstance(child, ast.expr):
                self.kind(child, scope)
            if isinstance(child, ast.Call):
                self.arguments(child, scope)

    def kind(self, node: ast.expr, scope: dict[str, str]) -> str:
        """Return ``trt``, ``class X``, ``X`` for an object of class X, or an empty string."""
        if isinstance(node, ast.Name):
            return MODULE if node.id == MODULE else scope.get(node.id, "")
        if isinstance(node, ast.Attribute):
            return self.attribute(node, scope)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in self.returns:
                return self.returns[node.func.id]
            return self.kind(node.func, scope).removeprefix("class ")
        return ""

    def attribute(self, node: ast.Attribute, scope: dict[str, str]) -> str:
        owner = self.kind(node.value, scope)
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.fields.get(node.attr, "")
        if not owner:
            return ""
        self.seen.add((node.end_lineno, node.end_col_offset))
        if owner == MODULE:
            if node.attr in self.classes:
                return f"class {node.attr}"
            return self.found(node, self.functions, f"{MODULE}.{node.attr}")
        name = owner.removeprefix("class ")
        return self.found(node, self.classes[name], f"{name}.{node.attr}")

    def found(self, node: ast.Attribute, table: dict[str, list[str]], shown: str) -> str:
        if node.attr not in table and node.attr != "__version__":
            self.problem(node, f"there is no {shown}")
        return table.get(node.attr, [""])[0]

    def arguments(self, node: ast.Call, scope: dict[str, str]) -> None:
        """Check the names and the number of arguments."""
        if not isinstance(node.func, ast.Attribute):
            return
        owner = self.kind(node.func.value, scope).removeprefix("class ")
        member = node.func.attr
        if owner == MODULE:
            taken = self.classes.get(member, {}).get("__init__") or self.functions.get(member)
        else:
            taken = self.classes.get(owner, {}).get(member)
        if taken is None or member == "__init__":
            return
        for keyword in node.keywords:
            if keyword.arg not in taken[1:]:
                self.problem(node, f"{member} takes no {keyword.arg}")
        spread = any(isinstance(argument, ast.Starred) for argument in node.args)
        if not spread and len(node.args) + len(node.keywords) > len(taken) - 1:
            self.problem(node, f"{member} takes only {taken[1:]}")

    def subclass(self, node: ast.ClassDef) -> None:
        """Demand that all methods that TensorRT calls are there, with its number of arguments."""
        for base in node.bases:
            owner = self.kind(base, {})
            if not owner.startswith("class "):
                continue
            methods = {
                m.name: len(m.args.args) for m in node.body if isinstance(m, ast.FunctionDef)
            }
            for name, (_, *arguments) in self.classes[owner.removeprefix("class ")].items():
                if arguments and methods.get(name) != len(arguments) + 1:
                    self.problem(node, f"{node.name} has no {name}({', '.join(arguments)})")

    def annotated(self, node: ast.expr | None) -> str:
        """Return the class of ``trt.X``."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return node.attr if node.value.id == MODULE and node.attr in self.classes else ""
        return ""

    def gate(self, test: ast.expr) -> bool | None:
        """Return what ``VERSION < (11, 0)`` is for this version; None for other conditions."""
        if not (isinstance(test, ast.Compare) and ast.unparse(test.left) == "VERSION"):
            return None
        limit = ast.literal_eval(test.comparators[0])
        below = self.version < limit
        return {ast.Lt: below, ast.GtE: not below}[type(test.ops[0])]

    def problem(self, node: ast.AST, text: str) -> None:
        line = f"line {node.lineno}: {text} in TensorRT {'.'.join(map(str, self.version))}"
        if line not in self.problems:
            self.problems.append(line)
