"""The samples: their commands run as their READMEs give them, their files are what they say."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.assets import ROOT
from tests.cli import process
from tests.emit.bundles import cuda_stand_in, environment
from tests.samples.here import link_samples, run_here

SAMPLES = ROOT / "samples"
READMES = sorted(SAMPLES.glob("*/README.md"))
PROGRAMS = {"python": [sys.executable], "sh": ["sh"]}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


COMMANDS = {page.parent.name: commands(page) for page in READMES}


def test_every_sample_has_a_readme_with_a_command():
    assert {path.name for path in SAMPLES.iterdir() if path.is_dir()} == COMMANDS.keys()
    assert all(COMMANDS.values())


def run(line, folder, code=0, **more):
    """Run a command of a README, in a folder that looks like the top of the repository."""
    program, *arguments = shlex.split(line)
    if program != "qcompile":
        return started([*PROGRAMS[program], *arguments], folder, code, **more)
    link_samples(folder)
    done = process.run(folder, *arguments, **more)
    assert done.code == code, done.out + done.err
    return done.out


def started(command, folder, code=0, **more):
    link_samples(folder)
    own = {"QCOMPILE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sample", ["api", "digits"])
def test_commands_run(sample, tmp_path):
    for line in COMMANDS[sample]:
        run(line, tmp_path)
    check_engine(next(tmp_path.glob("*/model.onnx")))


def check_engine(engine: Path) -> None:
    assert accuracy(engine) >= accuracy(SAMPLES / "digits" / "digits.onnx") - 0.005


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="torch or transformers is not installed: the extra 'hf' has them",
)
@pytest.mark.filterwarnings("default")  # as for a user
def test_hugging_face_encoder(tmp_path):
    run_here(COMMANDS["hf-encoder"], tmp_path)
    bundle = tmp_path / "tiny-bert-int8"
    report = json.loads((bundle / "report.json").read_text("utf-8"))
    assert report["model"]["path"] == "hf:tiny-bert"
    assert report["engine"]["scores"][0]["engine_value"] >= 0.98
    assert (bundle / "tokenizer.json").exists()


@pytest.mark.slow
def test_mobile(tmp_path):
    build, load = COMMANDS["mobile"]
    run(build, tmp_path)
    check_engine(tmp_path / "digits-phone" / "model.onnx")
    (share,) = re.findall(r"accuracy (\S+) on 597 images", run(load, tmp_path))
    assert float(share) >= 0.99


@pytest.mark.slow
def test_jetson(tmp_path, tmp_path_factory):
    """The device is a folder: ssh and scp go there, tensorrt and its GPU are stand-ins."""
    build, finish = COMMANDS["jetson"]
    run(build, tmp_path)
    bundle, device = tmp_path / "digits-jetson", tmp_path / "device"
    check_engine(bundle / "model.onnx")
    device.mkdir()
    cuda = cuda_stand_in(tmp_path_factory.getbasetemp())
    env = {
        **environment(LD_LIBRARY_PATH=str(cuda), STAND_IN_VERSION="10.3.0"),
        "PATH": f"{programs(tmp_path / 'bin', device)}:{os.environ['PATH']}",
    }
    run(finish, tmp_path, **env)
    assert (device / "digits-jetson" / "model.engine").exists()
    result = json.loads((bundle / "result.json").read_text("utf-8"))
    assert (result["status"], result["gates"][0]["passed"]) == ("built", True)
    (bundle / "samples.npz").write_bytes(b"cut short")
    run(finish, tmp_path, code=2, **env)


def programs(folder: Path, device: Path) -> Path:
    """Write ssh and scp of a host called jetson, whose home is a folder."""
    folder.mkdir()
    ssh = f'shift; cd "{device}"; exec sh -c "$1"'
    scp = f'for a; do shift; set -- "$@" "$(echo $a | sed \'s|^jetson:|{device}/|\')"; done'
    for name, text in {
        "ssh": ssh,
        "scp": scp + '; shift; exec cp "$@"',
        "python3": f'exec "{sys.executable}" "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\nset -eu\n{text}\n", "utf-8")
        (folder / name).chmod(0o755)
    return folder


def accuracy(model: Path, data: Path = SAMPLES / "digits" / "eval.npz") -> float:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(data, allow_pickle=False) as images:
        logits = session.run(None, {"image": images["image"]})[0]
        return float((logits.argmax(1) == images["label"]).mean())


def test_digits_is_small_and_good():
    model = SAMPLES / "digits" / "digits.onnx"
    onnx.checker.check_model(model, full_check=True)
    assert model.stat().st_size < 200_000
    assert accuracy(model) >= 0.99


def test_calibration_and_evaluation_share_no_image():
    sets = []
    for name, count in (("calib.npz", 200), ("eval.npz", 597)):
        with np.load(SAMPLES / "digits" / name, allow_pickle=False) as images:
            assert images["image"].shape == (count, 1, 8, 8)
            assert images["image"].dtype == np.float32
            sets.append({image.tobytes() for image in images["image"]})
    assert not sets[0] & sets[1]


@pytest.mark.slow
def test_training_gives_the_committed_files(tmp_path):
    shutil.copy(SAMPLES / "digits" / "train.py", tmp_path)
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True, capture_output=True)
    for name in ("calib.npz", "eval.npz"):
        assert (tmp_path / name).read_bytes() == (SAMPLES / "digits" / name).read_bytes()
    # Not byte for byte: the sums of another BLAS end in other bits.
    assert accuracy(tmp_path / "digits.onnx") >= 0.985
