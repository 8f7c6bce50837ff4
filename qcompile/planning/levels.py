"""How MatMulNBits computes: with float activations, or faster with int8 ones if that is harmless.

Level 4 rounds each block of activations to int8 while running. What that costs depends on the
activations: the kernel itself runs on some of them.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompile.numerics.groups import Floats, SolvedWeight
from qcompile.numerics.nbits import pack
from qcompile.recipe import Weights
from qcompile.runtime.ort import Session
from qcompile.targets.target import Target

LEVEL_ERROR = 0.01
"""Relative L2 error at a layer's output up to which a faster level is taken."""

_ROWS = 128
_CHANNELS = 512


@dataclass(frozen=True)
class Level:
    """What one weight's kernel computes with.

    Attributes:
        level: ``accuracy_level``; None for forms without one: the runtime decides.
        error: Relative L2 error that it adds at the output; None where it was not measured.
    """

    level: int | None
    error: float | None


def choose_level(
    target: Target, options: Weights, solved: SolvedWeight, rows: Floats | None
) -> Level:
    """Take the fastest level whose error is small, or the one that was asked for.

    Args:
        target: Lists the levels, the fastest first.
        options: May ask for one.
        solved: The weight.
        rows: Inputs of the layer ``(n, K)``; without them the fastest is taken unmeasured.
    """
    levels = target.few_bits().widths[options.bits].levels
    if not levels:
        return Level(None, None)
    if options.accuracy_level is not None:
        levels = (options.accuracy_level,)
    if rows is None:
        return Level(levels[0], None)
    tried = [Level(level, _error(solved, rows[:_ROWS], level)) for level in levels]
    return next((t for t in tried if (t.error or 0.0) <= LEVEL_ERROR), tried[-1])


def _error(solved: SolvedWeight, rows: Floats, level: int) -> float:
    """Return the relative L2 error of the kernel against float arithmetic on the same codes."""
    inputs = np.asarray(rows, np.float32)
    if solved.input_scale is not None:
        inputs = inputs / solved.input_scale
    if solved.order is not None:
        inputs = inputs[:, solved.order]
    some = replace(
        solved,
        codes=solved.codes[:_CHANNELS],
        scales=solved.scales[:_CHANNELS].astype(np.float32),
        zeros=solved.zeros[:_CHANNELS],
    )
    exact = inputs @ some.stored().T
    session = Session(_product(some, level))
    found = np.asarray(session.run({"x": np.ascontiguousarray(inputs)})["y"], np.float32)
    power = float(np.square(exact, dtype=np.float64).sum())
    return float(np.sqrt(np.square(found - exact, dtype=np.float64).sum() / power)) if power else 0


def _product(solved: SolvedWeight, level: int) -> ir.Model:
    """Return a model of one MatMulNBits."""
    packed = pack(solved)
    constants = {"codes": packed.codes, "scales": packed.scales, "zeros": packed.zeros}
    values = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in constants.items()
        if array is not None
    ]
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, packed.columns])
    )
    node = ir.node(
        "MatMulNBits",
        [x, *values],
        attributes={
            "K": packed.columns,
            "N": len(packed.codes),
            "bits": packed.bits,
            "block_size": packed.block_size,
            "accuracy_level": level,
        },
        domain="com.microsoft",
        name="product",
    )
    y = node.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x],
        [y],
        nodes=[node],
        initializers=values,
        opset_imports={"": 21, "com.microsoft": 1},
        name="level",
    )
    return ir.Model(graph, ir_version=10)
