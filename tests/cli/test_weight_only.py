"""Weights in few bits on the command line: what is built, refused, resumed and followed."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.cli import process
from tests.cli.process import Ended, answer, ended, start
from tests.languages import decoder, prose, tokenizer_json

TEXT = ("--calib", "text.txt", "--tokenizer", "tok.json", "--sequence-length", "32")
GPTQ = ("build", "a.onnx", "--int4", "--algorithm", "gptq", *TEXT, "--allow-slower")
LAYERS = ["down", "head", "up", "wk", "wo", "wq", "wv"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, a tokenizer and a text."""
    folder = tmp_path_factory.mktemp("weights")
    decoder(folder / "a.onnx")
    (folder / "tok.json").write_text(tokenizer_json())
    (folder / "text.txt").write_text("\n\n".join(prose(60, seed=n) for n in range(40)))
    return folder


@pytest.fixture(scope="module")
def gptq(lab: Path) -> Any:
    """The report of a build that nothing interrupted, into ``gptq``."""
    done = process.run(lab, *GPTQ, "-o", "gptq", "--json")
    assert done.code == 0, done.err
    assert "estimate: about " in done.err
    assert done.err.index("estimate: about ") < done.err.index("solve: weights: 7 in ")
    return done.json()


def bytes_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.onnx").read_bytes(), (folder / "plan.json").read_bytes()


def one_line(done: Ended) -> str:
    """Assert that a command was refused in one line after its notes, and return the line."""
    assert (done.code, done.out) == (2, ""), done
    assert "Traceback" not in done.err
    *notes, line = done.err.splitlines()
    assert line.startswith("error: ")
    assert not [note for note in notes if note.startswith("error")]
    return line


def test_the_report_has_a_row_for_each_weight(lab: Path, gptq: Any) -> None:
    rows = {row["name"]: row for row in gptq["weights"]}
    assert sorted(rows) == LAYERS
    for row in rows.values():
        assert (row["bits"], row["group_size"], row["symmetric"]) == (4, 128, True)
        assert row["op"] == "MatMul"
        assert set(row["errors"]) == {"rtn", "gptq"}
        assert row["errors"][row["algorithm"]] <= row["errors"]["rtn"]
        assert row["accuracy_level"] in (0, 4)
        assert 0 <= row["level_error"] < 0.1
    assert rows["up"]["shape"] == [256, 64]
    mean = {name: np.mean([r["errors"][name] for r in rows.values()]) for name in ("rtn", "gptq")}
    assert mean["gptq"] < 0.8 * mean["rtn"]
    assert gptq["engine"]["scores"][0]["name"] == "perplexity"
    assert any(notice.startswith("estimate: about ") for notice in gptq["notices"])
    assert json.loads((lab / "gptq" / "report.json").read_text())["weights"] == gptq["weights"]
    plan = json.loads((lab / "gptq" / "plan.json").read_text())
    assert sorted(plan["weights"]) == LAYERS
    assert plan["weights"]["up"]["errors"] == rows["up"]["errors"]
    assert not list((lab / "cache").glob("solving-*"))


def test_the_engine_holds_matmulnbits(lab: Path, gptq: Any) -> None:
    engine = onnx.load(lab / "gptq" / "model.onnx")
    nodes = [node for node in engine.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == len(LAYERS)
    assert {a.i for node in nodes for a in node.attribute if a.name == "bits"} == {4}
    assert gptq["kernels"]["obtained"] == gptq["kernels"]["expected"]


def test_a_person_sees_the_errors(lab: Path) -> None:
    asked = ("build", "a.onnx", "--int4", *TEXT, "--group-size", "32", "--asymmetric")
    done = process.run(lab, *asked, "--allow-slower", "-o", "seen", COLUMNS="120")
    assert done.code == 0
    shown = " ".join(done.out.split())
    assert "weights 4 bits in groups of 32, asymmetric: 7" in shown
    assert "rtn gptq awq awq+gptq taken weight" in shown
    assert "of plain rounding's" in shown
    assert "accuracy level 4 (int8 activations)" in shown


def test_more_bits_and_none_of_data(lab: Path, gptq: Any) -> None:
    """Plain rounding needs no samples, whatever of rtn and auto was said; ends can stay float."""
    asked = ("build", "a.onnx", "--allow-slower", "--json", "-q")
    ends = ("--float-last", "--exclude", "project_*")
    ways = {"2": (("--algorithm", "rtn"), LAYERS), "8": (ends, ["down", "up"])}
    for bits, (more, names) in ways.items():
        build = (*asked, "--weight-bits", bits, *more, "-o", f"bits{bits}")
        found = answer(process.run(lab, *build))
        assert sorted(row["name"] for row in found["weights"]) == names
        assert {row["algorithm"] for row in found["weights"]} == {"rtn"}
        assert {row["bits"] for row in found["weights"]} == {int(bits)}
        assert all(row["errors"] == {} for row in found["weights"])
        assert "without samples all weights are rounded to the nearest codes" in found["notices"]
    sizes = [(lab / name / "model.onnx").stat().st_size for name in ("bits2", "gptq")]
    assert sizes[0] < sizes[1] == gptq["artifacts"][0]["bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--int4", "--algorithm", "gptq"),
            "--algorithm gptq needs calibration data: give",
        ),
        (("--int4", "--algorithm", "awq"), "--algorithm awq needs calibration data"),
        (("--int4", "--algorithm", "best"), "--algorithm: Input should be 'auto', 'rtn', 'gptq'"),
        (
            ("--int4", "--algorithm", "brecq"),
            "--algorithm: brecq learns whole blocks, for --int8 only; weights in few bits are",
        ),
        (("--int4", "--algorithm", "adaround"), "--algorithm adaround needs calibration data"),
        (("--int4", "--algorithm", "smoothquant"), "--algorithm smoothquant: it is for --int8"),
        (("--algorithm", "awq"), "--algorithm: 'awq' is none of auto, equalize,"),
        (("--algorithm", "gptq+rtn"), "--algorithm: gptq+rtn: name each once"),
        (("--dynamic", "--algorithm", "equalize"), "--algorithm equalize: --dynamic takes"),
        (
            ("--fp8", "--algorithm", "brecq", "--target", "tensorrt", "--sm", "89"),
            "--algorithm brecq: codes of --fp8",
        ),
        (
            ("--fp16", "--algorithm", "smoothquant", "--target", "tensorrt", "--sm", "89"),
            "--algorithm smoothquant: it is for --int8",
        ),
        (("--int8", "--group-size", "32"), "--group-size is for weights in few bits"),
        (("--dynamic", "--asymmetric"), "--asymmetric is for weights in few bits"),
        (("--dynamic", "--accuracy-level", "0"), "--accuracy-level is for weights in few bits"),
        (("--int8", "--int4"), "--int8 and --int4: an engine has one scheme"),
        (("--int4", "--weight-bits", "3"), "--int4 and --weight-bits: an engine has one scheme"),
        (("--weight-bits", "5"), "--weight-bits: "),
        (("--int4", "--group-size", "48"), "--group-size: "),
        (
            ("--weight-bits", "2", "--group-size", "16"),
            "group size 16: for 2 bits ort-cpu takes 0, 32, 64, 128 (0: the whole channel): other",
        ),
        (
            ("--weight-bits", "8", "--accuracy-level", "0"),
            "accuracy level 0: for 8 bits ort-cpu takes 4: other levels unpack all weights",
        ),
        (("--int4", "--accuracy-level", "3"), "--accuracy-level: "),
        (("--target", "onnx"), "--target onnx has no scheme int8; it has: --int4 or --weight-"),
    ],
)
def test_what_is_refused(lab: Path, arguments: tuple[str, ...], message: str) -> None:
    line = one_line(process.run(lab, "build", "a.onnx", *arguments, "-o", "none", "-q"))
    assert message in line
    assert not (lab / "none").exists()
    assert not list((lab / "cache").glob("solving-*"))


def test_the_standard_form_runs_anywhere(lab: Path) -> None:
    asked = ("build", "a.onnx", "--int4", "--target", "onnx", *TEXT, "--algorithm", "awq+gptq")
    found = answer(
        process.run(lab, *asked, "--group-size", "32", "--allow-slower", "-o", "dq", "--json", "-q")
    )
    engine = onnx.load(lab / "dq" / "model.onnx")
    assert {node.domain for node in engine.graph.node} <= {"", "ai.onnx"}
    assert [o.version for o in engine.opset_import if o.domain in ("", "ai.onnx")] == [21]
    dq = [node for node in engine.graph.node if node.op_type == "DequantizeLinear"]
    assert len(dq) == len(LAYERS)
    assert found["simulated"]["outputs"][0]["sqnr_db"] > 15
    assert found["engine"]["outputs"][0]["sqnr_db"] > 15


# edited plans


@pytest.fixture
def plan(lab: Path, gptq: Any) -> dict[str, Any]:
    """The plan of the build."""
    assert gptq["status"] == "built"
    found: dict[str, Any] = json.loads((lab / "gptq" / "plan.json").read_text())
    return found


def followed(lab: Path, plan: dict[str, Any], out: str, *more: str) -> Ended:
    path = lab / f"{out}.json"
    path.write_text(json.dumps(plan))
    asked = ("build", "a.onnx", "--int4", *TEXT, "--plan", path.name, "--allow-slower")
    return process.run(lab, *asked, "-o", out, "--json", "-q", *more)


def test_an_unchanged_plan_gives_the_same_bytes(lab: Path, plan: dict[str, Any]) -> None:
    answer(followed(lab, plan, "same"))
    assert bytes_of(lab / "same") == bytes_of(lab / "gptq")


def test_an_edited_plan_is_followed(lab: Path, plan: dict[str, Any]) -> None:
    plan["weights"]["up"] |= {"bits": 8, "accuracy_level": 4}
    plan["weights"]["wq"] |= {"group_size": 32, "algorithm": "awq", "accuracy_level": 0}
    plan["nodes"]["head"] |= {"precision": "float", "reason": "it matters"}
    found = answer(followed(lab, plan, "edited"))
    rows = {row["name"]: row for row in found["weights"]}
    assert sorted(rows) == [name for name in LAYERS if name != "head"]
    assert rows["up"]["bits"] == 8
    assert rows["up"]["errors"]["gptq"] < 0.01
    assert (rows["wq"]["group_size"], rows["wk"]["group_size"]) == (32, 128)
    assert (rows["wq"]["accuracy_level"], set(rows["wq"]["errors"])) == (0, {"rtn", "awq"})
    engine = onnx.load(lab / "edited" / "model.onnx")
    nodes = [node for node in engine.graph.node if node.op_type == "MatMulNBits"]
    bits = [a.i for node in nodes for a in node.attribute if a.name == "bits"]
    assert sorted(bits) == [4, 4, 4, 4, 4, 8]
    again = json.loads((lab / "edited" / "plan.json").read_text())
    assert again["nodes"]["head"] == plan["nodes"]["head"]


def wrong_weight(plan: dict[str, Any]) -> None:
    plan["weights"]["nobody"] = plan["weights"]["up"]


def wrong_group(plan: dict[str, Any]) -> None:
    plan["weights"]["up"]["group_size"] = 48


def wrong_bits(plan: dict[str, Any]) -> None:
    plan["weights"]["up"] |= {"bits": 2, "group_size": 16}


def wrong_node(plan: dict[str, Any]) -> None:
    plan["nodes"]["nobody"] = plan["nodes"]["head"]


def wrong_precision(plan: dict[str, Any]) -> None:
    plan["nodes"]["head"]["precision"] = "int8"


def wrong_model(plan: dict[str, Any]) -> None:
    plan["model"] = "0" * 64


def wrong_scheme(plan: dict[str, Any]) -> None:
    plan["scheme"] = "int8"


def wrong_target(plan: dict[str, Any]) -> None:
    plan["target"] = "onnx"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_weight, "--plan: weight nobody is not in the model"),
        (wrong_group, "weights.up.group_size: Value error, 48 is no size that operators take"),
        (wrong_bits, "--plan: weight up: group size 16: for 2 bits ort-cpu takes 0, 32, 64, 128"),
        (wrong_node, "--plan: node nobody is not in the model"),
        (wrong_precision, "--plan: node head is int8, but the plan is weight-only"),
        (wrong_model, "--plan: it belongs to another model"),
        (wrong_scheme, "--plan: it is for scheme int8, this build is for weight-only: build with"),
        (wrong_target, "--plan: it is for target onnx, this build is for ort-cpu"),
    ],
)
def test_a_wrong_plan_is_refused(lab: Path, plan: dict[str, Any], spoil: Any, message: str) -> None:
    spoil(plan)
    assert message in one_line(followed(lab, plan, "wrong"))
    assert not (lab / "wrong").exists()


def test_what_a_plan_has_decided_is_not_asked_again(lab: Path, plan: dict[str, Any]) -> None:
    line = one_line(followed(lab, plan, "twice", "--algorithm", "awq"))
    assert "--algorithm: --plan twice.json has decided that" in line


def test_a_plan_with_solved_weights_needs_data(lab: Path, gptq: Any) -> None:
    asked = ("build", "a.onnx", "--int4", "--plan", "gptq/plan.json", "-q")
    line = one_line(process.run(lab, *asked))
    assert gptq["status"] == "built"
    assert "--plan: algorithm gptq needs calibration data" in line


# interrupted


def solved(folder: Path) -> list[Path]:
    return list(folder.glob("cache/solving-*/weights/*.npz"))


@pytest.fixture
def other(lab: Path, gptq: Any, tmp_path: Path) -> Path:
    """The same inputs in a folder with a cache of its own."""
    assert gptq["status"] == "built"
    for name in ("a.onnx", "tok.json", "text.txt"):
        (tmp_path / name).write_bytes((lab / name).read_bytes())
    return tmp_path


def stopped_at(folder: Path, count: int, number: signal.Signals) -> "subprocess.Popen[str]":
    """Start a build and send it a signal once so many weights are solved.

    At 0 it has its folder, but is still before the first weight: the samples run.
    """
    pattern = "cache/solving-*/weights/*.npz" if count else "cache/solving-*/lock"
    build = start(folder, *GPTQ, "-o", "out")
    deadline = time.monotonic() + 90
    while build.poll() is None and time.monotonic() < deadline:
        if len(list(folder.glob(pattern))) >= max(count, 1):
            break
        time.sleep(0.001)
    build.send_signal(number)
    return build


def refused_beside(folder: Path) -> None:
    """Assert that a second build of the same is refused."""
    line = one_line(process.run(folder, *GPTQ, "-o", "second", "-q"))
    assert "another build works on the same" in line
    assert not (folder / "second").exists()


@pytest.mark.slow
def test_a_build_that_is_killed_three_times_gives_the_same_bytes(lab: Path, other: Path) -> None:
    """Before the first weight; after some, while another build tries its luck; after the last."""
    for count in (0, 3, 7):
        build = stopped_at(other, count, signal.SIGSTOP if count == 3 else signal.SIGKILL)
        try:
            if count == 3:
                assert build.poll() is None
                refused_beside(other)
        finally:
            build.kill()
        assert ended(build).code == -signal.SIGKILL
        assert len(solved(other)) >= count
        assert not (other / "out").exists()

    finished = process.run(other, *GPTQ, "-o", "out")
    assert finished.code == 0, finished.err
    assert bytes_of(other / "out") == bytes_of(lab / "gptq")
    assert not list(other.glob("cache/solving-*"))
    assert sorted(path.name for path in other.iterdir()) == [
        "a.onnx", "cache", "out", "text.txt", "tok.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_solved_and_a_damaged_weight_is_named(other: Path) -> None:
    done = ended(stopped_at(other, 3, signal.SIGINT))
    assert done.code == 130
    assert "Traceback" not in done.err
    assert len(solved(other)) >= 3

    path = solved(other)[0]
    path.write_bytes(path.read_bytes()[:-200])
    line = one_line(process.run(other, *GPTQ, "-o", "out", "-q"))
    assert "is lost or damaged" in line
    assert f"remove the folder {path.parent} to solve again" in line
