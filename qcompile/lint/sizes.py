"""Rule L31: layers too small for the kernels of few bits.

The limits are those by which NVIDIA's ModelOpt leaves layers in float.
"""

from collections.abc import Iterator

import onnx_ir as ir

from qcompile.lint.operands import Weighted, weighted_nodes
from qcompile.lint.qdq import data, label, quantizer, shape
from qcompile.lint.rule import Place, Rule, Setting, Severity

_INT8, _FP8 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
_LEAST = 16
_LARGEST_FP8_KERNEL = 32


def _small_layers(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for weighted in weighted_nodes(model):
        codes = weighted.data.codes
        if weighted.weight.dequantize is None or codes not in {_INT8, _FP8}:
            continue
        small = (
            _small_convolution(weighted) if not weighted.is_product else _small_product(weighted)
        )
        if small is not None:
            kind = "INT8" if codes is _INT8 else "FP8"
            yield Place(
                label(weighted.node),
                f"{weighted.node.op_type} has {small}: {kind} seldom pays there; compare with it "
                "left in float",
            )


def _small_convolution(weighted: Weighted) -> str | None:
    dims = shape(weighted.weight.value)
    if weighted.node.op_type != "Conv" or dims is None or len(dims) < 3:
        return None
    outputs, inputs, kernel = dims[0], dims[1], dims[2:]
    narrow = outputs < _LEAST or inputs < _LEAST
    if weighted.data.codes is _FP8:
        volume = 1
        for size in kernel:
            volume *= size
        if volume > _LARGEST_FP8_KERNEL:
            return f"kernels of {volume} elements"
    elif narrow and _takes_narrow(weighted, outputs, inputs, kernel):
        return None
    return (
        f"{inputs} input and {outputs} output channels, kernel {list(kernel)}" if narrow else None
    )


def _takes_narrow(weighted: Weighted, outputs: int, inputs: int, kernel: tuple[int, ...]) -> bool:
    """Return whether INT8 kernels take a convolution with less than 16 channels at one side."""
    if weighted.node.attributes.get_int("group", 1) > 1:
        return outputs % 8 == 0 and min(kernel) >= 3
    aligned = outputs % 8 == 0 or inputs % 8 == 0
    wide = outputs >= _LEAST or inputs >= _LEAST or _reads_model_input(weighted)
    return aligned and wide and len(set(kernel)) == 1


def _reads_model_input(weighted: Weighted) -> bool:
    dequantize = weighted.data.dequantize
    rounded = None if dequantize is None else quantizer(data(dequantize))
    value = None if rounded is None else data(rounded)
    return value is not None and value.is_graph_input()


def _small_product(weighted: Weighted) -> str | None:
    dims = shape(weighted.weight.value)
    across, along = weighted.output_axis, weighted.sum_axis
    if weighted.weight.constant and dims is not None and across is not None and along is not None:
        for name, size in (("inputs", dims[along]), ("outputs", dims[across])):
            if size < _LEAST:
                return f"{size} {name}"
    made = weighted.node.outputs[0].shape
    if made is None or (weighted.weight.constant and len(made) > 2):
        return None
    return "one row or column (a GEMV)" if 1 in tuple(made)[-2:] else None


L31 = Rule(
    "L31",
    "quantized layers are large enough for kernels of few bits",
    Severity.WARNING,
    "ModelOpt's filters: channels under 16 (INT8: but for multiples of 8), FP8 kernels over 32 "
    "elements, products with K or N under 16, GEMV",
    _small_layers,
)
