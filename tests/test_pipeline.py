"""The Python interface: what the command line prints, as objects."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile.progress import Silent
from qcompile.report.json_text import json_text
from qcompile.runtime.timing import time_pair
from tests.cli.nets import DIGITS, arrays

MODEL, CALIB = DIGITS / "digits.onnx", DIGITS / "calib.npz"
LOOSE = qcompile.Gates(allow_slower=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and a short measurement of the time."""
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qcompile.proof.time_pair", partial(time_pair, seconds=0.05))


class Heard(Silent):
    """Keeps all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, int, int]] = []

    def step(self, stage: str, done: int, total: int) -> None:
        self.steps.append((stage, done, total))


def test_build_returns_what_the_report_file_holds(tmp_path: Path) -> None:
    heard = Heard()
    report = qcompile.build(
        MODEL,
        calib=CALIB,
        output=tmp_path / "out",
        recipe=qcompile.Recipe(gates=LOOSE),
        progress=heard,
    )
    assert isinstance(report, qcompile.Report)
    assert (tmp_path / "out" / "report.json").read_text() == json_text(report)
    assert qcompile.read_plan(tmp_path / "out" / "plan.json").nodes
    assert report.notices == tuple(heard.notices)
    for stage in {name for name, _, _ in heard.steps}:
        ends = [(done, total) for name, done, total in heard.steps if name == stage]
        assert ends[-1][0] == ends[-1][1], stage
    assert sum(report.seconds.values()) > 0


def test_paths_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = qcompile.build(
        str(MODEL),
        calib=str(CALIB),
        output="engines/first",
        recipe=qcompile.Recipe(gates=LOOSE),
        dump_passes="dumps",
    )
    assert report.output == str(tmp_path / "engines" / "first")
    assert (tmp_path / "dumps").is_dir()
    again = qcompile.build(
        str(MODEL),
        calib=str(CALIB),
        recipe=qcompile.Recipe(gates=LOOSE),
        plan="engines/first/plan.json",
    )
    assert again.output == str(tmp_path / "digits-int8-ort-cpu")
    engines = [Path(found.output) / "model.onnx" for found in (report, again)]
    assert engines[0].read_bytes() == engines[1].read_bytes()


def test_missed_gate_has_the_report(tmp_path: Path) -> None:
    recipe = qcompile.Recipe(gates=qcompile.Gates(min_sqnr=90, allow_slower=True))
    with pytest.raises(qcompile.GateError) as missed:
        qcompile.build(MODEL, calib=CALIB, output=tmp_path / "out", recipe=recipe)
    assert isinstance(missed.value.report, qcompile.Report)
    assert missed.value.report.status == "gate failed"
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved == missed.value.report.model_dump(mode="json")


def test_order_of_the_samples_does_not_matter(tmp_path: Path) -> None:
    images = arrays(CALIB)["image"]
    plans = []
    for name, order in (("forwards", slice(None)), ("backwards", slice(None, None, -1))):
        np.savez(tmp_path / f"{name}.npz", image=images[order])
        qcompile.build(
            MODEL,
            calib=tmp_path / f"{name}.npz",
            output=tmp_path / name,
            recipe=qcompile.Recipe(gates=LOOSE),
        )
        plans.append((tmp_path / name / "plan.json").read_bytes())
    assert plans[0] == plans[1]


def test_a_stopped_build_leaves_nothing(tmp_path: Path) -> None:
    class Stop(Silent):
        def step(self, stage: str, done: int, total: int) -> None:
            if stage == "compare":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qcompile.build(MODEL, calib=CALIB, output=tmp_path / "out", progress=Stop())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_bad_input_is_a_qcompile_error(tmp_path: Path) -> None:
    with pytest.raises(qcompile.QcompileError, match="no such file"):
        qcompile.build(tmp_path / "none.onnx", calib=CALIB, output=tmp_path / "out")
    with pytest.raises(qcompile.QcompileError, match="no such file"):
        qcompile.inspect(tmp_path / "none.onnx")
    with pytest.raises(qcompile.QcompileError, match="at least one model"):
        qcompile.bench([])
