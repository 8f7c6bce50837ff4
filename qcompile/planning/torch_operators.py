"""Some operators of ONNX in torch.

What an operator means is given by the ONNX specification, opset 21; whoever runs a block compares
it with ONNX Runtime first. What is not here, or not in this form, raises ``NotHere``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.numerics.adaround import Tensor
from qcompile.numerics.patches import same_pads
from qcompile.samples import Array

Inputs = Sequence[Any]
Operator = Callable[["Torch", ir.Node, Inputs], Any]


class NotHere(Exception):  # noqa: N818 - a reason
    """An operator, or a form of it, that cannot be run; the message says which."""


@dataclass(frozen=True)
class Torch:
    """torch, and where it computes."""

    torch: ModuleType
    device: str

    def tensor(self, array: Array) -> Tensor:
        """Return a tensor of an array, on the device."""
        return self.torch.from_numpy(np.array(array)).to(self.device)


def _ints(node: ir.Node, name: str, default: Sequence[int] | None = None) -> list[int] | None:
    found = node.attributes.get_ints(name, default)
    return None if found is None else list(found)


def _numbers(values: Tensor) -> list[int]:
    return [int(v) for v in values.reshape(-1).tolist()]


def _padded(lib: Torch, node: ir.Node, x: Tensor, kernel: Sequence[int], fill: float) -> Tensor:
    """Pad the places of a picture as the node's attributes say."""
    rank = len(kernel)
    ones = [1] * rank
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    pads = _ints(node, "pads", [0] * 2 * rank) or []
    if auto.startswith("SAME"):
        strides, dilations = (_ints(node, name, ones) or ones for name in ("strides", "dilations"))
        pads = same_pads(auto, list(x.shape[2:]), kernel, strides, dilations)
    if not any(pads):
        return x
    pairs = [pad for i in reversed(range(rank)) for pad in (pads[i], pads[rank + i])]
    return lib.torch.nn.functional.pad(x, pairs, value=fill)


def _conv(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight, *rest = inputs
    kernel = list(weight.shape[2:])
    ones = [1] * len(kernel)
    functions = lib.torch.nn.functional
    run = {1: functions.conv1d, 2: functions.conv2d, 3: functions.conv3d}[len(kernel)]
    return run(
        _padded(lib, node, x, kernel, 0.0),
        weight,
        rest[0] if rest else None,
        stride=_ints(node, "strides", ones),
        dilation=_ints(node, "dilations", ones),
        groups=node.attributes.get_int("group", 1),
    )


def _pool(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    kernel = _ints(node, "kernel_shape") or []
    ones = [1] * len(kernel)
    strides, dilations = _ints(node, "strides", ones), _ints(node, "dilations", ones)
    if node.attributes.get_int("ceil_mode", 0) or len(kernel) not in (1, 2):
        raise NotHere(f"{node.op_type} with ceil_mode")
    functions = lib.torch.nn.functional
    if node.op_type == "MaxPool":
        run = {1: functions.max_pool1d, 2: functions.max_pool2d}[len(kernel)]
        x = _padded(lib, node, inputs[0], kernel, -math.inf)
        return run(x, kernel, stride=strides, dilation=dilations)
    average = {1: functions.avg_pool1d, 2: functions.avg_pool2d}[len(kernel)]
    if dilations != ones:
        raise NotHere("AveragePool with dilations")
    x = _padded(lib, node, inputs[0], kernel, 0.0)
    made = average(x, kernel, stride=strides)
    counted = node.attributes.get_int("count_include_pad", 0)
    if x is inputs[0] or counted:
        return made
    inside = _padded(lib, node, lib.torch.ones_like(inputs[0]), kernel, 0.0)
    return made / average(inside, kernel, stride=strides)


def _gemm(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    a, b, *rest = inputs
    a = a.transpose(0, 1) if node.attributes.get_int("transA", 0) else a
    b = b.transpose(0, 1) if node.attributes.get_int("transB", 0) else b
    made = lib.torch.matmul(a, b) * node.attributes.get_float("alpha", 1.0)
    return made + rest[0] * node.attributes.get_float("beta", 1.0) if rest else made


def _layer_norm(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x, scale, *rest = inputs
    axis = node.attributes.get_int("axis", -1) % x.ndim
    axes = list(range(axis, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    spread = centred.square().mean(axes, keepdim=True) + node.attributes.get_float("epsilon", 1e-5)
    made = centred * lib.torch.rsqrt(spread) * scale
    return made + rest[0] if rest else made


def _batch_norm(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x, scale, shift, mean, variance = inputs
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    run = lib.torch.nn.functional.batch_norm
    return run(x, mean, variance, scale, shift, training=False, eps=epsilon)


def _gelu(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    kind = node.attributes.get_string("approximate", "none")
    return lib.torch.nn.functional.gelu(inputs[0], approximate=kind)


def _reshape(_: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x, shape = inputs[0], _numbers(inputs[1])
    if not node.attributes.get_int("allowzero", 0):
        shape = [x.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return x.reshape(shape)


def _flatten(_: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x = inputs[0]
    axis = node.attributes.get_int("axis", 1)
    return x.reshape(math.prod(x.shape[: axis % (x.ndim + 1)]), -1)


def _transpose(_: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x = inputs[0]
    return x.permute(_ints(node, "perm") or list(reversed(range(x.ndim))))


def _squeeze(_: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x, *axes = inputs
    if not axes:
        raise NotHere("Squeeze without axes")
    if node.op_type == "Squeeze":
        return x.squeeze(tuple(_numbers(axes[0])))
    rank = x.ndim + axes[0].numel()
    for axis in sorted(a % rank for a in _numbers(axes[0])):
        x = x.unsqueeze(axis)
    return x


def _split(lib: Torch, node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    x, *sizes = inputs
    axis = node.attributes.get_int("axis", 0)
    if sizes:
        return tuple(lib.torch.split(x, _numbers(sizes[0]), axis))
    count = len(node.outputs)
    return tuple(lib.torch.split(x, -(-x.shape[axis] // count), axis))


def _slice(lib: Torch, _: ir.Node, inputs: Inputs) -> Tensor:
    x, starts, ends = inputs[0], _numbers(inputs[1]), _numbers(inputs[2])
    axes = _numbers(inputs[3]) if len(inputs) > 3 else list(range(len(starts)))
    steps = _numbers(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis])) if step > 0 else None
        if places is None:
            raise NotHere("Slice backwards")
        x = x.index_select(axis, lib.torch.tensor(list(places), device=lib.device))
    return x


def _pad(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x, pads = inputs[0], _numbers(inputs[1])
    if node.attributes.get_string("mode", "constant") != "constant" or len(inputs) > 3:
        raise NotHere("Pad that mirrors, or of some axes")
    fill = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    pairs = [p for i in reversed(range(x.ndim)) for p in (pads[i], pads[x.ndim + i])]
    return lib.torch.nn.functional.pad(x, pairs, value=fill)


def _reduced(name: str) -> Operator:
    """Return the operator that reduces axes by a method of tensors."""

    def run(_: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
        x, *axes = inputs
        over = _numbers(axes[0]) if axes and axes[0] is not None else list(range(x.ndim))
        if not over:
            raise NotHere(f"{node.op_type} of no axes")
        return getattr(x, name)(over, keepdim=bool(node.attributes.get_int("keepdims", 1)))

    return run


def _clip(_: Torch, __: ir.Node, inputs: Inputs) -> Tensor:
    low, high = [*inputs[1:3], None, None][:2]
    x = inputs[0]
    x = x if low is None else x.maximum(low)
    return x if high is None else x.minimum(high)


def _hard_sigmoid(_: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    alpha = 1 / 6 if node.op_type == "HardSwish" else node.attributes.get_float("alpha", 0.2)
    gate = (inputs[0] * alpha + node.attributes.get_float("beta", 0.5)).clamp(0, 1)
    return inputs[0] * gate if node.op_type == "HardSwish" else gate


def _resize(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x = inputs[0]
    scales = inputs[2].tolist() if len(inputs) > 2 and inputs[2] is not None else []
    if len(inputs) > 3 and inputs[3] is not None:
        sizes = zip(_numbers(inputs[3]), x.shape, strict=True)
        scales = [new / old for new, old in sizes]
    whole = len(scales) == x.ndim and all(s >= 1 and s == int(s) for s in scales)
    if node.attributes.get_string("mode", "nearest") != "nearest" or not whole:
        raise NotHere("Resize between pixels")
    for axis, times in enumerate(scales):
        x = x if times == 1 else lib.torch.repeat_interleave(x, int(times), axis)
    return x


def _gather(_: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    x, places = inputs
    axis = node.attributes.get_int("axis", 0) % x.ndim
    found = x.index_select(axis, places.reshape(-1) % x.shape[axis])
    return found.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def _shape(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    sizes = list(inputs[0].shape)
    first, end = (node.attributes.get_int(n, d) for n, d in (("start", 0), ("end", len(sizes))))
    return lib.torch.tensor(sizes[first:end], dtype=lib.torch.int64)


def _filled(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    value = node.attributes.get_tensor("value", None)
    array = np.zeros(1, np.float32) if value is None else value.numpy()
    return lib.tensor(array).expand(_numbers(inputs[0]))


def _cast(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    kind = ir.DataType(node.attributes.get_int("to"))
    if kind not in (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        raise NotHere(f"Cast to {kind.name}")
    return inputs[0].to(getattr(lib.torch, str(kind.numpy())))


def _expand(lib: Torch, _: ir.Node, inputs: Inputs) -> Tensor:
    shape = lib.torch.broadcast_shapes(inputs[0].shape, _numbers(inputs[1]))
    return inputs[0].expand(shape)


def _simple(name: str) -> Operator:
    """Return the operator that is a function of torch with the same inputs."""
    return lambda lib, _, inputs: getattr(lib.torch, name)(*inputs)


def _folded(name: str) -> Operator:
    """Return the operator that joins all inputs by a function of torch of two."""
    return lambda lib, _, inputs: reduce(getattr(lib.torch, name), inputs)


def _softmax(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    return lib.torch.softmax(inputs[0], node.attributes.get_int("axis", -1))


def _concat(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    return lib.torch.cat(list(inputs), node.attributes.get_int("axis", 0))


def _leaky_relu(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    slope = node.attributes.get_float("alpha", 0.01)
    return lib.torch.nn.functional.leaky_relu(inputs[0], slope)


def _prelu(lib: Torch, _: ir.Node, inputs: Inputs) -> Tensor:
    return lib.torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])


def _global_pool(_: Torch, __: ir.Node, inputs: Inputs) -> Tensor:
    return inputs[0].mean(list(range(2, inputs[0].ndim)), keepdim=True)


def _quick_gelu(lib: Torch, node: ir.Node, inputs: Inputs) -> Tensor:
    alpha = node.attributes.get_float("alpha", 1.702)
    return inputs[0] * lib.torch.sigmoid(alpha * inputs[0])


def operator_of(node: ir.Node) -> Operator | None:
    """Return what runs a node; None for an operator that is not here."""
    return OPERATORS.get(f"{node.domain}::{node.op_type}" if node.domain else node.op_type)


OPERATORS: dict[str, Operator] = {
    "Add": _simple("add"),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Div": _simple("div"),
    "Equal": _simple("eq"),
    "Erf": _simple("erf"),
    "Exp": _simple("exp"),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_sigmoid,
    "Identity": lambda _, __, inputs: inputs[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "MatMul": _simple("matmul"),
    "Max": _folded("maximum"),
    "MaxPool": _pool,
    "Min": _folded("minimum"),
    "Mul": _simple("mul"),
    "Neg": _simple("neg"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _simple("pow"),
    "Reciprocal": _simple("reciprocal"),
    "ReduceMax": _reduced("amax"),
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "Relu": _simple("relu"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _simple("sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _simple("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _simple("sub"),
    "Sum": _folded("add"),
    "Tanh": _simple("tanh"),
    "Tile": lambda _, __, inputs: inputs[0].tile(_numbers(inputs[1])),
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
    "Where": _simple("where"),
    "com.microsoft::QuickGelu": _quick_gelu,
}
