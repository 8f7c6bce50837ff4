"""Passes: their facts are checked before anything runs; the runner records and catches lies."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from qcompile.errors import ModelError, PassError
from qcompile.graph.protocol import Effect, Fact, GraphPass, check_order
from qcompile.graph.runner import run_passes
from qcompile.graph.work import multiply_adds
from qcompile.passes import ALL, CANONICAL, LOWERING, QUANTIZING
from tests.planning.tools import graph_of, normal


@dataclass(frozen=True, kw_only=True)
class Renames(GraphPass):
    """Renames the first node, and says what it is told to say."""

    name: ClassVar[str] = "renames"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED})
    effect: ClassVar[Effect] = Effect.EXACT

    to: str = "other"
    says: bool = True

    def rewrite(self, model: ir.Model) -> bool:
        """Rename."""
        next(iter(model.graph)).name = self.to
        self.refuse("a test")
        return self.says


@dataclass(frozen=True, kw_only=True)
class Fails(Renames):
    """Raises what it is given."""

    name: ClassVar[str] = "fails"

    def rewrite(self, model: ir.Model) -> bool:
        """Fail."""
        raise (ModelError if self.to == "model" else ZeroDivisionError)("on purpose")


NAMED = frozenset({Fact.NAMED, Fact.TYPED})


def model() -> ir.Model:
    return graph_of("float[2] x", "[n] y = Relu(x)")


def test_facts_are_checked_before_anything_runs():
    graph = model()
    with pytest.raises(PassError, match=r"pass renames needs NAMED .*every node and value"):
        run_passes(graph, [Renames()])
    assert next(iter(graph.graph)).name == "n"
    assert check_order([Renames()], NAMED) == {Fact.NAMED, Fact.CANONICAL}
    assert Fact.TYPED not in check_order([Renames(), Renames()], NAMED)


def test_the_registered_order_holds():
    for lowering in LOWERING.values():
        holds = check_order([*CANONICAL, *lowering])
        for step in QUANTIZING:
            check_order([step], holds | {Fact.QDQ})
    assert set(ALL) >= {*CANONICAL, *QUANTIZING}


@pytest.mark.parametrize("step", ALL, ids=lambda step: step.name)
def test_every_pass_describes_itself(step):
    assert isinstance(step.effect, Effect)
    assert type(step).__doc__
    assert "Before" in type(step).__doc__ or "Visits" in type(step).__doc__ or step.needs == set()
    assert all(isinstance(v, int | float | bool | str | tuple) for v in step.options().values())


def test_records(tmp_path):
    run, again = run_passes(
        model(), [Renames(), Renames(says=False)], holds=NAMED, dump_dir=tmp_path
    )
    assert (run.name, run.modified, run.options) == ("renames", True, {"to": "other", "says": True})
    assert run.refusals == {"a test": 1}, "counted anew in each run"
    assert (run.nodes_before, run.nodes_after) == (1, 1)
    assert run.seconds >= 0
    assert not again.modified
    dumps = sorted(path.name for path in tmp_path.iterdir())
    assert dumps == ["01-renames.txt", "02-renames.txt"]
    assert "# other" in (tmp_path / dumps[0]).read_text("utf-8")


def test_a_lie_about_modified_is_found():
    with pytest.raises(PassError, match="renames says modified=False"):
        run_passes(model(), [Renames(says=False)], holds=NAMED, paranoid=True)
    with pytest.raises(PassError, match="renames says modified=True"):
        run_passes(model(), [Renames(to="n")], holds=NAMED, paranoid=True)


def test_a_failure_names_the_pass_and_an_error_for_people_stays_one():
    with pytest.raises(PassError, match="pass fails failed: on purpose"):
        run_passes(model(), [Fails()], holds=NAMED)
    with pytest.raises(ModelError, match=r"^on purpose$"):
        run_passes(model(), [Fails(to="model")], holds=NAMED)


@pytest.mark.parametrize(
    ("inputs", "call", "shape", "expected"),
    [
        ("float[1, 4, 8, 8] x", "Conv(x, w)", (6, 4, 3, 3), 6 * 4 * 9 * 36),
        ("float[5, 4, 8, 8] x", "Conv <group=4> (x, w)", (4, 1, 3, 3), 4 * 9 * 36),
        ("float[N, 4, 8, 8] x", "Conv <strides=[2,2]> (x, w)", (6, 4, 2, 2), 6 * 4 * 4 * 16),
        ("float[1, 4, 8, 8] x", "ConvTranspose <strides=[2,2]> (x, w)", (4, 6, 2, 2), 96 * 64),
        ("float[7, 4] x", "Gemm(x, w)", (4, 6), 7 * 24),
        ("float[2, 7, 4] x", "MatMul(x, w)", (4, 6), 2 * 7 * 24),
        ("float[N, 7, 4] x", "MatMul(x, w)", (4, 6), 7 * 24),
        ("float[4, 6] x", "Mul(x, w)", (4, 6), 0),
    ],
)
def test_multiply_adds(inputs, call, shape, expected):
    graph = graph_of(inputs, f"[n] y = {call}", w=normal(0, *shape))
    assert multiply_adds(next(iter(graph.graph))) == expected
