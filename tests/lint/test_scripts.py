"""L43, L44, L46: scripts that use what TensorRT 11 lacks, or quantize for something else."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompile.errors import ModelError
from qcompile.lint import ort_options
from qcompile.lint.removed import ASSIGNED, ATTRIBUTES, CLASSES, MEMBERS
from qcompile.lint.rule import Setting, Severity, findings
from qcompile.lint.scripts import RULES, check_script
from tests.lint.cases import Case, Cases
from tests.lint.models import conv

TEN, ELEVEN = Setting(version=10), Setting(version=11)

TEN_ONLY = """
    import tensorrt as trt
    from tensorrt import IInt8EntropyCalibrator2

    class Calibrator(IInt8EntropyCalibrator2):
        pass

    def build(builder, config, network, engine, layer):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        network = builder.create_network(flags)
        network = builder.create_network(1 << 0)
        config.set_flag(trt.BuilderFlag.FP16)
        config.flags |= 1 << 5
        config.int8_calibrator = Calibrator()
        layer.precision = trt.float16
        layer.set_output_type(0, trt.float16)
        if builder.platform_has_fast_int8:
            config.set_tactic_sources(1 << int(trt.TacticSource.CUDNN))
        engine.weight_streaming_budget = 1
"""
BOTH = """
    import tensorrt as trt

    MAJOR = int(trt.__version__.split(".")[0])

    def build(builder, config, engine, report):
        flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(flag)) if MAJOR < 11 else builder.create_network()
        network = builder.create_network(0)
        config.set_flag(trt.BuilderFlag.TF32)
        config.flags = 1 << int(trt.BuilderFlag.REFIT)
        engine.weight_streaming_budget_v2 = 1
        report.precision = 0.5
        if hasattr(trt.BuilderFlag, "FP16"):
            config.set_flag(trt.BuilderFlag.FP16)
        try:
            config.int8_calibrator = None
        except AttributeError:
            pass
"""
QUANTIZE = """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    EXTRA = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}

    def run(reader):
        quantize_static(
            "a.onnx", "b.onnx", reader, quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, extra_options=EXTRA
        )
"""


def check(tmp_path: Path, text: str, setting: Setting = ELEVEN, name: str = "s.py") -> list[str]:
    """Return line and rule of each finding."""
    return [f"{f.where.partition(':')[2]} {f.rule}" for f in found(tmp_path, text, setting, name)]


def found(tmp_path: Path, text: str, setting: Setting = ELEVEN, name: str = "s.py"):
    path = tmp_path / name
    path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return check_script(path, setting)


def test_every_use_of_a_removed_name_is_found(tmp_path: Path) -> None:
    lines = (2, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18)
    assert check(tmp_path, TEN_ONLY) == [f"{line} L43" for line in lines]


def test_tensorrt_10_has_these_names(tmp_path: Path) -> None:
    assert check(tmp_path, TEN_ONLY, TEN) == []


def test_code_that_asks_for_the_version_is_not_judged(tmp_path: Path) -> None:
    assert check(tmp_path, BOTH) == []


def test_a_script_without_tensorrt_is_not_judged(tmp_path: Path) -> None:
    assert check(tmp_path, "config.set_flag(1)\nx.dynamic_range = 3\n") == []


def test_messages_name_what_is_gone_and_what_to_do(tmp_path: Path) -> None:
    text = "import tensorrt as trt\ntrt.BuilderFlag.FP16\n"
    [finding] = found(tmp_path, text)
    assert finding.where == "s.py:2"
    assert finding.severity is Severity.ERROR
    assert "BuilderFlag.FP16 is not in TensorRT 11" in finding.what
    assert "Q/DQ" in finding.what


@pytest.mark.skipif(not find_spec("tensorrt_rtx_bindings"), reason="TensorRT for RTX is absent")
def test_bindings_lack_every_name_that_is_called_removed() -> None:
    """TensorRT for RTX has the Python surface of TensorRT 11."""
    import tensorrt_rtx_bindings as trt

    classes = [c for c in vars(trt).values() if isinstance(c, type)]
    attributes = {name for c in classes for name in dir(c)}
    assert not attributes & {*ATTRIBUTES, *ASSIGNED}
    assert not set(dir(trt)) & set(CLASSES)
    for enumeration, members in MEMBERS.items():
        assert not set(dir(getattr(trt, enumeration))) & set(members)


TRTEXEC = r"""
    #!/bin/sh
    set -e  # trtexec --fp16 in a comment
    /usr/src/tensorrt/bin/trtexec --onnx=model.onnx \
        --saveEngine=model.engine \
        --int8 --fp16   # both
    cd x && trtexec --onnx="a b.onnx" --best; echo --calib
    "$TRTEXEC" --onnx=m.onnx --layerPrecisions=a:fp16 --calib=c.cache --tacticSources=-CUDNN
    trtexec --onnx=m.onnx --stronglyTyped --memPoolSize=workspace:1024
    echo --fp16
"""


def test_options_that_trtexec_11_lacks(tmp_path: Path) -> None:
    want = ["3 L44", "3 L44", "6 L44", "7 L44", "7 L44", "7 L44"]
    assert check(tmp_path, TRTEXEC, name="build.sh") == want
    assert check(tmp_path, TRTEXEC, TEN, name="build.sh") == []


@pytest.mark.parametrize("option", ["--fp16", "--int8", "--best", "--layerPrecisions=*:fp16"])
def test_types_contradict_strong_typing(tmp_path: Path, option: str) -> None:
    text = f"trtexec --onnx=a.onnx {option} \\\n --stronglyTyped\n"
    assert check(tmp_path, text, TEN, "commands.txt") == ["1 L44"]


def test_options_of_tensorrt_11_pass(tmp_path: Path) -> None:
    text = (
        "trtexec --onnx=a.onnx --minShapes=x:1x3x32x32 --maxShapes=x:8x3x32x32 --stripWeights "
        "--profilingVerbosity=detailed --noCudaGraph --tacticSources=+JIT_CONVOLUTIONS\n"
        "echo 'a quotation that\n ends elsewhere'\n"
    )
    assert check(tmp_path, text, name="build.sh") == []


def test_right_options_of_the_quantizer_pass(tmp_path: Path) -> None:
    assert check(tmp_path, QUANTIZE) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("activation_type=QuantType.QInt8", "activation_type=QuantType.QUInt8", "activation_type="),
        ("weight_type=QuantType.QInt8", "weight_type=QuantType.QUInt8", "weight_type="),
        ('"ActivationSymmetric": True, ', "", "ActivationSymmetric=True"),
        ('"WeightSymmetric": True', '"WeightSymmetric": False', "WeightSymmetric=True"),
        (', "QuantizeBias": False', "", "QuantizeBias=False"),
        ("QuantFormat.QDQ", "QuantFormat.QOperator", "quant_format="),
        (", extra_options=EXTRA", "", "QuantizeBias=False"),
        ("extra_options=EXTRA", "extra_options=dict(QuantizeBias=False)", "ActivationSymmetric"),
    ],
)
def test_each_option_of_the_quantizer_is_needed(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert old in QUANTIZE
    [finding] = found(tmp_path, QUANTIZE.replace(old, new))
    assert (finding.rule, finding.where) == ("L46", "s.py:6")
    assert told in finding.what


def test_computed_options_are_trusted(tmp_path: Path) -> None:
    text = QUANTIZE.replace("extra_options=EXTRA", "extra_options=options()")
    assert check(tmp_path, text) == []
    assert check(tmp_path, QUANTIZE.replace("def run", "EXTRA['x'] = 1\n\n    def run")) == []
    assert check(tmp_path, QUANTIZE.replace("extra_options=EXTRA", "**EXTRA")) == []


def test_dynamic_quantization_is_refused(tmp_path: Path) -> None:
    text = "import onnxruntime.quantization as q\nq.quantize_dynamic('a.onnx', 'b.onnx')\n"
    assert check(tmp_path, text) == ["2 L46"]


def test_quantizers_of_others_are_not_judged(tmp_path: Path) -> None:
    text = "from modelopt.onnx import quantize_static\nquantize_static('a', 'b', None)\n"
    assert check(tmp_path, text) == []


def by_onnxruntime(zero: int) -> ir.Model:
    """Stand-in for what its quantizer writes: a zero point of 0 is symmetric."""
    model = conv(activation={"zero": np.array(zero, np.int8)})
    model.producer_name = "onnx.quantize"
    return model


BREAKS: Cases = {
    "L46": (Case(partial(by_onnxruntime, 3), name="asymmetric", also=frozenset({"L03"})),)
}
KEEPS: Cases = {"L46": (Case(partial(by_onnxruntime, 0), name="symmetric"), Case(conv))}


def static(folder: Path, **options: object) -> onnx.ModelProto:
    """Quantize a Conv by onnxruntime itself."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter([{"x": np.ones((1, 3, 8, 8), np.float32)}] * 2)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.samples, None)

    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 6, 6))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight[:, 0, 0, 0], "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "quantized.onnx"
    quantization.quantize_static(model, path, Reader(), extra_options=options)
    return onnx.load(path)


def test_a_model_tells_which_options_made_it(tmp_path: Path) -> None:
    wrong = ir.from_proto(static(tmp_path))
    [finding] = findings(wrong, ELEVEN, ort_options.RULES)
    assert finding.rule == "L46"
    assert "QuantizeBias=False" in finding.what
    assert "ActivationSymmetric=True" in finding.what
    right = ir.from_proto(static(tmp_path, ActivationSymmetric=True, QuantizeBias=False))
    assert findings(right, ELEVEN, ort_options.RULES) == []


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("s.py", b"def f(:\n", "s.py:1: not valid Python"),
        ("s.py", b"x = '\x00'\n", "not valid Python"),
        ("s.py", b"(" * 300 + b")" * 300, "not valid Python"),
        ("s.py", b"\xff\xfe", "not a text file"),
        ("s.onnx", b"", "end in"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=told):
        check_script(path, ELEVEN)


def test_missing_and_large_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        check_script(tmp_path / "none.py", ELEVEN)
    with pytest.raises(ModelError, match="cannot be read"):
        check_script(tmp_path, ELEVEN)
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(11 << 20)
    with pytest.raises(ModelError, match="no script"):
        check_script(path, ELEVEN)


def test_scripts_are_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = f"import tensorrt\nopen({str(mark)!r}, 'w')\n"
    assert check(tmp_path, text) == []
    assert not mark.exists()


def test_rules_say_where_they_were_found() -> None:
    assert [rule.name for rule in RULES] == ["L43", "L44", "L46"]
    assert all(rule.title and rule.source for rule in RULES)
