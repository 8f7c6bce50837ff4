"""What a node's form allows on a target: its inputs, its attributes, its place in the graph."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompile.graph.walk import is_constant, only_consumer, scalar
from qcompile.targets.target import OperatorRule, Role


def node_name(node: ir.Node) -> str:
    """Return a node's name; after name-values every node has one."""
    return node.name or ""


def value_name(value: ir.Value | None) -> str:
    """Return a value's name, or nothing for an omitted input."""
    return (value.name or "") if value is not None else ""


def is_float(value: ir.Value | None) -> bool:
    """Say whether a value is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def tail(node: ir.Node, rules: Mapping[str, OperatorRule]) -> ir.Value:
    """Return the value that carries a node's codes: its output, or that of what it absorbs."""
    value = node.outputs[0]
    reader = only_consumer(value)
    if reader is not None and reader.graph is not node.graph:
        return value  # inside an If or Loop: stays in float
    rule = rules.get(reader.op_type) if reader is not None and not reader.domain else None
    if reader is None or rule is None or rule.role is not Role.ABSORBED:
        return value
    return reader.outputs[0] if reader.inputs[0] is value and _vanishes(reader) else value


def _vanishes(node: ir.Node) -> bool:
    """Say whether rounding does what a Relu or Clip does, on whatever grid its values have.

    That holds where the lower bound is 0 (the lowest code) or absent; a grid around 0 ends up to
    half a step beside the bounds, and ONNX Runtime would leave the whole Conv in float.
    """
    low, high, *_ = [*node.inputs[1:3], None, None]
    if not all(is_constant(v) for v in (low, high) if v is not None):
        return False
    top = scalar(high)
    return scalar(low) in {None, 0.0} and (top is None or top > 0)


def moved(node: ir.Node, rule: OperatorRule) -> list[ir.Value]:
    """Return the inputs of a node that hold activations."""
    indices = rule.activations or range(len(node.inputs))
    return [v for i in indices if i < len(node.inputs) and (v := node.inputs[i]) is not None]


def input_at(node: ir.Node, index: int | None) -> ir.Value | None:
    """Return an input, or None where the node has no such one."""
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def channel_axis(node: ir.Node, rule: OperatorRule) -> int:
    """Return the axis of a node's weight that gets one scale a channel."""
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return 1 - rule.channel_axis
    return rule.channel_axis


def rule_of(node: ir.Node, rules: Mapping[str, OperatorRule]) -> OperatorRule | None:
    """Return a node's rule: one that multiplies activations follows, where the target lets it."""
    rule = rules.get(node.op_type) if node.domain == "" else None
    if rule is None or not rule.products:
        return rule
    data, weight = (input_at(node, index) for index in (rule.activations[0], rule.weight))
    if is_constant(weight) and not is_constant(data):
        return rule
    return replace(rule, role=Role.FOLLOWER, activations=(), weight=None)


def unsupported(node: ir.Node, rule: OperatorRule) -> str:
    """Return why a node does not fit the target's rule, or nothing."""
    if rule.weight is not None:
        return _unsupported_inputs(node, rule) or _unsupported_form(node)
    if node.op_type == "Resize" and not rule.interpolates:
        place = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
        if node.attributes.get_string("mode", "nearest") != "nearest":
            return "interpolates: only nearest moves codes as they are"
        if place == "tf_crop_and_resize":
            return "crops while it resizes: that does not move codes as they are"
    if node.op_type == "Pad" and not _pads_on_grid(node):
        return "it adds other values than 0: what it makes has another range than what it reads"
    if node.op_type == "Slice" and not all(is_constant(v) for v in node.inputs[1:] if v):
        return "its bounds are computed at run time"
    return ""


def _pads_on_grid(node: ir.Node) -> bool:
    """Say whether all that a Pad adds has a code on the grid of what it reads: 0, or a copy."""
    value = input_at(node, 2)
    constant_mode = node.attributes.get_string("mode", "constant") == "constant"
    return not constant_mode or value is None or scalar(value) == 0.0


def _unsupported_inputs(node: ir.Node, rule: OperatorRule) -> str:
    data = node.inputs[rule.activations[0]]
    weight, bias = input_at(node, rule.weight), input_at(node, rule.bias)
    if is_constant(data):
        return "its first input is the constant one; kernels take weights on the right"
    if not is_constant(weight):
        return "both inputs are activations: their int8 kernel is slower than float"
    if not (is_float(data) and is_float(weight)):
        return "not a float32 operation"
    if bias is not None and not is_constant(bias):
        return "its bias is computed at run time"
    if bias is not None and bias.shape is not None and len(bias.shape) != 1:
        return "its bias is not one number for each column"
    return ""


def convolution_kind(node: ir.Node) -> str:
    """Return dense, grouped, depthwise or ragged depthwise for a Conv; nothing for other nodes."""
    weight = node.inputs[1] if node.op_type == "Conv" else None
    if weight is None or weight.shape is None:
        return ""
    group = node.attributes.get_int("group", 1)
    if group == 1:
        return "dense"
    outputs, inputs = weight.shape[0], weight.shape[1]
    if inputs != 1 or outputs != group:
        return "grouped"
    return "depthwise" if group % 16 == 0 else "ragged depthwise"


def _unsupported_form(node: ir.Node) -> str:
    weight = node.inputs[1]
    shape = weight.shape.numpy() if weight is not None and weight.shape is not None else ()
    if node.op_type == "MatMul" and len(shape) != 2:
        return "its weight is not a matrix"
    if node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) == 1
        or node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return "Gemm with alpha, beta or transA has no int8 kernel"
    return "" if np.prod(shape) else "its weight is empty"
