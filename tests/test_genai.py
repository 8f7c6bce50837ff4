"""A model of onnxruntime-genai's builder in few bits: that runtime generates with it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.pipeline import build
from qcompile.plan import read_plan
from qcompile.recipe import Recipe, recipe_from
from tests.assets import ROOT

NEEDED = ("onnxruntime_genai", "torch", "transformers")
PYTHON = os.environ.get("QCOMPILE_GENAI_PYTHON") or (
    sys.executable if all(map(importlib.util.find_spec, NEEDED)) else None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None,
        reason=f"no {', '.join(NEEDED)} here: name an interpreter with them in "
        "QCOMPILE_GENAI_PYTHON",
    ),
]
SCRIPT = ROOT / "tests" / "benchmarks" / "genai.py"
TEXT = ROOT / "LICENSE"

Found = dict[str, np.ndarray]


def run(*arguments: str | Path) -> None:
    done = subprocess.run(
        [str(PYTHON), str(SCRIPT), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def generated(folder: Path, follow: Path | None = None) -> Found:
    out = folder / ("followed.npz" if follow else "generated.npz")
    run("generate", folder, out, *(["--follow", follow] if follow else []))
    with np.load(out, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("genai") / "model"
    run("make", folder)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def reference(model) -> Found:
    return generated(model.parent)


def few_bits(**weights) -> Recipe:
    return recipe_from(
        {
            "scheme": "weight-only",
            "weights": {"group_size": 32, **weights},
            "text": {"length": 64},
            "gates": {"allow_slower": True},
        }
    )


def quantized(model: Path, out: Path, recipe: Recipe, calib: Path | None = None) -> Path:
    """Build, and put the runtime's configuration beside the engine."""
    build(model, calib=calib, output=out, recipe=recipe)
    shutil.copy(model.with_name("genai_config.json"), out)
    return out


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def check_generates_alike(model: Path, engine: Path, reference: Found, most: float) -> None:
    """The same tokens, and logits within ``most`` of the float ones along the float's text."""
    free = generated(engine)
    assert np.mean(free["tokens"] == reference["tokens"]) >= 0.95
    followed = generated(engine, model.parent / "generated.npz")
    error = np.linalg.norm(followed["logits"] - reference["logits"])
    error /= np.linalg.norm(reference["logits"])
    assert 1e-6 < error < most


def test_the_builders_model_is_what_the_issue_speaks_of(model):
    found = operators(model)
    for operator in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMul"):
        assert operator in found


def test_rounded_without_data_it_generates(model, reference, tmp_path):
    engine = quantized(model, tmp_path / "out", few_bits(algorithm="rtn"))
    found = operators(engine / "model.onnx")
    assert found.count("MatMulNBits") == 16
    assert "GroupQueryAttention" in found
    check_generates_alike(model, engine, reference, most=0.15)


def test_eight_bits_are_nearly_float(model, reference, tmp_path):
    engine = quantized(model, tmp_path / "out", few_bits(algorithm="rtn", bits=8))
    check_generates_alike(model, engine, reference, most=0.02)


@pytest.mark.parametrize("algorithm", ["gptq", "awq+gptq"])
def test_calibrated_on_text_it_generates(model, reference, tmp_path, algorithm):
    text = shutil.copy(TEXT, tmp_path / "text.txt")
    recipe = few_bits(algorithm=algorithm)
    engine = quantized(model, tmp_path / "out", recipe, Path(text))
    plans = read_plan(engine / "plan.json").weights.values()
    assert len(plans) == 16
    errors = [(plan.errors[plan.algorithm], plan.errors["rtn"]) for plan in plans]
    assert all(chosen <= rounded for chosen, rounded in errors)
    assert np.mean([chosen / rounded for chosen, rounded in errors]) < 0.9
    check_generates_alike(model, engine, reference, most=0.2)
