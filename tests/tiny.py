"""Nets of a few nodes on disk, samples for them, and builds in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
from onnx import numpy_helper

import qcompile
from qcompile.progress import Silent
from qcompile.report.schema import Report

CONVS = (
    "float[1,16,8,8] x",
    """[c0] a = Conv<pads = [1, 1, 1, 1]> (x, w0, b0)
    [r0] b = Relu(a)
    [c1] c = Conv<pads = [1, 1, 1, 1]> (b, w1)
    [add] y = Add(c, x)""",
)
"""A residual block of weights ``w0``, ``b0`` and ``w1``."""

PRODUCTS = (
    "float[1,8,128] x",
    "[m0] a = MatMul(x, w0)\n[g] b = Gelu(a)\n[m1] y = MatMul(b, w1)",
)
"""Two products of weights ``w0`` (128, 256) and ``w1`` (256, 64)."""


def weight(seed: int, *shape: int, scale: float | None = None) -> np.ndarray:
    """Return float32 numbers that keep the power of what they are multiplied with."""
    scale = scale or float(np.prod(shape[1:])) ** -0.5
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


CONV_WEIGHTS = {"w0": weight(0, 16, 16, 3, 3), "b0": weight(1, 16), "w1": weight(2, 16, 16, 3, 3)}
PRODUCT_WEIGHTS = {"w0": weight(0, 128, 256), "w1": weight(1, 256, 64)}


def write_net(
    path: Path, inputs: str, body: str, outputs: str = "float[] y", **weights: np.ndarray
) -> Path:
    """Write a net of the parser's text; shapes of outputs are inferred."""
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]>\nnet ({inputs}) => ({outputs}) {{\n{body}\n}}'
    )
    model = onnx.parser.parse_model(text)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def write_samples(folder: Path, count: int = 12, **shapes: tuple[int, ...]) -> Path:
    """Write smooth random samples, a file each."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        arrays = {
            name: (rng.standard_normal(shape).cumsum(-1) / 2).astype(np.float32)
            for name, shape in shapes.items()
        }
        np.savez(folder / f"{index:02}.npz", **arrays)
    return folder


def convs(folder: Path) -> Path:
    """Write the residual block and its samples in ``data``."""
    write_samples(folder / "data", x=(1, 16, 8, 8))
    return write_net(folder / "net.onnx", *CONVS, **CONV_WEIGHTS)


def products(folder: Path) -> Path:
    """Write the two products and their samples in ``data``."""
    write_samples(folder / "data", x=(1, 8, 128))
    return write_net(folder / "net.onnx", *PRODUCTS, **PRODUCT_WEIGHTS)


def build(
    model: Path, output: str = "out", *, plan: Path | None = None, data: bool = True, **recipe: Any
) -> tuple[Report, Silent]:
    """Build beside the model, with the samples in ``data``; return the notices, too."""
    progress = Silent()
    report = qcompile.build(
        model,
        calib=model.parent / "data" if data else None,
        output=model.parent / output,
        recipe=qcompile.Recipe.model_validate({"jobs": 1, **recipe}),
        plan=plan,
        force=True,
        progress=progress,
    )
    return report, progress
