"""Small quantized models for the rules: whole and right, each detail to be broken at will."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompile.lint.rule import Finding, Setting, findings
from qcompile.lint.tensorrt import RULES
from qcompile.lint.typed import infer

FLOAT, HALF, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
INT8, UINT8, INT32, INT4 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT4
FP8, FP4 = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1

Input = ir.Value | np.ndarray | None


class Net:
    """Builds a model node by node; arrays among the inputs become initializers."""

    def __init__(self, opset: int = 21) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []

    def input(
        self, shape: Sequence[int | str], dtype: ir.DataType = FLOAT, name: str | None = None
    ) -> ir.Value:
        name = name or f"x{len(self.inputs) or ''}"
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def constant(self, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
        name = f"c{len(self.initializers)}"
        tensor = ir.Tensor(array, dtype=dtype or ir.DataType.from_numpy(array.dtype), name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape),
            const_value=tensor,
        )
        self.initializers.append(value)
        return value

    def op(self, op_type: str, *inputs: Input, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node; return its first output, named as the node in small letters."""
        values = [self.constant(v) if isinstance(v, np.ndarray) else v for v in inputs]
        number = sum(node.op_type == op_type for node in self.nodes)
        name = f"{op_type.lower()}{number or ''}"
        node = ir.node(op_type, values, attributes, domain=domain, name=name)
        node.outputs[0].name = f"{name}.out"
        self.nodes.append(node)
        return node.outputs[0]

    def qdq(
        self,
        value: ir.Value,
        scale: Input = None,
        zero: Input = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Round a value: int8 and per-tensor unless said otherwise."""
        scale = scalar(0.05) if scale is None else scale
        zero = zeros(*np.shape(scale)) if zero is None else zero
        codes = self.op("QuantizeLinear", value, scale, zero, domain=domain, **attributes)
        attributes.pop("output_dtype", None)
        return self.op("DequantizeLinear", codes, scale, zero, domain=domain, **attributes)

    def weight(
        self,
        codes: np.ndarray,
        scale: Input = None,
        zero: Input = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Dequantize stored codes: per-tensor unless said otherwise."""
        scale = scalar(0.02) if scale is None else scale
        if zero is None and not isinstance(scale, ir.Value):
            zero = zeros(*np.shape(scale), dtype=codes.dtype.type)
        return self.op("DequantizeLinear", codes, scale, zero, domain=domain, **attributes)

    def model(self, *outputs: ir.Value, domains: Sequence[str] = ()) -> ir.Model:
        """End the model; types and shapes are inferred."""
        used = {node.domain for node in self.nodes} | {"", *domains}
        opsets = {domain: 1 if domain else self.opset for domain in sorted(used)}
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports=opsets,
            name="net",
        )
        model = ir.Model(graph, ir_version=11)
        infer(model)
        return model


def codes(*shape: int, dtype: type[Any] = np.int8, seed: int = 0, limit: int = 100) -> np.ndarray:
    """Return random codes between -limit and limit, as far as the type goes."""
    array = np.random.default_rng(seed).integers(-limit, limit + 1, shape)
    return array.astype(dtype)


def reals(*shape: int, dtype: type[Any] = np.float32, seed: int = 0) -> np.ndarray:
    """Return random weights."""
    return (0.1 * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def scalar(value: float, dtype: type[Any] = np.float32) -> np.ndarray:
    """Return a scale of rank 0."""
    return np.array(value, dtype)


def steps(count: int, dtype: type[Any] = np.float32) -> np.ndarray:
    """Return a scale for each channel."""
    return np.linspace(0.01, 0.02, count).astype(dtype)


def zeros(*shape: int, dtype: type[Any] = np.int8) -> np.ndarray:
    """Return zero points."""
    return np.zeros(shape, dtype)


int4, fp8, fp4 = ml_dtypes.int4, ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn


def conv(
    opset: int = 21,
    activation: dict[str, Any] | None = None,
    weight: dict[str, Any] | None = None,
    shape: Sequence[int | str] = (1, 16, 8, 8),
) -> ir.Model:
    """QDQ, Conv with weights by channel, Relu.

    Args:
        opset: Of the default domain.
        activation: Arguments of ``Net.qdq``, to break something.
        weight: Arguments of ``Net.weight``.
        shape: Of the input.
    """
    net = Net(opset)
    x = net.qdq(net.input(shape), **(activation or {}))
    how = {"codes": codes(16, 16, 3, 3), "scale": steps(16), "axis": 0} | (weight or {})
    w = net.weight(how.pop("codes"), **how)
    y = net.op("Conv", x, w, reals(16), pads=[1, 1, 1, 1])
    return net.model(net.op("Relu", y))


def matmul(
    opset: int = 21,
    activation: dict[str, Any] | None = None,
    weight: dict[str, Any] | None = None,
    dtype: ir.DataType = FLOAT,
) -> ir.Model:
    """MatMul with dequantized weights [64, 32]; activations are rounded where that is asked for.

    Args:
        opset: Of the default domain.
        activation: Arguments of ``Net.qdq``; None leaves activations in float.
        weight: Arguments of ``Net.weight``.
        dtype: Of the input.
    """
    net = Net(opset)
    x = net.input((4, 64), dtype)
    x = x if activation is None else net.qdq(x, **activation)
    how = {"codes": codes(64, 32), "scale": steps(32), "axis": 1} | (weight or {})
    w = net.weight(how.pop("codes"), **how)
    return net.model(net.op("MatMul", x, w))


def broken(model: ir.Model, setting: Setting | None = None) -> set[str]:
    """Return the names of all rules that a model breaks."""
    return {finding.rule for finding in found(model, setting)}


def found(model: ir.Model, setting: Setting | None = None) -> list[Finding]:
    """Return everything that the lint has to say about a model."""
    return findings(model, setting or Setting(), RULES)
