"""The bundle's figures are qcompile's own; types of tensors and of layers are read rightly."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.compare.end_to_end import compare
from qcompile.compare.gates import check_gates
from qcompile.emit.engine_figures import Output, decoded, encoded, judged, layers_of, told
from qcompile.progress import Silent
from qcompile.recipe import Gates
from qcompile.samples import InMemory
from tests.assets import ROOT

SHAPES = st.sampled_from([(4,), (3, 1), (2, 5), (1, 3, 4), (2, 0)])
VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)
ODD = st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf])
TOKENS = {"t": np.zeros((1, 3), np.int64)}


def pairs(values):
    """Draw up to four samples: outputs of the float model and of the engine, of one shape."""
    return SHAPES.flatmap(
        lambda shape: st.lists(
            st.tuples(*[hnp.arrays(np.float32, shape, elements=values)] * 2), min_size=1, max_size=4
        )
    )


def both(samples, gates):
    """Return figures and gates of the bundle's script, and of qcompile."""
    output = Output("y")
    for reference, test in samples:
        output.add(reference, test, TOKENS)
    given = gates.model_dump(exclude={"allow_slower"}, exclude_none=True)
    runs = [iter([{"y": sample[side]} for sample in samples]) for side in (0, 1)]
    feeds = InMemory([TOKENS] * len(samples))
    wanted = compare(lambda _: next(runs[0]), lambda _: next(runs[1]), feeds, progress=Silent())
    return output, judged(given, [output]), wanted, check_gates(gates, wanted, None)


@given(pairs(VALUES) | pairs(ODD) | pairs(VALUES).map(lambda s: [(a, a) for a, _ in s]))
def test_figures_and_gates_are_those_of_qcompile(samples):
    output, results, comparison, wanted = both(samples, Gates(min_sqnr=20, min_agreement=0.5))
    figures, expected = output.figures(), comparison.outputs[0]
    for name in ("identical", "broken", "mismatched", "equal", "dtype"):
        assert figures[name] == getattr(expected, name), name
    for name in ("sqnr_db", "cosine", "max_abs_error", "relative_l2"):
        value = getattr(expected, name)
        assert figures[name] == (value if value is None else pytest.approx(value, rel=1e-6)), name
    top = [a for a in comparison.agreements if a.name == "top-1"]
    assert [(a["share"], a["count"]) for a in output.agreements()] == [
        (a.share, a.count) for a in top
    ]
    assert [(g["name"], g["passed"]) for g in results] == [(g.name, g.passed) for g in wanted]
    json.dumps([figures, results], allow_nan=False)


@given(hnp.arrays(np.int64, 5), hnp.arrays(np.int64, 5))
def test_integers_are_compared_for_equality(reference, test):
    output, results, comparison, wanted = both([(reference, test)], Gates(min_sqnr=20))
    assert output.figures()["equal"] == comparison.outputs[0].equal
    assert results[0]["passed"] == wanted[0].passed is False


def test_other_shapes_are_a_mismatch_not_a_figure():
    output = Output("y")
    output.add(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32), {})
    figures = output.figures()
    assert (figures["mismatched"], figures["sqnr_db"], figures["identical"]) == (1, None, False)
    assert not judged({"min_sqnr": -100.0}, [output])[0]["passed"]


@given(hnp.arrays(np.float32, st.sampled_from([(), (3,), (2, 3)])))
def test_bfloat16_is_rounded_as_it_should_be(values):
    bits = encoded(values, "BF16")
    assert (bits.shape, bits.dtype) == (values.shape, np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(decoded(bits, "BF16"), wanted.astype(np.float32))


def test_fp8_codes_are_e4m3():
    codes = np.arange(256, dtype=np.uint8)
    wanted = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(decoded(codes, "FP8"), wanted)


def test_halves_become_float32_and_integers_stay():
    assert decoded(np.array([1.5], np.float16), "HALF").dtype == np.float32
    assert decoded(np.array([1 << 40]), "INT64").tolist() == [1 << 40]
    assert encoded(np.array([1.5], np.float32), "HALF").dtype == np.float16
    assert encoded(np.array([1 << 40]), "INT64").tolist() == [1 << 40]
    for kind in ("FLOAT", "HALF", "BF16"):
        assert encoded(np.array(2.0, np.float32), kind).shape == ()
        assert decoded(encoded(np.array(2.0, np.float32), kind), kind).shape == ()


@pytest.mark.parametrize(
    ("array", "kind", "said"),
    [
        (np.zeros(2, np.int64), "INT32", "wants int32, the samples have int64"),
        (np.zeros(2, np.float32), "INT8", "wants int8, the samples have float32"),
        (np.zeros(2, np.float32), "FP8", "type FP8 cannot be fed"),
        (np.zeros(2, np.float32), "FP4", "type FP4 cannot be fed"),
    ],
)
def test_an_input_of_another_kind_is_refused(array, kind, said):
    with pytest.raises(ValueError, match=said):
        encoded(array, kind)


LAYER = {
    "Name": "conv + act",
    "LayerType": "CaskConvolution",
    "TacticName": "sm80_i8i8",
    "Metadata": "[ONNX Layer: /a/conv]\x1f[ONNX Layer: x[0]]\x1e[ONNX Layer: /a/conv]",
}
CHANNELS = "Thirty-two wide channel vectorized row major"


def tensor(name, shape, **types):
    return {"Name": name, "Location": "Device", "Dimensions": shape, **types}


TEN = {
    "Layers": [
        {
            **LAYER,
            "Inputs": [tensor("x", [1, 4], **{"Format/Datatype": f"{CHANNELS} Int8 format"})],
            "Outputs": [tensor("y", [1, 8], **{"Format/Datatype": "Row major linear FP16 format"})],
            "Weights": {"Type": "Int8", "Count": 32},
        },
        {"Name": "move", "LayerType": "Reformat", "Weights": {"Type": "Float", "Count": 0}},
        "only a name",
    ],
    "Bindings": ["x", "y"],
}
ELEVEN = {
    "Layers": [
        {
            **LAYER,
            "Inputs": [tensor("x", [1, 4], Datatype="Int8", Format="kCHW32")],
            "Constants": [tensor("w", [8, 4], Datatype="Int8", Format="kLINEAR")],
            "Outputs": [tensor("y", [1, 8], Datatype="Half", Format="kLINEAR")],
        }
    ],
    "I/O Tensors": [],
}


@pytest.mark.parametrize("form", [TEN, ELEVEN], ids=["10", "11"])
def test_layers_of_both_forms(form):
    layer = layers_of(json.dumps(form))[0]
    assert (layer["name"], layer["kind"]) == ("conv + act", "CaskConvolution")
    assert layer["nodes"] == ["/a/conv", "x[0]"]
    assert layer["inputs"] == [{"name": "x", "dtype": "int8", "shape": [1, 4]}]
    assert [each["dtype"] for each in layer["constants"]] == ["int8"]
    assert layer["outputs"] == [{"name": "y", "dtype": "fp16", "shape": [1, 8]}]
    assert layer["tactic"] == "sm80_i8i8"


def test_layers_without_types_are_listed():
    rest = layers_of(json.dumps(TEN))[1:]
    assert [layer["name"] for layer in rest] == ["move", "only a name"]
    assert all(layer["constants"] == layer["inputs"] == [] for layer in rest)


@pytest.mark.parametrize(
    ("said", "dtype"),
    [
        ("Float", "fp32"),
        ("FP32", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("Half", "fp16"),
        ("BFloat16", "bf16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("FP8", "fp8"),
        ("FP8E4M3", "fp8"),
        ("Int4", "int4"),
        ("FP4E2M1", "fp4"),
        ("Int64", "int64"),
        ("UInt8", "uint8"),
        ("Bool", "bool"),
        ("N/A due to dynamic shapes", "N/A due to dynamic shapes"),
        ("E8M0", "E8M0"),
    ],
)
def test_types_by_their_many_names(said, dtype):
    for key in ("Datatype", "Format/Datatype"):
        layer = {"Name": "a", "Inputs": [{"Name": "x", "Dimensions": [], key: said}]}
        assert layers_of(json.dumps({"Layers": [layer]}))[0]["inputs"][0]["dtype"] == dtype


@pytest.mark.parametrize("text", ["", "[]", '{"Bindings": []}', '{"Layers": [{"Name2": 1}]}', "3"])
def test_an_unknown_form_is_no_empty_list(text):
    with pytest.raises(ValueError, match="form that is not known"):
        layers_of(text)


def test_lines_for_people():
    output = Output("scores")
    output.add(np.array([[1.0, 2]], np.float32), np.array([[1.0, 2.01]], np.float32), {})
    result = {
        "layers": layers_of(json.dumps(ELEVEN)),
        "outputs": [output.figures()],
        "agreements": output.agreements(),
        "timing": {"median_ms": 0.25, "runs": 100, "shapes": {"x": [2, 3]}, "how": "clock"},
        "gates": judged({"min_sqnr": 90.0}, [output]),
        "not_judged": ["max_drop"],
    }
    lines = told(1, result).splitlines()
    assert lines[0] == "layers by the types they read: int8 1"
    assert lines[2].split() == ["output", "SQNR", "dB", "cosine", "max", "error", "note"]
    assert lines[3].split()[:2] == ["scores", "46.99"]
    assert "top-1 of 'scores': 1.0000 of 1 decisions agree" in lines
    assert "0.2500 ms, median of 100 runs at x 2x3 (clock)" in lines
    assert lines[-2].startswith("gate min-sqnr 90.0: MISSED, 46.9")
    assert lines[-1].startswith("gate max-drop: not judged here")


def test_it_needs_numpy_alone():
    code = (
        f"import sys; sys.path.append({str(ROOT / 'qcompile' / 'emit')!r}); import engine_figures, "
        "engine_request; print([m for m in sys.modules if m in ('qcompile', 'onnx', 'ml_dtypes')])"
    )
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
