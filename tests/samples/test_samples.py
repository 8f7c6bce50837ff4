"""The samples: their commands run as their READMEs give them, their files are what they say."""

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

SAMPLES = ROOT / "samples"
READMES = sorted(SAMPLES.glob("*/README.md"))
PROGRAMS = {
    "python": [sys.executable],
    "qcompile": [sys.executable, "-c", "from qcompile.cli.main import main; main()"],
}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


COMMANDS = [(page.parent.name, line) for page in READMES for line in commands(page)]


def test_every_sample_has_a_readme_with_a_command():
    folders = {path.name for path in SAMPLES.iterdir() if path.is_dir()}
    assert {name for name, _ in COMMANDS} == folders


@pytest.mark.slow
@pytest.mark.parametrize(("sample", "line"), COMMANDS)
def test_command_runs(sample, line, tmp_path):
    program, *arguments = shlex.split(line)
    (tmp_path / "samples").symlink_to(SAMPLES)
    cache = {"QCOMPILE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*PROGRAMS[program], *arguments],
        cwd=tmp_path,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    engine = next(tmp_path.glob("*/model.onnx"))
    assert accuracy(engine) >= accuracy(SAMPLES / "digits" / "digits.onnx") - 0.005


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
