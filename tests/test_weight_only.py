"""Weights in few bits from a file to an engine: what is stored, and the proof on a real model."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from qcompile.data import Split, split_data
from qcompile.emit.ort_file import write_engine
from qcompile.errors import DataError, OutputError, RuntimeMissingError
from qcompile.frontend import Loaded, load
from qcompile.numerics import adaround, nbits
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.plan import Plan
from qcompile.progress import Silent, StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Accuracy, Calibration, Recipe, Text, Weights
from qcompile.remedies import Learned
from qcompile.runtime.ort import Session
from qcompile.solved import SolvedStore
from qcompile.targets import target_named
from qcompile.weight_only import WeightOnly
from qcompile.working import working_folder
from tests.assets import asset, needs_assets
from tests.languages import decoder, prose, tokenizer_json
from tests.planning.solving import needs_torch, outputs_differ
from tests.tiny import build, convs

ALGORITHMS = ("rtn", "gptq", "awq", "awq+gptq")


class Lab:
    """A model and text, and builds of them that leave their solved weights to be looked at."""

    def __init__(self, model: Path, text: Path, tokenizer: Path, length: int) -> None:
        self.model, self.text = model, text
        self.asked = Text(tokenizer=tokenizer, length=length)

    def recipe(
        self,
        target: str = "ort-cpu",
        samples: int | None = None,
        exclude: tuple[str, ...] = (),
        steps: int = 1000,
        **weights: Any,
    ) -> Recipe:
        return Recipe(
            scheme="weight-only",
            target=target,
            exclude=exclude,
            text=self.asked,
            calibration=Calibration(samples=samples),
            accuracy=Accuracy(steps=steps),
            weights=Weights(**weights),
            jobs=2,
        )

    def loaded(self, recipe: Recipe) -> tuple[Loaded, Split]:
        found = load(
            self.model, recipe.target, recipe.scheme, threads=1, dump_dir=None, progress=Silent()
        )
        return found, split_data(self.text, None, found, recipe, Silent())

    def build(self, folder: Path, recipe: Recipe, plan: Plan | None = None) -> "Built":
        found, data = self.loaded(recipe)
        folder.mkdir(exist_ok=True)
        log = StageLog()
        target = target_named(recipe.target)
        scheme = WeightOnly(found, data, recipe, target, "vnni", None, plan, log, folder)
        made = scheme.quantize(None)
        write_engine(made.model, folder / "model.onnx")
        return Built(found, data, made, SolvedStore(folder / "weights"), folder / "model.onnx")


class Built:
    """What a build left."""

    def __init__(
        self, loaded: Loaded, data: Split, made: Quantized, store: SolvedStore, engine: Path
    ) -> None:
        self.loaded, self.data, self.made, self.store = loaded, data, made, store
        self.engine = onnx.load(engine)
        self.path = engine

    @property
    def plan(self) -> Plan:
        return self.made.plan

    def with_values(self) -> ir.Model:
        """Return the float model that computes with the solved weights."""
        model = self.loaded.model.clone()
        for name in self.plan.weights:
            value = model.graph.initializers[name]
            array = self.store.load(name).values().T  # all are read by MatMul
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
        return model

    def array(self, name: str) -> np.ndarray:
        found = next(t for t in self.engine.graph.initializer if t.name == name)
        return numpy_helper.to_array(found)

    def weights_read(self, op: str) -> dict[str, onnx.NodeProto]:
        """Return the nodes that read codes, by the weight that the codes are of."""
        found = {}
        for node in self.engine.graph.node:
            if node.op_type == op:
                codes = next(name for name in node.input if name.endswith("codes"))
                found[codes.removesuffix(".codes")] = node
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tok.json").write_text(tokenizer_json())
    (folder / "text.txt").write_text("\n\n".join(prose(60, seed=n) for n in range(30)))
    model = decoder(folder / "a.onnx")
    return Lab(model, folder / "text.txt", folder / "tok.json", 32)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
@pytest.mark.parametrize(
    "form",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 3, "group_size": 0, "asymmetric": True},
        {"bits": 8, "group_size": 64, "asymmetric": True},
    ],
    ids=str,
)
def test_codes_and_scales_in_the_file_are_those_solved_for(
    lab: Lab, tmp_path: Path, algorithm: str, form: dict[str, Any]
) -> None:
    built = lab.build(tmp_path, lab.recipe(algorithm=algorithm, **form))
    nodes = built.weights_read("MatMulNBits")
    assert sorted(nodes) == sorted(built.plan.weights)
    for name, node in nodes.items():
        solved, asked = built.store.load(name), attributes(node)
        packed = nbits.PackedWeight(
            asked["bits"],
            asked["block_size"],
            asked["K"],
            built.array(node.input[1]),
            built.array(node.input[2]).reshape(asked["N"], -1),
            built.array(node.input[3]) if len(node.input) > 3 else None,
        )
        np.testing.assert_array_equal(packed.values(), solved.stored())
        np.testing.assert_array_equal(packed.values(), solved.values())
        assert packed.scales.dtype == solved.scales.dtype


@pytest.mark.parametrize("asymmetric", [True, False])
def test_codes_and_scales_of_the_standard_form_are_those_solved_for(
    lab: Lab, tmp_path: Path, asymmetric: bool
) -> None:
    recipe = lab.recipe("onnx", algorithm="gptq", group_size=32, asymmetric=asymmetric)
    built = lab.build(tmp_path, recipe)
    tables = {t.name: t for t in built.engine.graph.initializer}
    for name, node in built.weights_read("DequantizeLinear").items():
        solved = built.store.load(name)
        codes, scales, *zeros = (numpy_helper.to_array(tables[n]) for n in node.input)
        group = solved.format.group_of(solved.codes.shape[1])
        zero = zeros[0].astype(np.float32)[group] if zeros else np.float32(0)
        real = (codes.astype(np.float32) - zero) * scales[group]
        assert bool(zeros) == asymmetric
        np.testing.assert_array_equal(real.T, solved.stored())


@pytest.mark.parametrize("algorithm", ["awq", "awq+gptq"])
def test_codes_of_scaled_weights_are_those_solved_for(
    lab: Lab, tmp_path: Path, algorithm: str
) -> None:
    """What divides an input goes into other constants, never into codes."""
    built = lab.build(tmp_path, lab.recipe(algorithm=algorithm, bits=3, group_size=32))
    scaled = any(plan.input_scaled for plan in built.plan.weights.values())
    assert scaled or algorithm == "awq+gptq"  # which takes a scale only where no layer pays for it
    scales = FoldInputScale(plan=built.plan, solved=built.store.load)
    scales(built.loaded.model.clone())
    for name, node in built.weights_read("MatMulNBits").items():
        codes, packed = built.array(node.input[1]), nbits.pack(scales.folded(name))
        np.testing.assert_array_equal(codes, packed.codes)
        stored = built.array(node.input[2])
        np.testing.assert_array_equal(stored, packed.scales.reshape(stored.shape))
        if name not in scales.divisors:
            np.testing.assert_array_equal(packed.scales, nbits.pack(built.store.load(name)).scales)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_the_engine_computes_with_the_solved_weights(
    lab: Lab, tmp_path: Path, algorithm: str, target: str
) -> None:
    level = {"accuracy_level": 0} if target == "ort-cpu" else {}
    recipe = lab.recipe(target, algorithm=algorithm, bits=3, group_size=32, **level)
    built = lab.build(tmp_path, recipe)
    assert built.data.evaluation is not None
    # optimized, ONNX Runtime itself computes level 4 behind a DequantizeLinear
    engine = Session(built.path, optimize=target == "ort-cpu")
    exact = Session(built.with_values())
    for index in range(2):
        feeds = built.data.evaluation[index]
        assert outputs_differ(engine.run(feeds), exact.run(feeds)) < 2e-5


def test_rows_of_the_report_are_those_of_the_plan(lab: Lab, tmp_path: Path) -> None:
    built = lab.build(tmp_path, lab.recipe(algorithm="auto", group_size=32))
    assert [row.name for row in built.made.solved] == ["wq", "wk", "wv", "wo", "up", "down", "head"]
    for row in built.made.solved:
        entry = built.plan.weights[row.name]
        assert (row.algorithm, row.errors) == (entry.algorithm, entry.errors)
        assert (row.accuracy_level, row.level_error) == (entry.accuracy_level, entry.level_error)
        assert set(row.errors) == set(ALGORITHMS)
        assert row.errors[row.algorithm] <= row.errors["rtn"]


@needs_torch
def test_a_plan_of_learned_codes_is_followed_with_its_steps(lab: Lab, tmp_path: Path) -> None:
    recipe = lab.recipe(algorithm="adaround", steps=20, bits=3, group_size=32)
    built = lab.build(tmp_path / "first", recipe)
    assert built.plan.remedies.learned == Learned(steps=20, seed=0)
    taken = {name: weight.algorithm for name, weight in built.plan.weights.items()}
    assert set(taken.values()) <= {"adaround", "rtn"}
    assert list(taken.values()).count("adaround") >= 6
    again = lab.build(tmp_path / "again", lab.recipe(), built.plan)
    assert again.path.read_bytes() == built.path.read_bytes()
    other = lab.recipe(algorithm="adaround", steps=5, bits=3, group_size=32)
    assert lab.build(tmp_path / "other", other).path.read_bytes() != built.path.read_bytes()


def test_without_torch_nothing_is_begun(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaround.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'qcompile\[torch\]'"):
        lab.build(tmp_path, lab.recipe(algorithm="adaround"))
    assert not list(tmp_path.rglob("*.npz"))


Working = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def working(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Working:
    """Open the working folder of a build of the lab's model, in an empty cache."""
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path))
    loaded, data = lab.loaded(lab.recipe())

    def opened(*, given: bool = True, **weights: Any) -> AbstractContextManager[Path]:
        split = data if given else Split(None, None, data.facts)
        return working_folder(loaded, split, lab.recipe(**weights), None, Silent())

    return opened


def test_a_build_that_finds_no_weight_says_so(tmp_path: Path) -> None:
    _, heard = build(convs(tmp_path), scheme="weight-only")
    assert [n for n in heard.notices if n.startswith("no weight is in few bits")]
    assert not [n for n in heard.notices if n.startswith("estimate")]


def test_one_build_works_in_a_folder_at_a_time(working: Working, tmp_path: Path) -> None:
    with working() as folder:
        with (
            pytest.raises(OutputError, match="another build works on the same; wait"),
            working(),
        ):
            pass
        for other in ({"bits": 3}, {"algorithm": "gptq"}, {"damping": 0.1}, {"given": False}):
            with working(**other) as apart:
                assert apart != folder
        assert folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_folder_with_solved_weights_outlives_a_failure(working: Working, tmp_path: Path) -> None:
    def fails(*, solved: bool) -> None:
        with working() as folder:
            (folder / "weights").mkdir(exist_ok=True)
            if solved:
                (folder / "weights" / "a.npz").touch()
            raise DataError("no")

    with pytest.raises(DataError):
        fails(solved=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError):
        fails(solved=True)
    assert len(list(tmp_path.glob("solving-*/weights/a.npz"))) == 1


# a real language model


LEFT = tuple(f"node_linear_{n}" for n in ("1?", "2?", "3?", 7, 8, 9))
"""Five of six blocks, in float: the first has weights of every shape, and there is the head."""


@needs_assets
@pytest.mark.slow
def test_each_algorithm_gains_on_a_real_model_and_the_best_is_stored(tmp_path: Path) -> None:
    """At int4 in groups of 128, on samples that nothing was solved on."""
    model = asset("models", "textlm5m.onnx")
    text, tokenizer = (asset("data", f"textlm_{name}") for name in ("calib.txt", "tokenizer.json"))
    lab = Lab(model, text, tokenizer, 256)
    recipe = lab.recipe(samples=24, exclude=LEFT, algorithm="auto", accuracy_level=0)
    textlm = lab.build(tmp_path, recipe)
    rows = textlm.made.solved
    assert len(rows) == 43 - 33
    assert {row.bits for row in rows} == {4}
    assert {row.group_size for row in rows} == {128}
    errors = {n: np.array([row.errors[n] for row in rows]) for n in ALGORITHMS}
    mean = {name: found.mean() for name, found in errors.items()}
    assert mean["gptq"] < 0.8 * mean["rtn"]
    assert mean["awq"] < mean["rtn"]
    assert mean["awq+gptq"] < 0.8 * mean["rtn"]
    for row in rows:
        assert row.errors[row.algorithm] <= row.errors["rtn"]
    assert (errors["gptq"] <= errors["rtn"]).all()
    heirs = [row for row in rows if row.inherited]
    assert len(heirs) == len(rows) - 3  # all but queries, keys and values of the first block
    left = [row.left / row.inherited for row in heirs]
    assert max(left) <= 1
    assert np.mean(left) < 0.97, left

    assert textlm.data.evaluation is not None
    feeds = textlm.data.evaluation[0]
    found, exact = (Session(m).run(feeds) for m in (textlm.path, textlm.with_values()))
    assert outputs_differ(found, exact) < 1e-4
