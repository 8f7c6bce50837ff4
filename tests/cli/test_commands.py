"""The command line as a user meets it: in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qcompile.recipe import Calibration, Gates, Recipe, recipe_from
from tests.report.examples import EVERYTHING

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("bench", "build", "calibrate", "compare", "doctor", "inspect", "passes", "targets")

STAND_IN = """
import sys, time, types
from qcompile.errors import DataError, GateError, PassError
from tests.report.examples import EVERYTHING

FAILED = EVERYTHING.model_copy(update={"status": "gate failed"})

def build(model, **given):
    print(given["recipe"].model_dump_json(), file=open("recipe.json", "w"))
    progress = given["progress"]
    progress.step("calibrate", 3, 3)
    progress.notice("odd data")
    raise_for = {
        "data.onnx": DataError("calib/:\\n no \\x1b[31msamples"),
        "pass.onnx": PassError("pass x lied"),
        "defect.onnx": ZeroDivisionError("oh"),
        "disk.onnx": OSError(28, "No space left on device", "out/model.onnx"),
        "gate.onnx": GateError("min-sqnr: 31 dB", FAILED),
        "stop.onnx": KeyboardInterrupt(),
    }
    if str(model) in raise_for:
        raise raise_for[str(model)]
    if str(model) == "slow.onnx":
        try:
            open("started", "w").close()
            time.sleep(60)
        finally:
            open("cleaned", "w").close()
    return EVERYTHING

pipeline = types.ModuleType("qcompile.pipeline")
pipeline.build = build
sys.modules["qcompile.pipeline"] = pipeline
from qcompile.cli.main import main
main()
"""
"""The real command line over a pipeline that answers at once: for exits, flags and streams."""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(*arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qcompile.cli.main", *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        cwd=cwd,
        env=environment(**more),
    )


def stand_in(cwd: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STAND_IN, *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        cwd=cwd,
        env=environment(**more),
    )


def test_help_lists_all_commands_and_is_fast() -> None:
    started = time.perf_counter()
    done = run("--help")
    assert time.perf_counter() - started < 5  # 0.3 s alone; the machine may be busy
    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert run().stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: qcompile {command}" in done.stdout
    assert "--json" in done.stdout


def test_help_of_build_has_every_option_of_the_recipe() -> None:
    text = run("build", "--help", COLUMNS="120").stdout
    flags = (
        "--int8 --dynamic --calib --eval --output -o --force --target --cpu --calib-method "
        "--calib-samples --exclude --exclude-op --float-first --float-last --recipe --plan "
        "--optimized --metric --min-sqnr --min-agreement --max-drop --min-speedup --allow-slower "
        "--no-keep-accuracy --dump-passes --jobs --quiet --json --debug"
    )
    assert [flag for flag in flags.split() if f" {flag} " not in text] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["biuld"], "biuld"),
        (["build"], "MODEL"),
        (["build", "m.onnx", "--calib-method", "kl"], "kl"),
        (["build", "m.onnx", "--min-agreement", "1.5"], "--min-agreement"),
        (["build", "m.onnx", "--jobs", "0"], "--jobs"),
        (["build", "m.onnx", "--cpu", "z80"], "z80"),
        (["build", "m.onnx", "--bogus"], "--bogus"),
        (["compare", "a.onnx", "b.onnx"], "--data"),
    ],
)
def test_usage_errors_are_one_line_and_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_version() -> None:
    assert run("--version").stdout.startswith("qcompile ")


@pytest.mark.parametrize("command", ["doctor", "passes", "targets"])
def test_lists_as_text_and_json(command: str) -> None:
    text, data = run(command), run(command, "--json")
    assert (text.returncode, text.stderr) == (0, "")
    assert (data.returncode, data.stderr) == (0, "")
    assert json.loads(data.stdout)


def test_targets_and_doctor_agree() -> None:
    names = [t["name"] for t in json.loads(run("targets", "--json").stdout)["targets"]]
    assert list(json.loads(run("doctor", "--json").stdout)["builds"]) == names


def test_summary_goes_to_stdout_and_progress_to_stderr(tmp_path: Path) -> None:
    done = stand_in(tmp_path, "build", "net.onnx", "--calib", "data")
    assert done.returncode == 0
    assert "/builds/net-int8-ort-cpu" in done.stdout
    assert done.stderr.startswith("calibrate: 3 in ")
    assert "\x1b" not in done.stdout + done.stderr


def test_json_is_alone_on_stdout(tmp_path: Path) -> None:
    done = stand_in(tmp_path, "build", "net.onnx", "--json")
    assert json.loads(done.stdout) == EVERYTHING.model_dump(mode="json")
    assert "calibrate" in done.stderr


def test_quiet_is_silent_and_json_still_answers(tmp_path: Path) -> None:
    done = stand_in(tmp_path, "build", "net.onnx", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = stand_in(tmp_path, "build", "net.onnx", "-q", "--json")
    assert json.loads(done.stdout)["status"] == "built"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("model", "code", "last"),
    [
        ("data.onnx", 2, "error: calib/: no \N{REPLACEMENT CHARACTER}[31msamples"),
        ("disk.onnx", 2, "error: [Errno 28] No space left on device: 'out/model.onnx'"),
        ("pass.onnx", 1, "error: pass x lied"),
        (
            "defect.onnx",
            1,
            "error: a defect of qcompile: ZeroDivisionError: oh (run with --debug and report it)",
        ),
        ("stop.onnx", 130, "interrupted; finished statistics are kept"),
        ("gate.onnx", 3, "error: min-sqnr: 31 dB"),
    ],
)
def test_each_end_has_its_code_and_line(tmp_path: Path, model: str, code: int, last: str) -> None:
    done = stand_in(tmp_path, "build", model)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == last
    assert "Traceback" not in done.stderr


def test_notices_precede_an_error(tmp_path: Path) -> None:
    assert "note: odd data\n" in stand_in(tmp_path, "build", "data.onnx").stderr


def test_missed_gate_still_gives_the_report(tmp_path: Path) -> None:
    done = stand_in(tmp_path, "build", "gate.onnx", "--json")
    assert json.loads(done.stdout)["status"] == "gate failed"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in stand_in(tmp_path, "build", "defect.onnx", "--debug").stderr
    assert "Traceback" in stand_in(tmp_path, "build", "data.onnx", "--debug").stderr


def recipe_of(cwd: Path, *arguments: str) -> Recipe:
    assert stand_in(cwd, "build", "net.onnx", *arguments, "-q").returncode == 0
    return Recipe.model_validate_json((cwd / "recipe.json").read_text())


def test_no_flags_are_the_default_recipe(tmp_path: Path) -> None:
    assert recipe_of(tmp_path) == Recipe()
    assert recipe_of(tmp_path, "--int8") == Recipe()
    assert recipe_of(tmp_path, "--dynamic") == Recipe(scheme="int8-dynamic")


def test_every_flag_reaches_the_recipe(tmp_path: Path) -> None:
    flags = (
        "--int8 --target ort-cpu --cpu arm --calib-method mse --calib-samples 7 --exclude a* "
        "--exclude b? --exclude-op Add --float-first --float-last --no-keep-accuracy --optimized "
        "--metric m:f --min-sqnr 20 --min-agreement 0.9 --max-drop 0.5 --min-speedup 1.5 "
        "--allow-slower --jobs 3"
    )
    assert recipe_of(tmp_path, *flags.split()) == Recipe(
        cpu="arm",
        calibration=Calibration(method="mse", samples=7),
        exclude=("a*", "b?"),
        exclude_ops=("Add",),
        float_first=True,
        float_last=True,
        keep_accuracy=False,
        optimized=True,
        gates=Gates(
            min_sqnr=20, min_agreement=0.9, max_drop=0.5, min_speedup=1.5, allow_slower=True
        ),
        metric="m:f",
        jobs=3,
    )


def test_flags_override_the_recipe_file_and_leave_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text(
        'scheme = "int8-dynamic"\nfloat_last = true\n'
        '[calibration]\nmethod = "mse"\nholdback = 0.1\n'
        "[gates]\nmin_sqnr = 30\n"
    )
    got = recipe_of(tmp_path, "--recipe", str(file), "--int8", "--calib-method", "entropy")
    said: dict[str, Any] = {"scheme": "int8", "calibration": {"method": "entropy"}}
    assert got == recipe_from(said, file)
    assert got.calibration == Calibration(method="entropy", holdback=0.1)
    assert (got.scheme, got.float_last, got.gates.min_sqnr) == ("int8", True, 30)


@pytest.mark.parametrize("content", ["sceme = 1", "scheme = ", None])
def test_bad_recipe_file_is_one_line(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "net.toml"
    if content is not None:
        file.write_text(content)
    done = stand_in(tmp_path, "build", "net.onnx", "--recipe", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {file}: ") or str(file) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "terminate"]
)
def test_signals_run_the_clean_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, "build", "slow.onnx"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert (tmp_path / "cleaned").exists()
    assert "Traceback" not in errors


def test_reader_that_leaves_gives_no_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, "build", "net.onnx", "--json"],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 141
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_missing_streams_do_no_harm(tmp_path: Path, closed: str) -> None:
    script = tmp_path / "run.py"
    script.write_text(STAND_IN)
    done = subprocess.run(
        f"{sys.executable} {script} build net.onnx {closed}",
        shell=True,
        check=False,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("variable", ["NO_COLOR", None])
def test_no_color_is_honoured(tmp_path: Path, variable: str | None) -> None:
    more = {variable: "1"} if variable else {}
    done = stand_in(tmp_path, "build", "gate.onnx", FORCE_COLOR="1", TERM="xterm", **more)
    assert ("\x1b[32m" in done.stdout) == (variable is None)
