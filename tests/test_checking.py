"""The check of a file, without the command line around it."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from qcompile.checking import check
from qcompile.errors import ModelError, QcompileError, RecipeError
from tests.lint import test_parsing, test_ports
from tests.lint.models import Net, conv, matmul, scalar


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ir.save(conv(), tmp_path / "good.onnx")
    return tmp_path / "good.onnx"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tensorr"}, "--target tensorr: no such target; there are:"),
        (
            {"target": "ort-cpu"},
            "--target ort-cpu: there are no rules to check; there are for tensorrt, tensorrt-rtx",
        ),
        ({"sms": (53,)}, "--sm 53: tensorrt has no such device; there are:"),
        ({"sms": (87,), "target": "tensorrt-rtx"}, "--sm 87: tensorrt-rtx has no such device"),
        ({"version": 9}, "--trt-version 9: "),
        (
            {"version": 10, "target": "tensorrt-rtx"},
            "--trt-version: TensorRT for RTX counts versions of its own; leave it out",
        ),
        ({"shapes": "x"}, "--shapes 'x': write name:MIN,OPT,MAX"),
        ({"shapes": "z:1,2,3"}, "--shapes z: no such input; there are: x"),
        ({"shapes": "x:1,2,3"}, "--shapes x: 1 has 1 dimensions"),
        ({"shapes": "x:1x16x8x9,1x16x8x9,1x16x8x9"}, "--shapes x: dimension 3 of 1x16x8x9 is 9"),
    ],
)
def test_bad_options(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        check(model, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.onnx", "missing.py", "missing.sh", "missing.txt"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="no such file"):
        check(tmp_path / name)


def test_the_model_is_checked_as_it_is_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "unsigned.onnx"
    ir.save(test_parsing.unsigned(), path)
    before = path.read_bytes()
    result = check(path)
    assert [(f.rule, f.severity) for f in result.findings] == [("L06", "numerics")]
    assert path.read_bytes() == before


def test_tensors_of_unknown_type_are_noticed(tmp_path: Path) -> None:
    net = Net()
    y = net.op("Strange", net.input((4, 16)), domain="plugins")
    model = net.model(net.op("Relu", y))
    y.shape = None
    output = model.graph.outputs[0]
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((4, 16))
    ir.save(model, tmp_path / "odd.onnx")
    (notice,) = check(tmp_path / "odd.onnx").notices
    assert notice.startswith("type or shape of 1 of 2 tensors cannot be inferred")


@pytest.mark.parametrize(
    ("version", "sms", "setting"),
    [
        (None, (), "TensorRT 11"),
        (10, (), "TensorRT 10"),
        (11, (75, 120), "TensorRT 11, devices 7.5, 12.0"),
    ],
)
def test_what_it_was_checked_for(
    model: Path, version: int | None, sms: tuple[int, ...], setting: str
) -> None:
    result = check(model, version=version, sms=sms)
    assert (result.setting, result.findings) == (setting, ())


def test_devices_decide(tmp_path: Path) -> None:
    ir.save(test_parsing.symmetric_fp8(), tmp_path / "fp8.onnx")
    assert "L35" in {f.rule for f in check(tmp_path / "fp8.onnx", sms=(86, 89)).findings}
    assert "L35" not in {f.rule for f in check(tmp_path / "fp8.onnx", sms=(89,)).findings}


def test_a_profile_answers_l39(tmp_path: Path) -> None:
    ir.save(test_ports.dynamic(), tmp_path / "dynamic.onnx")
    assert check(tmp_path / "dynamic.onnx").counts["error"] == 1
    shapes = "x:1x16x8x8,4x16x8x8,8x16x8x8"
    assert check(tmp_path / "dynamic.onnx", shapes=shapes).findings == ()


def test_bad_files_are_errors_and_not_findings(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "bad.py").write_text("def")
    for name in ("text.onnx", "bad.py"):
        with pytest.raises(QcompileError, match=name):
            check(tmp_path / name)


def test_an_unnamed_node_is_named_by_its_output(tmp_path: Path) -> None:
    model = matmul(activation={"zero": scalar(3, "int8")})
    for node in model.graph:
        node.name = None
    ir.save(model, tmp_path / "unnamed.onnx")
    assert [f.where for f in check(tmp_path / "unnamed.onnx").findings] == [
        "quantizelinear.out",
        "dequantizelinear.out",
    ]
