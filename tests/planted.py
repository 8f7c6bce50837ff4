"""A real transformer with outlier channels: rescaled so that it computes the same.

Large language models have a few channels whose values are 20 to 100 times those of the others
(arXiv:2208.07339, section 3). Small encoders have none. Here some channels of what each
LayerNormalization makes are multiplied by a factor, and the rows of the weights that read them
divided by it.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant
from qcompile.graph.walk import constant, consumers, is_constant, is_op
from qcompile.runtime.made_up import made_up_feeds
from qcompile.runtime.ort import Session

LIMIT = 1e-4
"""Relative L2 by which the outputs may differ."""


def planted(model_path: Path, folder: Path, *, channels: int, factor: float, seed: int) -> Path:
    """Plant outlier channels, the same ones behind each LayerNormalization.

    Where others than products with a weight read the value (the residual of a post-norm encoder),
    they read it through a Mul that takes the factor off again.

    Args:
        model_path: An encoder with LayerNormalization nodes; it is not changed.
        folder: Where the new model goes, under the same name.
        channels: How many.
        factor: What they are multiplied with.
        seed: Of their choice.

    Returns:
        The new file.
    """
    model = ir.load(model_path)
    names = Names(model)
    for node in [n for n in model.graph if is_op(n, "LayerNormalization")]:
        width = constant(node.inputs[1]).size
        factors = np.ones(width, np.float32)
        factors[np.random.default_rng(seed).permutation(width)[:channels]] = factor
        _plant(model.graph, names, node, factors)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / model_path.name
    onnx.save(ir.to_proto(model), path)
    _check_same(model_path, path)
    return path


def _plant(graph: ir.Graph, names: Names, node: ir.Node, factors: np.ndarray) -> None:
    value = node.outputs[0]
    readers = consumers(value)
    weighted = [n for n, i in readers if i == 0 and is_op(n, "MatMul") and is_constant(n.inputs[1])]
    if not weighted:
        return
    for index in (1, 2):
        _multiply(graph, names, node, index, factors)
    for reader in weighted:
        _multiply(graph, names, reader, 1, 1 / factors[:, None])
    others = [(n, i) for n, i in readers if n not in weighted]
    if others:
        undone = add_constant(graph, names.fresh(value, "undo"), 1 / factors)
        mul = ir.node("Mul", [value, undone], name=names.fresh(value, "Mul"))
        mul.outputs[0].name = names.fresh(value, "undone")
        graph.insert_after(node, mul)
        for reader, index in others:
            reader.replace_input_with(index, mul.outputs[0])


def _multiply(
    graph: ir.Graph, names: Names, node: ir.Node, index: int, factors: np.ndarray
) -> None:
    value = node.inputs[index]
    new = add_constant(graph, names.fresh(value, "planted"), constant(value) * factors)
    node.replace_input_with(index, new)


def _check_same(source: Path, path: Path) -> None:
    session = Session(source)
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal(x.shape).astype(x.dtype) if x.dtype.kind == "f" else x
        for name, x in made_up_feeds(session.inputs).items()
    }
    expected, found = session.run(feeds), Session(path).run(feeds)
    for name, reference in expected.items():
        distance = np.linalg.norm(found[name] - reference) / np.linalg.norm(reference)
        assert distance < LIMIT, f"{name} moved by {distance:.2g}"
