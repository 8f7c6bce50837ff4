"""Rules L38, L39 and L42: types and shapes at the engine's inputs and outputs."""

from collections.abc import Iterator

import onnx_ir as ir

from qcompile.graph.walk import consumers
from qcompile.lint.qdq import constants, dtype, is_dequantize, is_quantize, label
from qcompile.lint.rule import Place, Rule, Setting, Severity


def _codes_outside(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for value in model.graph.outputs:
        node = value.producer()
        if is_quantize(node):
            yield Place(
                label(node),
                f"output {value.name} holds codes, not real numbers: its reader must know the "
                "scale; put a DequantizeLinear behind where that is not meant",
            )
    for value in model.graph.inputs:
        for node, index in consumers(value):
            if is_dequantize(node) and index == 0:
                yield Place(
                    label(node),
                    f"input {value.name} holds codes, not real numbers: whoever feeds it must "
                    "know the scale",
                )


def _no_profile(model: ir.Model, setting: Setting) -> Iterator[Place]:
    for value in model.graph.inputs:
        name = str(value.name)
        if value.shape is None or name in setting.profiles:
            continue
        free = [str(d) if isinstance(d, int) else str(d.value or "?") for d in value.shape]
        if not value.shape.is_static():
            yield Place(
                name,
                f"input of shape {'x'.join(free)} and no profile: the builder needs the least, "
                f"usual and largest shape, as in --shapes {_example(name, value.shape)}",
            )


def _example(name: str, shape: ir.Shape) -> str:
    return f"{name}:" + ",".join(
        "x".join(str(d if isinstance(d, int) else size) for d in shape) for size in (1, 8, 64)
    )


def _wide_types(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for value in constants(model):
        if dtype(value) == ir.DataType.DOUBLE:
            yield Place(
                str(value.name),
                "a double constant is narrowed to float, clamped where it does not fit: store it "
                "as float",
            )
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.INT64:
            yield Place(str(value.name), "an int64 input: the engine wants buffers of int64, too")


RULES = (
    Rule(
        "L38",
        "inputs and outputs are real numbers",
        Severity.WARNING,
        "experiment, TensorRT-RTX 1.7.1",
        _codes_outside,
    ),
    Rule(
        "L39",
        "dynamic inputs have a profile",
        Severity.ERROR,
        "header NvInfer.h; experiment, TensorRT-RTX 1.7.1",
        _no_profile,
    ),
    Rule(
        "L42",
        "no double constants; int64 inputs are known to be fed as such",
        Severity.WARNING,
        "onnx-tensorrt's operators.md for 11.1; experiment, TensorRT-RTX 1.7.1",
        _wide_types,
    ),
)
