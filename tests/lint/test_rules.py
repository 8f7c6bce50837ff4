"""Every rule of the table tells a model that breaks it from one that does not."""

from importlib import import_module
from pathlib import Path

import pytest

from qcompile.lint.rule import Setting, findings
from qcompile.lint.tensorrt import RULES
from tests.lint.cases import Case, Cases
from tests.lint.models import broken, found

HERE = Path(__file__).parent
MODULES = sorted(path.stem for path in HERE.glob("test_*.py") if not path.stem.startswith("test_r"))
OF_SCRIPTS = {"L43", "L44"}


def joined(which: str) -> list[tuple[str, Case]]:
    """Return the rule and case of all modules."""
    modules = [import_module(f"tests.lint.{name}") for name in MODULES]
    tables: list[Cases] = [getattr(module, which, {}) for module in modules]
    return [(rule, case) for table in tables for rule, cases in table.items() for case in cases]


BREAKS, KEEPS = joined("BREAKS"), joined("KEEPS")


def names(cases: list[tuple[str, Case]]) -> list[str]:
    return [f"{rule}-{case.label}" for rule, case in cases]


def test_the_table_is_whole_and_ordered() -> None:
    wanted = {f"L{number:02}" for number in range(1, 49)} - OF_SCRIPTS
    assert [rule.name for rule in RULES] == sorted(wanted)


def test_every_rule_has_models_of_both_kinds() -> None:
    rules = {rule.name for rule in RULES}
    assert {rule for rule, _ in BREAKS} == rules
    assert {rule for rule, _ in KEEPS} == rules


@pytest.mark.parametrize(("rule", "case"), BREAKS, ids=names(BREAKS))
def test_broken(rule: str, case: Case) -> None:
    assert broken(case.make(), case.setting) == {rule} | case.also


@pytest.mark.parametrize(("rule", "case"), KEEPS, ids=names(KEEPS))
def test_kept(rule: str, case: Case) -> None:
    assert rule not in broken(case.make(), case.setting)


@pytest.mark.parametrize(("rule", "case"), BREAKS, ids=names(BREAKS))
def test_a_finding_is_one_plain_sentence_about_a_place(rule: str, case: Case) -> None:
    model = case.make()
    places = {node.name for node in model.graph} | set(model.graph.initializers)
    places |= {value.name for value in model.graph.inputs} | {"graph"}
    places |= {value.name for node in model.graph for value in node.outputs}
    for finding in found(model, case.setting):
        assert finding.where in places
        assert finding.what
        assert "\n" not in finding.what
        assert not finding.what.endswith(".")


def test_every_rule_says_what_holds_and_where_it_was_found() -> None:
    for rule in RULES:
        assert rule.title
        assert not rule.title.endswith(".")
        assert rule.source


@pytest.mark.parametrize("known", ["no types", "no shapes", "no inputs", "no constants"])
def test_no_rule_raises_where_little_is_known(known: str) -> None:
    for _, case in BREAKS + KEEPS:
        model = case.make()
        for node in model.graph:
            for value in node.outputs:
                value.type = None if known == "no types" else value.type
                value.shape = None if known == "no shapes" else value.shape
            if known == "no inputs":
                node.resize_inputs(min(len(node.inputs), 1))
        if known == "no constants":
            for value in model.graph.initializers.values():
                value.const_value = None
        findings(model, case.setting, RULES)


def test_rules_hold_of_an_empty_setting_and_of_both_flavours() -> None:
    for _, case in KEEPS:
        model = case.make()
        for setting in (Setting(), Setting("tensorrt-rtx", 11), Setting("tensorrt", 10, (75,))):
            found(model, setting)  # none of them raises
