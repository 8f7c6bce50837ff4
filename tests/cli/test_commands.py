"""Help, usage, lists and streams of the command line, as processes."""

import signal
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.cli.conftest import Run
from tests.cli.nets import CALIB, MODEL, perceptron
from tests.cli.process import ended, shell, start

COMMANDS = (
    *(
        "bench",
        "build",
        "calibrate",
        "compare",
        "dequantize",
        "doctor",
        "export",
        "inspect",
        "passes",
    ),
    "targets",
)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(perceptron(16), tmp_path / "net.onnx")
    return tmp_path


# -- help, usage, lists -------------------------------------------------------------------------


def test_help_lists_all_commands_and_is_fast(run: Run, fresh: Run) -> None:
    started = time.perf_counter()
    done = fresh("--help")
    assert time.perf_counter() - started < 5  # 0.3 s alone; the machine may be busy
    assert done.code == 0
    assert all(f" {name} " in done.out for name in COMMANDS)
    assert run() == done


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: qcompile {command}" in done.out
    assert "--json" in done.out


def test_help_of_build_has_every_option_of_the_recipe(run: Run) -> None:
    text = run("build", "--help", COLUMNS="120").out
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
def test_usage_errors_are_one_line_and_2(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_version(fresh: Run) -> None:
    assert fresh("--version").out.startswith("qcompile ")


@pytest.mark.parametrize("command", ["doctor", "passes", "targets"])
def test_lists_as_text_and_json(run: Run, fresh: Run, command: str) -> None:
    text, data = fresh(command), run(command, "--json")
    assert (text.code, text.err) == (0, "")
    assert (data.code, data.err) == (0, "")
    assert data.json()


def test_doctor_knows_runtimes_devices_and_what_can_be_built(run: Run) -> None:
    found = run("doctor", "--json").json()
    runtimes = {runtime["name"]: runtime for runtime in found["runtimes"]}
    assert runtimes["onnxruntime"]["version"] == onnxruntime.__version__
    assert "CPUExecutionProvider" in runtimes["onnxruntime"]["providers"]
    assert runtimes["onnxruntime"]["devices"]
    assert all(runtime["version"] or runtime["missing"] for runtime in runtimes.values())
    targets = {each["name"]: each for each in run("targets", "--json").json()["targets"]}
    builds = found["builds"]
    assert list(builds) == list(targets)
    assert builds["ort-cpu"] == builds["onnx"] == "build, run and time"
    assert builds["ort-mobile"].startswith("build")
    assert "--ep cuda: build" in builds["ort-cuda"]
    assert "--ep tensorrt: build" in builds["ort-cuda"]
    has_rtx = runtimes["tensorrt_rtx_cu13_libs"]["missing"] is None
    sms = f"build for sm {', '.join(targets['tensorrt-rtx']['devices'])};"
    assert builds["tensorrt-rtx"].startswith(sms if has_rtx else "no: needs tensorrt_rtx")
    has_tensorrt = runtimes["tensorrt"]["missing"] is None
    assert builds["tensorrt"] == "build, run and time" or not has_tensorrt
    assert has_tensorrt or "build_engine.py" in builds["tensorrt"]


def test_doctor_lists_unfinished_builds(run: Run, tmp_path: Path) -> None:
    assert "days ago" not in run("doctor").out
    folder = tmp_path / "cache" / "solving-abc"
    folder.mkdir(parents=True)
    (folder / "a.npz").write_bytes(bytes(2_000_000))
    asked = {"QCOMPILE_CACHE": str(tmp_path / "cache")}
    found = run("doctor", "--json", **asked).json()
    assert found["cache"] == asked["QCOMPILE_CACHE"]
    (only,) = found["unfinished"]
    assert (only["folder"], only["size"]) == ("solving-abc", 2_000_000)
    assert "solving-abc" in run("doctor", **asked).out


# -- streams ------------------------------------------------------------------------------------


def test_answer_goes_to_stdout_and_progress_to_stderr(run: Run) -> None:
    done = run("calibrate", MODEL, "--calib", CALIB)
    assert done.code == 0
    assert "image" in done.out
    assert "calibrate: ranges: 160 in " in done.err
    assert "\x1b" not in done.out + done.err


def test_json_is_alone_on_stdout(run: Run) -> None:
    done = run("calibrate", MODEL, "--calib", CALIB, "--json")
    assert done.json()["samples"] == 160
    assert "calibrate: ranges: 160 in " in done.err


def test_quiet_is_silent_and_json_still_answers(run: Run, net: Path) -> None:
    done = run("inspect", "net.onnx", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = run("inspect", "net.onnx", "-q", "--json")
    assert (done.code, done.json()["model"]["path"], done.err) == (0, "net.onnx", "")


def test_notices_precede_an_error(run: Run, net: Path) -> None:
    (net / "data").mkdir()
    (net / "data" / "readme.txt").write_text("ignore me")
    np.savez(net / "data" / "bad.npz", x=np.full((1, 8), np.nan, np.float32))
    done = run("build", "net.onnx", "--calib", "data")
    assert done.code == 2
    *notes, error = done.err.splitlines()
    assert error.startswith("error: ")
    assert "bad.npz" in error
    assert any(note.startswith("note: ") and "readme.txt" in note for note in notes)


def test_debug_shows_the_traceback_before_the_line(run: Run) -> None:
    done = run("build", "none.onnx", "--calib", "none", "--debug")
    assert done.code == 2
    assert done.err.startswith("Traceback")
    assert done.err.splitlines()[-1] == "error: none.onnx: no such file"


BUILD = "build net.onnx --int8 --calib data.npz --allow-slower --min-speedup 0.001 --force -o"


@pytest.mark.slow
def test_builds_with_colour_without_it_and_without_streams(run: Run, net: Path) -> None:
    """The files of a build must not become its stdout, where the runtime would print into them."""
    x = np.random.default_rng(0).normal(size=(40, 8)).cumsum(1).astype(np.float32)
    np.savez(net / "data.npz", x=x)
    for more in ({}, {"NO_COLOR": "1"}):
        done = run(*BUILD.split(), "open", FORCE_COLOR="1", TERM="xterm", **more)
        assert done.code == 0, done.err
        assert "passed" in done.out
        assert ("\x1b[32m" in done.out) == (not more)
    assert shell(net, f"qcompile {BUILD} closed >&- 2>&- <&-").code == 0
    for name in ("model.onnx", "plan.json"):
        assert (net / "open" / name).read_bytes() == (net / "closed" / name).read_bytes()


def test_reader_that_leaves_gives_no_traceback(net: Path) -> None:
    process = start(net, "inspect", "net.onnx", "--json", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stream:
        errors = stream.read()
    assert process.wait(60) == 141
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_full_disk_behind_stdout_is_one_line(net: Path) -> None:
    done = shell(net, "qcompile inspect net.onnx --quiet --json > /dev/full")
    assert (done.code, done.err) == (
        2,
        "error: stdout cannot be written (No space left on device)\n",
    )
    assert shell(net, "qcompile inspect none.onnx 2> /dev/full").code == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_missing_streams_do_no_harm(net: Path, closed: str) -> None:
    done = shell(net, f"qcompile inspect net.onnx {closed}")
    assert done.code == 0
    assert "Traceback" not in done.out + done.err


# -- what stops a command ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; finished statistics are kept\n"),
        (signal.SIGTERM, 143, ""),
    ],
    ids=["Ctrl-C", "terminate"],
)
def test_signals_run_the_clean_up(net: Path, number: signal.Signals, code: int, said: str) -> None:
    (net / "endless.py").write_text(
        "import time\n"
        "def samples():\n"
        "    open('started', 'w').close()\n"
        "    time.sleep(60)\n"
        "    yield {}\n"
    )
    (net / "temporary").mkdir()
    arguments = ("build", "net.onnx", "--calib", "endless:samples", "-o", "out", "-q")
    process = start(net, *arguments, TMPDIR="temporary", PYTHONDONTWRITEBYTECODE="1")
    deadline = time.monotonic() + 30
    while not (net / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(net.glob(".out.partial-*"))
    assert list(net.glob("temporary/qcompile-samples-*"))
    process.send_signal(number)
    done = ended(process)
    assert (done.code, done.out, done.err) == (code, "", said)
    left = sorted(path.name for path in net.iterdir())
    assert left == ["endless.py", "net.onnx", "started", "temporary"]
    assert not list(net.glob("temporary/qcompile-*"))


@pytest.mark.parametrize("limit_kb", [8, 30])
def test_full_disk_is_one_line_and_leaves_nothing(net: Path, limit_kb: int) -> None:
    """A limit on the size of files stands for the disk; the bundle's largest has 40 kB."""
    command = f"qcompile build {MODEL} --calib {CALIB} --no-keep-accuracy -o out -q"
    done = shell(net, f"ulimit -f {limit_kb}; PYTHONDONTWRITEBYTECODE=1 {command}")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: ")
    assert "File too large" in done.err
    assert not [path.name for path in net.iterdir() if "out" in path.name]
