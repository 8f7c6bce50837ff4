"""``qcompile check`` as a user runs it: what it prints, its exit codes, its errors."""

import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from qcompile.cli.main import main
from qcompile.lint.rule import Severity
from qcompile.report import console_check
from tests.cli.conftest import Run
from tests.cli.nets import MODEL
from tests.cli.process import TERMINAL, Ended
from tests.lint import test_parsing, test_ports, test_scales
from tests.lint.models import conv, matmul

Within = Callable[..., Ended]


@pytest.fixture
def within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Within:
    """Run a command in an empty folder, in this process: it takes a tenth of the time."""
    monkeypatch.chdir(tmp_path)
    for name in TERMINAL:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["qcompile", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models that break rules, and one that breaks none."""
    ir.save(conv(), tmp_path / "good.onnx")
    ir.save(test_parsing.asymmetric(), tmp_path / "asymmetric.onnx")
    ir.save(test_parsing.unsigned(), tmp_path / "unsigned.onnx")
    ir.save(test_ports.dynamic(), tmp_path / "dynamic.onnx")
    ir.save(test_scales.computed_scale(), tmp_path / "computed.onnx")
    ir.save(test_scales.tiny_half_scale(), tmp_path / "tiny.onnx")
    return tmp_path


def test_nothing_found_is_said_plainly(folder: Path, fresh: Run) -> None:
    done = fresh("check", "good.onnx")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "checked  good.onnx",
        "for      TensorRT 11",
        "found    nothing: no rule is broken",
    ]


def test_errors_end_with_code_1_and_name_rule_node_and_cure(folder: Path, run: Run) -> None:
    done = run("check", "asymmetric.onnx")
    assert (done.code, done.err) == (1, "")
    shown = " ".join(done.out.split())
    assert "L03 quantizelinear zero point 3 (int8): TensorRT takes symmetric codes only" in shown
    assert done.out.splitlines()[-1].split() == (
        ["found", "2", "errors", "(does", "not", "parse", "or", "build)"]
    )


@pytest.mark.parametrize(
    ("model", "severity"),
    [("unsigned", "numerics"), ("computed", "float"), ("tiny", "numerics")],
)
def test_other_findings_end_with_code_0(
    folder: Path, within: Within, model: str, severity: str
) -> None:
    done = within("check", f"{model}.onnx", "--json")
    assert (done.code, done.err) == (0, "")
    answer = done.json()
    assert answer["counts"]["error"] == 0
    assert answer["counts"][severity] == len(answer["findings"]) > 0


def test_json_has_everything(folder: Path, within: Within) -> None:
    answer = within(
        "check", "asymmetric.onnx", "--json", "--sm", "87,89", "--trt-version", "10"
    ).json()
    assert answer["model"] == "asymmetric.onnx"
    assert answer["target"] == "tensorrt"
    assert answer["setting"] == "TensorRT 10, devices 8.7, 8.9"
    assert answer["counts"] == {"error": 2, "float": 0, "numerics": 0, "warning": 0}
    assert [(f["rule"], f["severity"], f["where"]) for f in answer["findings"]] == [
        ("L03", "error", "quantizelinear"),
        ("L03", "error", "dequantizelinear"),
    ]


def test_severities_mean_what_the_rules_say() -> None:
    assert [meaning for _, meaning in console_check._KINDS.values()] == [s.value for s in Severity]


def test_quiet_still_tells_by_its_code(folder: Path, run: Run) -> None:
    done = run("check", "asymmetric.onnx", "--quiet")
    assert (done.code, done.out, done.err) == (1, "", "")


def test_shapes_answer_a_missing_profile(folder: Path, within: Within) -> None:
    done = within("check", "dynamic.onnx")
    assert done.code == 1
    assert "--shapes x:1x16x8x8,8x16x8x8,64x16x8x8" in " ".join(done.out.split())
    assert within("check", "dynamic.onnx", "--shapes", "x:1x16x8x8,8x16x8x8,64x16x8x8").code == 0


def test_many_places_of_a_rule_are_cut_short(folder: Path, within: Within) -> None:
    from tests.lint.models import Net, scalar

    net = Net()
    x = net.input((4, 16))
    for number in range(8):
        x = net.op("Relu", net.qdq(x, scalar(0.1 + number), zero=scalar(3, "int8")))
    ir.save(net.model(x), folder / "many.onnx")
    done = within("check", "many.onnx")
    assert "and 11 more" in done.out
    assert done.out.count(" L03 ") == 6
    assert len(within("check", "many.onnx", "--json").json()["findings"]) >= 16


def test_tensorrt_rtx_has_rules_of_its_own(folder: Path, within: Within) -> None:
    done = within("check", "computed.onnx", "--target", "tensorrt-rtx", "--sm", "89")
    assert done.code == 0
    shown = " ".join(done.out.split())
    assert "for TensorRT for RTX, devices 8.9" in shown
    assert "computed while the engine runs: products compute in float" in shown


def test_the_sample_of_the_repository_is_clean(within: Within) -> None:
    answer = within("check", MODEL, "--json", "--shapes", "image:1x1x8x8,4x1x8x8,8x1x8x8").json()
    assert answer["counts"]["error"] == 0


def test_a_script_is_read(folder: Path, within: Within) -> None:
    (folder / "build.sh").write_text("trtexec --onnx=m.onnx --int8 \\\n  --saveEngine=m.engine\n")
    done = within("check", "build.sh", "--json")
    assert done.code == 1
    assert {f["rule"] for f in done.json()["findings"]} == {"L44"}
    assert within("check", "build.sh", "--trt-version", "10").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "missing.onnx: no such file"),
        (["good.onnx", "--sm", "88x"], "--sm 88x: give numbers"),
        (["good.onnx", "--target", "ort-cpu"], "--target ort-cpu: there are no rules to check"),
        (["good.onnx", "--shapes", "z:1,2,3"], "--shapes z: no such input; there are: x"),
        (["build.sh", "--shapes", "x:1,2,3"], "--shapes: build.sh is a script"),
    ],
)
def test_bad_input(folder: Path, within: Within, arguments: list[str], message: str) -> None:
    (folder / "build.sh").write_text("true\n")
    done = within("check", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_a_file_that_is_no_model(folder: Path, run: Run) -> None:
    (folder / "text.onnx").write_text("hello")
    done = run("check", "text.onnx")
    assert (done.code, done.err) == (2, "error: text.onnx: not an ONNX file, or cut short\n")


def test_help(run: Run) -> None:
    done = run("check", "--help", COLUMNS="120")
    assert (done.code, done.err) == (0, "")
    for word in ("--target", "--trt-version", "--sm", "--shapes", "--json", "Exit code 1"):
        assert word in done.out
    assert " check " in run("--help").out


def test_names_in_a_model_do_not_reach_the_terminal_raw(folder: Path, within: Within) -> None:
    model = matmul(activation={"scale": None, "zero": test_parsing.scalar(3, "int8")})
    next(iter(model.graph)).name = "evil\x1b[31m"
    ir.save(model, folder / "evil.onnx")
    done = within("check", "evil.onnx")
    assert done.code == 1
    assert "\x1b" not in done.out
    assert "evil\N{REPLACEMENT CHARACTER}[31m" in done.out
