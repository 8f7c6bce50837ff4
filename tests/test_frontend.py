"""The check of the clean-up: floats by distance, integers by equality."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qcompile.errors import PassError
from qcompile.frontend import Loaded, check_equivalence, load
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory

SAMPLES = InMemory(
    [{"x": np.random.default_rng(i).standard_normal((200, 4)).astype(np.float32)} for i in range(2)]
)


def loaded(folder: Path, bias: float = 0.0) -> Loaded:
    """Load ``y = ArgMax(x + [bias, 0, 0, 0])``: a large bias makes every decision the first."""
    path = folder / f"{bias}.onnx"
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "b"], ["a"], "add"),
            helper.make_node("ArgMax", ["a"], ["y"], "decide", axis=1, keepdims=0),
        ],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["n"])],
        [numpy_helper.from_array(np.array([bias, 0, 0, 0], np.float32), "b")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return load(path, "ort-cpu", "int8", threads=1, dump_dir=None, progress=Silent())


def changed(folder: Path, bias: float) -> Loaded:
    """Return a model whose clean-up went wrong by a bias."""
    return replace(loaded(folder, 1e-9), model=loaded(folder, bias).model)


def test_equal_integers_are_no_movement(tmp_path: Path) -> None:
    progress = Silent()
    assert check_equivalence(loaded(tmp_path), SAMPLES, [0, 1], 1, progress) == 0
    assert not progress.notices


def test_other_integers_are_a_defect(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"clean-up changed \d+ of 400 elements of output y"):
        check_equivalence(changed(tmp_path, 10.0), SAMPLES, [0, 1], 1, Silent())


def test_a_tipped_decision_is_noticed_and_not_called_unchanged(tmp_path: Path) -> None:
    wrong, progress = changed(tmp_path, 0.03), Silent()
    feeds = [SAMPLES[index] for index in (0, 1)]
    exact, found = loaded(tmp_path).session, Session(wrong.model)
    assert exact is not None
    differ = sum(int((exact.run(f)["y"] != found.run(f)["y"]).sum()) for f in feeds)
    assert 1 <= differ <= 4
    assert check_equivalence(wrong, SAMPLES, [0, 1], 1, progress) is None
    assert [f"clean-up changed {differ} of 400 elements" in n for n in progress.notices] == [True]
