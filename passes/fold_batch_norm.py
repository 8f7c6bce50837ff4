"""Pass: fold batch norm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_initializer, lazy_tensor, remove_dead, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, is_constant, is_op, only_consumer, producer


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(GraphPass):
    """Fold an inference batch norm into the Conv, ConvTranspose or Gemm before it.

    With ``s = scale / sqrt(variance + epsilon)``: ``W' = s W`` over output channels and
    ``b' = s (b - mean) + shift`` (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1). Computed
    in float64; large weights are scaled when they are read.

    Before: ``y = BatchNormalization(Conv(x, W, b), scale, shift, mean, variance)``.
    After:  ``y = Conv(x, W', b')``.
    Visits: the main graph. Leaves: a batch norm in training mode, or behind a value that has
    another reader, or whose parameters are computed.
    """

    name: ClassVar[str] = "fold-batch-norm"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.WORKING_OPSET})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_BATCH_NORM})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Fold every batch norm that can be."""
        norms = [
            n for n in model.graph if is_op(n, "BatchNormalization") and _linear(n) is not None
        ]
        foldable = []
        for norm in norms:
            reason = _obstacle(norm)
            if reason is None:
                foldable.append(norm)
            else:
                self.refuse(reason)
        names = Names(model)
        for norm in foldable:
            _fold(norm, names)
        return bool(foldable)


def _linear(norm: ir.Node) -> ir.Node | None:
    return producer(norm.inputs[0], "Conv", "ConvTranspose", "Gemm")


def _obstacle(norm: ir.Node) -> str | None:
    linear = _linear(norm)
    if linear is None or only_consumer(linear.outputs[0]) is not norm:
        return "its input has another reader"
    if norm.attributes.get_int("training_mode", default=0) or len(norm.outputs) > 1:
        return "it is in training mode"
    bias = linear.inputs[2] if len(linear.inputs) > 2 else None
    parameters = [linear.inputs[1], *norm.inputs[1:], *([] if bias is None else [bias])]
    if not all(is_constant(v) for v in parameters):
        return "its parameters, or the weights before it, are not constant"
    if bias is not None and not _is_vector(bias, norm.inputs[1]):
        return "the Gemm before it adds a matrix, not a bias"
    return None


def _is_vector(bias: ir.Value, scale: ir.Value | None) -> bool:
    """Return whether the bias has one element, or one for each channel in its last axis."""
    array, channels = constant(bias), constant(scale)
    if array is None or channels is None:
        return False
    return array.size == 1 or (array.shape[-1] == array.size == channels.size)


def _fold(norm: ir.Node, names: Names) -> None:
    linear = _linear(norm)
    assert linear is not None  # noqa: S101 - _obstacle saw it
    assert linear.graph is not None  # noqa: S101
    scale, shift, mean, variance = (_float64(v) for v in norm.inputs[1:5])
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = linear.inputs[1]
    assert weight is not None  # noqa: S101
    assert weight.const_value is not None  # noqa: S101
    bias = linear.inputs[2] if len(linear.inputs) > 2 else None
    beta = linear.attributes.get_float("beta", 1.0) if linear.op_type == "Gemm" else 1.0
    old = np.zeros(factor.shape) if bias is None else beta * _float64(bias).reshape(-1)
    tensor = weight.const_value
    scaled = lazy_tensor(
        names.fresh(weight, "folded"),
        tensor.dtype,
        tensor.shape.numpy(),
        _scaled(tensor, _along_output(factor, linear, tensor.shape.numpy())),
    )
    new_bias = (factor * (old - mean) + shift).astype(tensor.dtype.numpy())
    bias_name = names.fresh(weight, "bias") if bias is None else names.fresh(bias, "folded")
    graph = linear.graph
    linear.resize_inputs(3)
    linear.replace_input_with(1, add_initializer(graph, scaled))
    linear.replace_input_with(2, add_initializer(graph, ir.tensor(new_bias, name=bias_name)))
    linear.attributes.pop("beta", None)
    take_over(linear.outputs[0], norm.outputs[0])
    remove_dead([norm])
    for value in (weight, bias):
        if value is not None and not value.uses() and value.is_initializer():
            graph.initializers.pop(str(value.name), None)


def _float64(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    assert array is not None  # noqa: S101 - _obstacle saw it
    return array.astype(np.float64)


def _along_output(factor: np.ndarray, linear: ir.Node, shape: Sequence[int]) -> np.ndarray:
    """Shape the factor ``(C_out,)`` so that it multiplies the weight's output channels."""
    if linear.op_type == "Gemm":
        return factor[:, None] if linear.attributes.get_int("transB", 0) else factor
    tail = (1,) * (len(shape) - 2)
    if linear.op_type == "Conv":
        return factor.reshape(-1, 1, *tail)
    # ConvTranspose: (C_in, C_out / group, k...), where input channels go by group.
    group = linear.attributes.get_int("group", 1)
    by_group = factor.reshape(group, 1, shape[1])
    return np.repeat(by_group, shape[0] // group, axis=1).reshape(shape[0], shape[1], *tail)


def _scaled(tensor: ir.TensorProtocol, factor: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: tensor.numpy() * factor
