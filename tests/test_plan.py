"""The plan file: text to plan and back, and one clear line for each mistake of an editor."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import PlanError
from qcompile.numerics.groups import WeightFormat
from qcompile.plan import (
    CODE_RANGE,
    GROUP_SIZES,
    NodePlan,
    Plan,
    TensorPlan,
    WeightPlan,
    read_plan,
)

NAMES = st.text(min_size=1, max_size=8)
SCALES = st.floats(2**-100, 2**100, width=32)
TYPES = st.sampled_from(["uint8", "int8", "int32"])


@st.composite
def tensors(draw: st.DrawFn) -> TensorPlan:
    kind = draw(TYPES)
    low, high = CODE_RANGE[kind]
    count = draw(st.integers(1, 3))
    axis = draw(st.integers(0, 3)) if count > 1 else draw(st.none() | st.integers(0, 3))
    return TensorPlan(
        kind=draw(st.sampled_from(["activation", "weight", "bias"])),
        type=kind,
        axis=axis,
        scale=draw(st.lists(SCALES, min_size=count, max_size=count)),
        zero_point=draw(st.lists(st.integers(low, high), min_size=count, max_size=count)),
        reduce_range=draw(st.booleans()),
        method=draw(NAMES),
        errors=draw(st.dictionaries(NAMES, st.floats(0, 10), max_size=2)),
    )


ALGORITHMS = st.sampled_from(["rtn", "gptq", "awq", "awq+gptq", "adaround"])
WEIGHTS = st.builds(
    WeightPlan,
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from(GROUP_SIZES),
    symmetric=st.booleans(),
    scale_type=st.sampled_from(["float32", "float16"]),
    algorithm=ALGORITHMS,
    errors=st.dictionaries(ALGORITHMS, st.floats(0, 10)),
    accuracy_level=st.sampled_from([0, 4]),
    input_scaled=st.booleans(),
    permuted=st.booleans(),
    form=st.sampled_from(["nbits", "dequantize"]),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    nodes = st.builds(
        NodePlan,
        op=NAMES,
        precision=st.sampled_from(["int8", "int8-dynamic", "weight-only", "float"]),
        reason=NAMES,
    )
    return Plan(
        model=draw(NAMES),
        target=draw(NAMES),
        device=draw(NAMES),
        scheme=draw(NAMES),
        tensors=draw(st.dictionaries(NAMES, tensors(), max_size=3)),
        weights=draw(st.dictionaries(NAMES, WEIGHTS, max_size=3)),
        nodes=draw(st.dictionaries(NAMES, nodes, max_size=3)),
    )


@given(plans())
def test_text_round_trip(plan):
    text = plan.text()
    again = Plan.model_validate_json(text)
    assert again == plan
    assert again.text() == text
    assert list(again.tensors) == list(plan.tensors), "graph order is kept"
    assert list(again.weights) == list(plan.weights)


PLAN = Plan(
    model="0" * 64,
    target="ort-cpu",
    device="vnni",
    scheme="int8",
    tensors={
        "x": TensorPlan(kind="activation", type="uint8", scale=[0.1], zero_point=[7]),
        "w": TensorPlan(kind="weight", type="int8", axis=0, scale=[0.5, 2], zero_point=[0, 0]),
    },
    weights={"m": WeightPlan(bits=3, group_size=64, errors={"rtn": 0.1, "gptq": 0.05})},
    nodes={"conv": NodePlan(op="Conv", precision="int8", reason="a test")},
)


def test_each_entry_is_one_line(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(PLAN.text(), "utf-8")
    lines = PLAN.text().splitlines()
    for name in ("x", "w", "m", "conv"):
        assert (
            sum(f'"{name}": {{' in line and line.rstrip(",").endswith("}") for line in lines) == 1
        )
    assert read_plan(path) == PLAN


def test_numbers_of_a_tensor():
    x, w = PLAN.tensors["x"], PLAN.tensors["w"]
    assert x.scales().shape == x.zero_points().shape == ()
    assert (x.scales().dtype, x.zero_points().dtype) == (np.float32, np.uint8)
    assert x.bounds() == pytest.approx((-0.7, 24.8))
    np.testing.assert_array_equal(w.scales(), np.asarray([0.5, 2], np.float32))
    assert w.zero_points().dtype == np.int8
    assert PLAN.precision("conv") == "int8"
    assert PLAN.precision("unlisted") == "float"


def test_the_format_of_a_weight():
    assert PLAN.weights["m"].format() == WeightFormat(3, 64, symmetric=True, scale_type="float32")


def test_a_plan_without_weights_does_not_speak_of_them():
    bare = PLAN.model_copy(update={"weights": {}})
    assert "weights" not in json.loads(bare.text())
    assert Plan.model_validate_json(bare.text()) == bare


EDITS = {
    "bits": (("weights", "m", "bits"), 5, "weights.m.bits: Input should be 2, 3, 4 or 8"),
    "group size": (("weights", "m", "group_size"), 48, "weights.m.group_size: .*48 is no size"),
    "algorithm": (("weights", "m", "algorithm"), "hqq", "weights.m.algorithm: Input should be"),
    "level": (("weights", "m", "accuracy_level"), 5, "weights.m.accuracy_level: Input should be"),
    "form": (("weights", "m", "form"), "ggml", "weights.m.form: Input should be"),
    "error below 0": (("weights", "m", "errors"), {"rtn": -1}, "weights.m.errors.rtn: .*greater"),
    "error of none": (("weights", "m", "errors"), {"hqq": 1}, "weights.m.errors.hqq.*: Input"),
    "scale type": (("weights", "m", "scale_type"), "int8", "weights.m.scale_type: Input should"),
    "precision": (("nodes", "conv", "precision"), "int4", "nodes.conv.precision: Input should be"),
    "extra key": (("nodes", "conv", "scale"), 1, "nodes.conv.scale: Extra inputs"),
    "no such type": (("tensors", "x", "type"), "uint4", "tensors.x.type: Input should be"),
    "scale 0": (("tensors", "x", "scale"), [0.0], "tensors.x: .*scales must be positive"),
    "scale below 0": (("tensors", "x", "scale"), [-1.0], "tensors.x: .*must be positive"),
    "scale nan": (("tensors", "x", "scale"), [float("nan")], "tensors.x.scale.0: .*finite"),
    "scale inf": (("tensors", "x", "scale"), [float("inf")], "tensors.x.scale.0: .*finite"),
    "no scale": (("tensors", "x", "scale"), [], "tensors.x.scale: .*at least 1"),
    "scale text": (("tensors", "x", "scale"), ["big"], "tensors.x.scale.0: .*valid number"),
    "lengths": (("tensors", "w", "scale"), [1.0], "tensors.w: .*differ in length"),
    "no axis": (("tensors", "w", "axis"), None, "tensors.w: .*need an axis"),
    "zero point": (
        ("tensors", "x", "zero_point"),
        [256],
        "tensors.x: .*outside the range of uint8",
    ),
    "version": (("version",), 2, "version: Input should be 1"),
    "no nodes": (("nodes",), None, "nodes: Input should be"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_wrong_edit_is_one_line_that_names_the_entry(edit, tmp_path):
    where, value, message = EDITS[edit]
    body = json.loads(PLAN.text())
    entry = body
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(body), "utf-8")
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "Invalid JSON"), (b"[]", "file: Input should be"), (b"\xff\xfe", "cannot be read")],
)
def test_a_file_that_is_no_plan(content, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        read_plan(path)
    with pytest.raises(PlanError, match=r"absent.json: cannot be read"):
        read_plan(tmp_path / "absent.json")
