"""The page of the lint has the rules that the code has; ``--update-golden`` writes its tables."""

from collections.abc import Sequence

import pytest

from qcompile.lint import cuda, scripts, tensorrt
from qcompile.lint.rule import Rule
from qcompile.lint.scripts import ScriptRule
from tests.assets import ROOT

PAGE = ROOT / "docs" / "check.md"
CLOSING = "<!-- end -->"
WORDS = {"ERROR": "error", "FLOAT": "float", "NUMERICS": "numerics", "WARNING": "warning"}
TABLES: dict[str, Sequence[Rule | ScriptRule]] = {
    "<!-- rules of TensorRT -->\n": (*scripts.RULES, *tensorrt.RULES),
    "<!-- rules of CUDA -->\n": (*cuda.RULES, *cuda.BESIDE_TENSORRT),
}


def table(rules: Sequence[Rule | ScriptRule]) -> str:
    """Return the rules in order, each once: L46 is of models and of scripts."""
    once = {rule.name: rule for rule in rules}
    head = ["| rule | what must hold | else | where it was found |", "| --- | --- | --- | --- |"]
    rows = [
        f"| {name} | {rule.title} | {WORDS[rule.severity.name]} | {rule.source} |"
        for name, rule in sorted(once.items())
    ]
    return "\n".join([*head, *rows]) + "\n"


@pytest.mark.parametrize("opening", TABLES)
def test_the_page_has_the_rules_of_the_code(opening: str, update_golden: bool) -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(opening)
    told, _, after = rest.partition(CLOSING)
    wanted = table(TABLES[opening])
    if update_golden:
        PAGE.write_text(before + opening + wanted + CLOSING + after, "utf-8")
    else:
        assert told == wanted, "pytest tests/lint/test_docs.py --update-golden writes it anew"


def test_no_cell_breaks_the_table() -> None:
    rules = [rule for table in TABLES.values() for rule in table]
    assert not [rule.name for rule in rules if "|" in rule.title + rule.source]
