"""Small models and data for the command line."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"
"""The sample of the repository: Conv, BatchNormalization, Relu, residual Add, MaxPool, Gemm."""
MODEL, CALIB, EVAL = DIGITS / "digits.onnx", DIGITS / "calib.npz", DIGITS / "eval.npz"


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Return what an archive holds, and close it."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def perceptron(
    width: int, *, layers: int = 3, op: str = "Relu", domain: str = ""
) -> onnx.ModelProto:
    """MatMul and an activation, some layers deep: input ``x`` (n, 8), output ``y`` (n, 4)."""
    rng = np.random.default_rng(0)
    sizes = [8, *[width] * (layers - 1), 4]
    nodes, weights, value = [], [], "x"
    for layer, (rows, columns) in enumerate(pairwise(sizes)):
        weight = rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        last = layer == layers - 1
        made = "y" if last else f"a{layer}"
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [made], f"matmul{layer}"))
        value = made
        if not last:
            value = f"h{layer}"
            nodes.append(helper.make_node(op, [made], [value], f"act{layer}", domain=domain))
    return model_of(nodes, weights, domain)


def model_of(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], domain: str = ""
) -> onnx.ModelProto:
    """Wrap nodes as a model with input ``x`` (n, 8) and output ``y`` (n, 4)."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write_data(folder: Path, count: int = 40) -> None:
    """Write smooth random samples of the input ``x``, a file each."""
    folder.mkdir()
    for index in range(count):
        x = np.random.default_rng(index).normal(size=(1, 8)).cumsum(1).astype(np.float32)
        np.savez(folder / f"{index:02}.npz", x=x)
