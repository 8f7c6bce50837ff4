"""Every golden case through its pass, and the contract of passes on each of them."""

import re
from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.graph.dump import dump
from qcompile.graph.protocol import Effect, GraphPass, check_order
from qcompile.graph.verify import verify
from qcompile.passes import CANONICAL, LOWERING
from qcompile.passes.average_codes import AverageCodes
from qcompile.passes.fold_stride import FoldStride
from qcompile.passes.name_values import NameValues
from qcompile.passes.pad_channels import PadChannels
from tests.passes.tools import prepared, random_feeds, relative_l2, session

GOLDEN = Path(__file__).parent.parent / "golden"
SAFE = (*CANONICAL, *LOWERING["ort-cpu"], FoldStride(), PadChannels(), AverageCodes())
PASSES: dict[str, GraphPass] = {step.name: step for step in SAFE}
CASES = sorted(p for name in PASSES for p in (GOLDEN / name).glob("*.txt"))


def read(path: Path) -> tuple[str, ir.Model, str]:
    head, _, rest = path.read_text("utf-8").partition("--- before\n")
    before, _, after = rest.partition("--- after\n")
    return head, ir.from_proto(onnx.parser.parse_model(before)), after


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


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


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_golden(path: Path, update_golden: bool) -> None:
    step = PASSES[path.parent.name]
    check_golden(path, prepared(read(path)[1], step), step, update=update_golden)


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_contract(path: Path) -> None:
    step = PASSES[path.parent.name]
    model = prepared(read(path)[1], step)
    text, interface = dump(model), signature(model)
    feeds = random_feeds(model)
    outputs = session(model).run(None, feeds)
    modified = step(model).modified
    assert modified == (dump(model) != text)
    assert signature(model) == interface
    assert not step(model).modified, "the second run must find nothing"
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    NameValues()(model)
    verify(model)
    assert step.effect is not Effect.LOSSY
    assert relative_l2(outputs, session(model).run(None, feeds)) <= step.effect.value


def signature(model: ir.Model) -> list[tuple[str | None, str, str]]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(v.name, str(v.type), str(v.shape)) for v in values]


@pytest.mark.parametrize("step", PASSES.values(), ids=PASSES.keys())
def test_names_agree(step: GraphPass) -> None:
    module = type(step).__module__.rpartition(".")[2]
    assert step.name == module.replace("_", "-")
    camel = re.sub(r"(?<!^)(?=[A-Z])", "-", type(step).__name__).lower()
    assert camel == step.name


@pytest.mark.parametrize("name", PASSES)
def test_golden_shows_a_change_and_a_refusal(name: str) -> None:
    heads = [read(p)[0] for p in (GOLDEN / name).glob("*.txt")]
    assert any(h.startswith("changes: ") for h in heads)
    assert any(h.startswith("unchanged: ") for h in heads)


def test_order() -> None:
    check_order(list(CANONICAL))
