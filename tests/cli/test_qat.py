"""``qcompile build --qat``: a torch model is trained on samples, then built like any other."""

import importlib.util
from pathlib import Path

import pytest

from tests.assets import ROOT
from tests.cli.nets import MODEL
from tests.cli.process import fresh, run

DATA = ROOT / "samples" / "digits" / "calib.npz"
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(1024, 10)

    def forward(self, image):
        x = self.second(self.first(image).relu()).relu()
        return self.head(x.flatten(1))

def make():
    torch.manual_seed(0)
    return Net(), torch.zeros(1, 1, 8, 8)
"""
REFUSED = {
    "more than one": (
        ("nets.py:net", "--qat", DATA, "--calib", DATA),
        "error: --qat: its samples are those of --calib, too: leave out --calib",
    ),
    "no data": (("nets.py:net", "--epochs", 3), "error: --epochs is for training: add --qat DATA"),
    "a file": (
        (MODEL, "--qat", DATA),
        (
            f"error: --qat: {MODEL} cannot be trained, for it is a graph, no module: name a "
            "function that makes the module, net.py:make"
        ),
    ),
    "a program": (
        ("net.pt2", "--qat", DATA),
        (
            "error: --qat: net.pt2 cannot be trained, for it was exported as it computes in "
            "inference: its batch norms and dropouts cannot train: name a function that makes the "
            "module, net.py:make"
        ),
    ),
    "a scheme": (
        ("nets.py:net", "--qat", DATA, "--int4"),
        "error: --qat trains for int8, not for weight-only",
    ),
    "no epochs": (
        ("nets.py:net", "--qat", DATA, "--epochs", 0),
        "error: --epochs: Input should be greater than or equal to 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_one_line(case, tmp_path: Path) -> None:
    arguments, told = REFUSED[case]
    done = run(tmp_path, "build", *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"{told}\n")


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "torchao")),
    reason="torch or torchao is not installed: the extra 'qat' has both",
)
@pytest.mark.slow
def test_a_module_is_trained_and_compared_with_what_it_was_in_float(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "recipe.toml").write_text("[qat]\nbatch = 64\nlearned_scales = true\n")
    done = fresh(
        tmp_path,
        *("build", "net.py:make", "--dynamic-axes", "batch", "--qat", DATA, "--epochs", 2),
        *("--recipe", "recipe.toml", "--no-keep-accuracy", "--allow-slower", "-o", "out"),
        *("--json", "--quiet"),
    )
    assert (done.code, done.err) == (0, "")
    report = done.json()
    training, data = report["training"], report["data"]
    assert training["samples"] == data["calibration_samples"]
    assert len(training["losses"]) == 2 * -(-training["samples"] // 64)
    assert (training["epochs"], training["learned_scales"], training["resumed"]) == (2, True, 0)
    assert report["source"] is None
    assert report["engine"]["outputs"][0]["sqnr_db"] > 20
    assert report["plan"]["nodes"]["int8"] > 0
    assert not list((tmp_path / "cache").glob("solving-*"))
