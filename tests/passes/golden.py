"""Golden files: a case's graph before a pass and after it, and the contract that each must keep."""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.graph.dump import dump
from qcompile.graph.protocol import Effect, GraphPass
from qcompile.graph.verify import verify
from qcompile.passes.name_values import NameValues
from tests.passes.tools import random_feeds, relative_l2, session

GOLDEN = Path(__file__).parent.parent / "golden"

Load = Callable[[Path], tuple[ir.Model, GraphPass]]
"""Gives the graph of a case, with what its pass needs, and the pass."""


def cases(names: Iterable[str]) -> list[Path]:
    """Return the files of passes with these names."""
    return sorted(path for name in names for path in (GOLDEN / name).glob("*.txt"))


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def read(path: Path) -> tuple[str, ir.Model, str]:
    """Return the text above the graph, the graph before and the dump after."""
    head, _, rest = path.read_text("utf-8").partition("--- before\n")
    before, _, after = rest.partition("--- after\n")
    return head, ir.from_proto(onnx.parser.parse_model(before)), after


def check_golden(path: Path, model: ir.Model, step: GraphPass, *, update: bool) -> None:
    """Demand what the case's file says, or write into it what comes out."""
    head, _, after = read(path)
    modified = step(model).modified
    assert head.startswith("changes: " if modified else "unchanged: "), dict(step.refusals)
    if update:
        kept = path.read_text("utf-8").partition("--- after\n")[0]
        path.write_text(f"{kept}--- after\n{dump(model)}", "utf-8")
    else:
        assert dump(model) == after


def check_contract(model: ir.Model, step: GraphPass) -> None:
    """Run the pass: it tells whether it changed something, ends, and leaves a valid graph."""
    text, interface = dump(model), _interface(model)
    modified = step(model).modified
    assert modified == (dump(model) != text)
    assert _interface(model) == interface
    assert not step(model).modified, "the second run must find nothing"
    NameValues()(model)
    verify(model)
    onnx.checker.check_model(ir.to_proto(model))


def check_describes_itself(step: type[GraphPass] | GraphPass) -> None:
    """Demand one name for class, module and pass, and cases of a change and of a refusal."""
    kind = step if isinstance(step, type) else type(step)
    module = kind.__module__.rpartition(".")[2]
    assert step.name == module.replace("_", "-")
    camel = re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
    assert camel == step.name
    heads = [read(path)[0] for path in cases([step.name])]
    assert any(head.startswith("changes: ") for head in heads)
    assert any(head.startswith("unchanged: ") for head in heads)


def check_equivalence(model: ir.Model, step: GraphPass) -> None:
    """Run the pass, demand the contract and, through ONNX Runtime, the results that it had."""
    feeds = random_feeds(model)
    lossy = step.effect is Effect.LOSSY
    outputs = None if lossy else session(model).run(None, feeds)
    check_contract(model, step)
    if outputs is not None:
        assert relative_l2(outputs, session(model).run(None, feeds)) <= step.effect.value


def golden_test(paths: Collection[Path], load: Load) -> Callable[[Path, bool], None]:
    """Make the test of a module's golden files."""

    @pytest.mark.parametrize("path", paths, ids=case_id)
    def test(path: Path, update_golden: bool) -> None:
        check_golden(path, *load(path), update=update_golden)

    return test


def case_test(
    paths: Collection[Path], load: Load, check: Callable[[ir.Model, GraphPass], None]
) -> Callable[[Path], None]:
    """Make a test of each case: ``check`` runs the pass."""

    @pytest.mark.parametrize("path", paths, ids=case_id)
    def test(path: Path) -> None:
        check(*load(path))

    return test


def description_test(
    steps: Collection[type[GraphPass] | GraphPass],
) -> Callable[[type[GraphPass] | GraphPass], None]:
    """Make the test that passes describe themselves."""

    @pytest.mark.parametrize("step", steps, ids=lambda step: step.name)
    def test(step: type[GraphPass] | GraphPass) -> None:
        check_describes_itself(step)

    return test


def _interface(model: ir.Model) -> list[tuple[str | None, str, str]]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(v.name, str(v.type), str(v.shape)) for v in values]
