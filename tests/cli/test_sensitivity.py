"""``qcompile sensitivity`` as a user runs it: answers, bad input, a kill in the middle."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from tests.cli import process
from tests.cli.conftest import Run
from tests.cli.nets import CALIB, MODEL, model_of, write_data

RANK = ("sensitivity", MODEL, "--calib", CALIB, "--jobs", "1", "--json")
SLOW_METRIC = """
import time

def norm(outputs, label, feeds):
    time.sleep(0.02)
    return float(abs(outputs["logits"]).sum())
"""
TIMES = ("float_ms", "rounded_ms", "conversion_ms")


def untimed(answer: Any) -> Any:
    """Return an answer without what a clock says."""
    if isinstance(answer, dict):
        return {key: untimed(value) for key, value in answer.items() if key not in TIMES}
    return [untimed(value) for value in answer] if isinstance(answer, list) else answer


def test_the_answer(run: Run) -> None:
    done = run(*RANK)
    assert done.code == 0, done.err
    answer = done.json()
    assert [row["op"] for row in answer["layers"]].count("Conv") == 4
    shares = [row["share"] for row in answer["layers"]]
    assert shares == sorted(shares, reverse=True)
    assert "sensitivity: 7 layers on 16 samples: about" in done.err
    again = run(*RANK[:-1])
    assert "layers on" not in again.err
    assert answer["layers"][0]["name"] in again.out
    assert "all 7 layers rounded: " in " ".join(again.out.split())


@pytest.mark.slow
def test_a_killed_run_goes_on_at_the_next_layer(tmp_path: Path) -> None:
    arguments = (*RANK, "--metric", "own:norm", "--samples", "8")
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(SLOW_METRIC)
    straight = process.run(tmp_path / "straight", *arguments)
    assert straight.code == 0, straight.err
    killed = process.start(tmp_path / "killed", *arguments)
    deadline = time.monotonic() + 60
    while measured(tmp_path / "killed") < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert process.ended(killed).code == -signal.SIGKILL
    known = measured(tmp_path / "killed") - 1
    assert 2 <= known < 7
    again = process.run(tmp_path / "killed", *arguments)
    assert f"after {known} that are in the cache" in again.err
    assert untimed(again.json()) == untimed(straight.json())


def measured(folder: Path) -> int:
    """Return how many effects are kept, that of all layers together included."""
    kept = [*(folder / "cache").glob("sensitivity-*.json")]
    return len(json.loads(kept[0].read_text())["effects"]) if kept else 0


def without_weights(folder: Path) -> None:
    """Write a model of one Slice, and data for it."""
    model = model_of([helper.make_node("Slice", ["x", "a", "b"], ["y"])], [])
    for name, value in (("a", [0, 0]), ("b", [1, 4])):
        tensor = helper.make_tensor(name, onnx.TensorProto.INT64, [2], value)
        model.graph.initializer.append(tensor)
    onnx.save(model, folder / "net.onnx")
    write_data(folder / "data")


BAD = {
    "no data": ((MODEL,), "--calib"),
    "no such data": ((MODEL, "--calib", "gone"), "gone"),
    "no such metric": ((MODEL, "--calib", CALIB, "--metric", "gone:f"), "gone:f"),
    "no metric's name": ((MODEL, "--calib", CALIB, "--metric", "gone"), "module:callable"),
    "two schemes": ((MODEL, "--calib", CALIB, "--int8", "--fp8"), "leave out one"),
    "no fp8 here": ((MODEL, "--calib", CALIB, "--fp8"), "fp8"),
    "no weights": (("net.onnx", "--calib", "data"), "no layer to rank"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(run: Run, tmp_path: Path, bad: str) -> None:
    without_weights(tmp_path)
    arguments, named = BAD[bad]
    done = run("sensitivity", *arguments, "--quiet")
    assert (done.code, done.out) == (2, "")
    assert named in done.err
    assert "Traceback" not in done.err
