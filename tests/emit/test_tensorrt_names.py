"""Every name of TensorRT that the bundle's scripts use is there, in each version."""

import ast

import pytest

from tests.assets import ROOT
from tests.emit.tensorrt_names.checker import FOLDER, Checker, names_of

VERSIONS = ("10.3", "10.16", "11.4")
"""10.3 is JetPack 6's, 10.16 the last of its major."""
SOURCES = {
    name: (ROOT / "qcompile" / "emit" / name).read_text("utf-8")
    for name in ("build_engine.py", "run_engine.py")
}


def attributes(source: str) -> list[ast.Attribute]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SOURCES)
def test_every_name_is_there(name, version):
    checker = Checker(version).check(SOURCES[name])
    assert checker.problems == []
    assert len(checker.seen) > 20


@pytest.mark.parametrize("name", SOURCES)
def test_no_use_of_a_member_escapes(name):
    """Whatever looks like a member of TensorRT's classes was looked up in one of the versions."""
    members = {
        member
        for version in VERSIONS
        for cls in names_of(version)["classes"].values()
        for member in cls
        if "_" in member.strip("_")
    }
    own = {m.name for m in ast.walk(ast.parse(SOURCES[name])) if isinstance(m, ast.FunctionDef)}
    seen = set.union(*(Checker(version).check(SOURCES[name]).seen for version in VERSIONS))
    escaped = [
        node.attr
        for node in attributes(SOURCES[name])
        if node.attr in members - own and (node.end_lineno, node.end_col_offset) not in seen
    ]
    assert escaped == []


@pytest.mark.parametrize("name", SOURCES)
def test_any_misspelt_name_is_caught(name):
    lines = SOURCES[name].splitlines(keepends=True)
    seen = Checker("11.4").check(SOURCES[name]).seen
    checked = 0
    for node in attributes(SOURCES[name]):
        at = (node.end_lineno, node.end_col_offset)
        if at not in seen or node.attr == "__version__":
            continue
        changed = list(lines)
        line = changed[at[0] - 1]
        changed[at[0] - 1] = line[: at[1] - 1] + "q" + line[at[1] - 1 :]
        assert Checker("11.4").check("".join(changed)).problems, (node.attr, at)
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def step_complete", "def step_completed", "Monitor has no step_complete"),
        ("ignore_mismatch=False", "ignore=False", "takes no ignore"),
        ("trt.BuilderFlag.REFIT", "trt.BuilderFlag.FP16", "no BuilderFlag.FP16"),
        ("create_network(flags)", "create_network(flags, 1)", "create_network takes only"),
        ("found.desc()", "found.description()", "no ParserError.description"),
    ],
)
def test_removed_and_wrong_calls_are_caught(old, new, said):
    source = SOURCES["build_engine.py"]
    assert old in source
    problems = Checker("11.4").check(source.replace(old, new)).problems
    assert any(said in problem for problem in problems)


def test_gates_tell_versions_apart():
    gated = "if VERSION < (11, 0):\n    trt.BuilderFlag.FP16\nelse:\n    trt.BuilderFlag.REFIT\n"
    assert Checker("10.16").check(gated).problems == Checker("11.4").check(gated).problems == []
    bare = "trt.BuilderFlag.FP16\n"
    assert Checker("10.16").check(bare).problems == []
    assert "no BuilderFlag.FP16" in Checker("11.4").check(bare).problems[0]
    level = "config.level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY\n"
    left = f"def f():\n    if VERSION < (10, 9):\n        raise Refused\n    {level}"
    assert Checker("10.3").check(left).problems == []
    assert Checker("10.3").check(level).problems != []


def test_lists_are_of_the_versions_they_name():
    for version in VERSIONS:
        assert names_of(version)["version"].startswith(f"{version}.")
    assert {path.stem for path in FOLDER.glob("*.json")} == set(VERSIONS)


def test_scripts_are_python_3_8():
    for name in ("build_engine", "run_engine", "engine_figures", "engine_request"):
        source = (ROOT / "qcompile" / "emit" / f"{name}.py").read_text("utf-8")
        ast.parse(source, feature_version=(3, 8))
        assert "from __future__ import annotations" in source
        assert len(source.splitlines()) <= 400
