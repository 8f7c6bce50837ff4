"""The accuracy budget: the fewest layers in float, on whole models that are planned and run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from qcompile.budget import NEAREST, Budget, _Search, within
from qcompile.data import Split, split_data
from qcompile.frontend import Loaded, load
from qcompile.plan import FLOATS, Plan
from qcompile.planning.plan import Planner, wishes_of
from qcompile.planning.replan import Replan
from qcompile.progress import Silent, StageLog
from qcompile.recipe import Accuracy, Gates, Recipe
from qcompile.remedied import untouched
from qcompile.report.console_budget import budget_lines
from qcompile.runtime.ort import Session
from qcompile.samples import Subset
from qcompile.targets import target_named
from qcompile.w8a8 import W8A8
from tests.assets import asset, needs_assets, tool
from tests.fragile import FRAGILE, LAYERS, write_fragile
from tests.report.test_console import shown
from tests.tiny import weight, write_net

LIMIT = 0.15
"""Share of decisions: the fragile layer alone turns a half of them."""

METRICS = """
import numpy as np

def error(outputs, label, feeds):
    return float(np.square(outputs["y"] - label).mean())
error.lower_is_better = True

def nothing(outputs, label, feeds):
    return float("nan")

def worse(outputs, label, feeds):
    worse.calls += 1
    return float(-worse.calls)
worse.calls = 0
"""


class Case(NamedTuple):
    """A model before its build: what the budget is given."""

    loaded: Loaded
    data: Split
    scheme: W8A8
    planner: Planner
    replan: Replan

    def within(self, limit: float | None, **recipe: object) -> tuple[Budget, Silent]:
        """Steer the plan."""
        update = {"gates": Gates(max_drop=limit), **recipe}
        planner = replace(self.planner, recipe=self.planner.recipe.model_copy(update=update))
        replan, heard = replace(self.replan, planner=planner), Silent()
        return within(replan, self.rewrite, self.loaded, self.data, heard), heard

    def rewrite(self, plan: Plan, codes: dict[str, np.ndarray]) -> object:
        return self.scheme._written(plan, codes)

    def drop(self, nodes: Mapping[str, str]) -> float:
        """Return the share of decisions that change, measured without the code under test."""
        session = Session(self.rewrite(*self.replan.keeping(nodes)), optimize=False)
        samples = self.data.calibration
        found = [session.run(samples[i])["y"].argmax() for i in range(len(samples))]
        return 1 - float(np.mean([f == samples.label(i)[0] for i, f in enumerate(found)]))


def case_of(path: Path, **asked: object) -> Case:
    recipe = Recipe.model_validate({"jobs": 1, "keep_accuracy": False, **asked})
    log, target = StageLog(), target_named(recipe.target)
    device = str(recipe.sm[0]) if recipe.sm else "vnni"
    types, target = target.types(recipe.scheme, device), target.on(device)
    loaded = load(path, target.name, recipe.scheme, threads=1, dump_dir=None, progress=log)
    data = split_data(path.parent / "data", None, loaded, recipe, log)
    about = data, recipe, target, device, types
    scheme = W8A8(loaded, untouched(loaded, recipe), *about, None, None, log)
    probed = Subset(data.calibration, range(4))
    asked_for = recipe, target, device, types, log
    planner = Planner(loaded.model, scheme._statistics(), probed, *asked_for)
    wishes = wishes_of(recipe)
    return Case(
        loaded,
        data,
        scheme,
        planner,
        Replan(planner, wishes, planner.make(wishes), planner.selected),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("budget")
        patch.setenv("QCOMPILE_CACHE", str(folder / "cache"))
        return case_of(write_fragile(folder))


def test_only_the_fragile_layer_is_kept_and_the_budget_is_met(case):
    limit, before = LIMIT, case.drop({})
    budget, heard = case.within(limit)
    assert before > limit
    assert list(budget.nodes) == [FRAGILE]
    assert case.drop(budget.nodes) <= limit
    assert {n for n, e in budget.plan.nodes.items() if e.precision in FLOATS} <= {FRAGILE, "r3"}
    assert budget.plan.nodes[FRAGILE].reason == budget.nodes[FRAGILE]
    assert budget.nodes[FRAGILE].startswith("kept in fp32 for --max-drop 0.15: top-1 accuracy drop")
    section = budget.section
    assert section.before.value == pytest.approx(before)
    assert section.after.value == pytest.approx(case.drop(budget.nodes))
    assert [row.name for row in section.layers] == [FRAGILE]
    assert section.share == pytest.approx(section.layers[0].share)
    assert section.plans < 8
    surest = section.after.interval[1]
    assert any("with 95 % confidence at most" in n for n in heard.notices) == (surest > limit)


def test_taking_layers_as_they_come_would_keep_more(case):
    names = [f"c{i}" for i in range(LAYERS)]
    needed = next(k for k in range(LAYERS) if case.drop(dict.fromkeys(names[:k], "x")) <= LIMIT)
    assert needed > len(case.within(LIMIT)[0].nodes)


def test_the_same_budget_gives_the_same_plan(case):
    first, again = case.within(LIMIT)[0], case.within(LIMIT)[0]
    assert first.plan.text() == again.plan.text()
    assert first.section == again.section


def test_a_search_that_was_stopped_goes_on_from_what_it_measured(case, tmp_path, monkeypatch):
    calls, write = [], Case.rewrite

    def budget(stop: int | None = None) -> tuple[Budget, int]:
        def counted(self: Case, plan: Plan, codes: dict[str, np.ndarray]) -> object:
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(plan)
            return write(self, plan, codes)

        calls.clear()
        monkeypatch.setattr(Case, "rewrite", counted)
        return case.within(0.01)[0], len(calls)

    with pytest.raises(KeyboardInterrupt):
        budget(stop=5)
    resumed, rest = budget()
    known, ends = budget()
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "elsewhere"))
    fresh, everything = budget()
    assert resumed == known == fresh
    assert ends < rest < everything


def test_learned_codes_are_not_in_the_measurement_which_is_told(case):
    budget, _ = case.within(LIMIT, accuracy=Accuracy(algorithms=("adaround",)))
    assert budget.section.note == NEAREST


def test_a_long_search_is_told_first(case, monkeypatch):
    monkeypatch.setattr("qcompile.budget.LONG", 0.0)
    _, heard = case.within(LIMIT)
    assert heard.notices[0].startswith("--max-drop 0.15: at most 40 plans are tried, about ")


@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_plan_within_the_budget_stays_as_it_is(case, limit):
    budget, heard = case.within(limit)
    assert (budget.plan, budget.codes) == case.replan.first
    assert not budget.nodes
    assert (budget.section is None) == (limit is None)
    lax = "--max-drop 1 is a share: 100% of the decisions may be lost; 1 % is --max-drop 0.01"
    assert heard.notices == ([lax] if limit else [])


def test_grids_and_codes_stay_where_layers_turn_to_float(case):
    first, codes = case.replan.first
    assert case.replan.keeping({})[0] == first
    plan, kept = case.replan.keeping({"c1": "because"})
    assert plan.nodes["c1"].reason == "because"
    assert plan.tensors.keys() < first.tensors.keys()
    assert all(tensor == first.tensors[name] for name, tensor in plan.tensors.items())
    assert kept.keys() == codes.keys() & plan.tensors.keys()


def test_a_metric_of_the_user_counts(case, tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    budget, _ = case.within(1e9, metric="own_metrics:error")
    assert budget.section.score == "own_metrics:error"
    undefined, heard = case.within(0.1, metric="own_metrics:nothing")
    assert undefined.plan == case.replan.first[0]
    assert "it is a gate only" in heard.notices[0]
    never, heard = case.within(0.1, metric="own_metrics:worse")
    assert never.plan == case.replan.first[0]
    assert heard.notices[0].startswith("--max-drop 0.1: not even all ")
    assert heard.notices[0].endswith("the plan stays as it is, and the gate decides")


def test_decisions_that_differ_bound_the_drop_without_labels(tmp_path):
    case = case_of(write_fragile(tmp_path, labels=False))
    budget, _ = case.within(LIMIT)
    assert list(budget.nodes) == [FRAGILE]
    assert budget.section.score == "top-1 decisions that differ"
    assert "there are no labels" in budget.section.note
    text = shown(budget_lines(budget.section))
    assert "kept for it: 1 layer" in text
    assert FRAGILE in text


def test_layers_that_round_while_running_are_kept_too(tmp_path):
    wide = weight(1, 64, 64)
    wide[0] = 60  # its input is always zero: the grid is lost on the others
    first = weight(0, 32, 64)
    first[:, 0] = 0
    body = "[m0] a = MatMul(x, w0)\n[m1] b = MatMul(a, w1)\n[t] c = Tanh(b)\n[m2] y = MatMul(c, w2)"
    weights = {"w0": first, "w1": wide, "w2": weight(2, 64, 16)}
    path = write_net(tmp_path / "net.onnx", "float[1,32] x", body, **weights)
    (tmp_path / "data").mkdir()
    for index in range(60):
        x = np.random.default_rng(index).standard_normal((1, 32)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{index:02}.npz", x=x)
    budget, _ = case_of(path, scheme="int8-dynamic").within(0.04)
    assert list(budget.nodes) == ["m1"]


@needs_assets
@pytest.mark.slow
def test_fewer_layers_than_as_they_come_on_a_real_model(tmp_path):
    (tmp_path / "data").mkdir()
    for index, feeds in enumerate(tool("calib").SETS["magika_v3_3"]()):
        np.savez(tmp_path / "data" / f"{index:02}.npz", **feeds)
    (tmp_path / "net.onnx").symlink_to(asset("models", "magika_v3_3.onnx"))
    case = case_of(tmp_path / "net.onnx", target="tensorrt", sm=(87,))
    budget, _ = case.within(0.01)
    assert budget.section.before.value > 0.01 >= budget.section.after.value
    quantized = [n for n in case.replan.first[0].nodes if case.replan.first[0].is_quantized(n)]
    assert 0 < len(budget.nodes) < len(quantized)
    assert not case.within(0.01)[0].plan.is_quantized(next(iter(budget.nodes)))
    search = _Search(case.replan, case.rewrite, case.loaded, case.data.calibration, 0.01, Silent())
    as_they_come = [k for k in range(4) if search.drop(quantized[:k]).size <= 0.01]
    assert len(budget.nodes) < as_they_come[0]


def test_without_samples_the_gate_alone_decides(case):
    heard = Silent()
    planner = replace(case.planner, recipe=Recipe(gates=Gates(max_drop=0.1)))
    replan = replace(case.replan, planner=planner)
    data = replace(case.data, calibration=None)
    budget = within(replan, case.rewrite, case.loaded, data, heard)
    assert budget.plan == case.replan.first[0]
    assert heard.notices == [
        "--max-drop 0.1 steers no layer, it is a gate only: there are no calibration samples"
    ]
    assert "gate only" not in shown(budget_lines(budget.section))
