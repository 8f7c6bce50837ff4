"""What the rules call an error, TensorRT for RTX really refuses; what keeps them, it builds."""

from pathlib import Path

import pytest

from qcompile.lint.rule import Severity
from qcompile.lint.tensorrt import RULES
from tests.lint.cases import Case
from tests.lint.rtx import asked, needs_rtx
from tests.lint.test_rules import BREAKS, KEEPS

pytestmark = needs_rtx

# Rules that were found, or checked, by experiments with this very library.
TRIED = {
    rule.name
    for rule in RULES
    if rule.severity is Severity.ERROR and "experiment, TensorRT-RTX" in rule.source
}
KNOWN = {75, 80, 86, 89, 120, 121}


def wanted(cases: list[tuple[str, Case]], *, builds: bool) -> dict[str, tuple[Case, bool]]:
    """Return the cases to build, by name, and whether they should."""
    return {
        f"{'keeps' if builds else 'breaks'}-{rule}-{case.label}": (
            case,
            builds if case.builds is None else case.builds,
        )
        for rule, case in cases
        if rule in TRIED and set(case.setting.sms) <= KNOWN
    }


@pytest.mark.parametrize(
    "cases", [wanted(BREAKS, builds=False), wanted(KEEPS, builds=True)], ids=["breaks", "keeps"]
)
def test_the_library_agrees(cases: dict[str, tuple[Case, bool]], tmp_path: Path) -> None:
    """All models of a kind in one test, for they are built in one process."""
    verdicts = zip(cases, asked([case for case, _ in cases.values()], tmp_path), strict=True)
    wrong = {
        name: verdict
        for name, verdict in verdicts
        if (verdict["verdict"] == "built") != cases[name][1]
    }
    assert not wrong
    assert len(cases) > 30


def test_rules_were_tried() -> None:
    assert len(TRIED) > 15


def test_a_computed_scale_crashes_the_builder(tmp_path: Path) -> None:
    """It is why engines are built in a process of their own."""
    case = next(case for rule, case in BREAKS if rule == "L48")
    (verdict,) = asked([case], tmp_path)
    assert verdict["verdict"] == "crashed", "a later version may build it: then L48 can go"
