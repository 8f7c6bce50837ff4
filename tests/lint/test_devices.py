"""L17, L24, L35: opsets, operators and devices."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.lint.operators import ABSENT, FEW_BITS, FUSED, INTEGER, RTX_ABSENT, RTX_ONLY
from tests.lint.cases import Cases
from tests.lint.made import RTX, case, devices
from tests.lint.models import (
    Net,
    broken,
    codes,
    conv,
    found,
    fp4,
    fp8,
    int4,
    matmul,
    scalar,
    steps,
    zeros,
)


def opset(version: int) -> ir.Model:
    net = Net(version)
    return net.model(net.op("Relu", net.input((1, 4))))


def operator(kind: str, domain: str = "") -> ir.Model:
    net = Net()
    y = net.op(kind, net.input((4, 8)), domain=domain)
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((4, 8))
    return net.model(y)


def integer_matmul() -> ir.Model:
    net = Net()
    left, right = net.input((4, 8), ir.DataType.INT8), net.input((8, 4), ir.DataType.INT8)
    return net.model(net.op("MatMulInteger", left, right))


def own_function() -> ir.Model:
    """A function of the model's own may have any name."""
    model = operator("BiasGelu", "com.example")
    x, y = ir.Value(name="x"), ir.Value(name="y")
    body = ir.Graph([x], [y], nodes=[ir.node("Relu", [x], outputs=[y])], opset_imports={"": 21})
    function = ir.Function("com.example", "BiasGelu", "", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    return model


def product(dtype: Any, **weight: Any) -> ir.Model:
    """FP8 or FP4 MatMul; FP4 in blocks with float activations."""
    scale = weight.pop("scale", steps(32))
    stored = {"codes": codes(64, 32, dtype=dtype, limit=6), "scale": scale, **weight}
    activation = {"zero": zeros(dtype=dtype)} if dtype is not fp4 and dtype is not int4 else None
    opset = 23 if dtype is fp4 else 21
    return matmul(opset=opset, activation=activation, weight=stored)


def fp4_blocks(size: int) -> ir.Model:
    scale = np.full((64 // size, 32), 0.02, np.float32)
    return product(fp4, scale=scale, axis=0, block_size=size)


def int4_blocks() -> ir.Model:
    net = Net()
    scale = np.full((2, 32), 0.02, np.float32)
    weight = net.weight(codes(128, 32, dtype=int4, limit=7), scale, axis=0, block_size=64)
    return net.model(net.op("MatMul", net.input((4, 128)), weight))


def dynamic(kind: str, size: int) -> ir.Model:
    """Activations in blocks whose scales are computed in each run: NVFP4 and MXFP8."""
    net = Net(23)
    x = net.input((4, 64))
    four_bits = kind == "TRT_FP4DynamicQuantize"
    inputs = [x, net.constant(scalar(1.0))] if four_bits else [x]
    attributes = {"block_size": size, "axis": -1}
    node = ir.node(kind, inputs, attributes, domain="trt", num_outputs=2, name="quantize")
    net.nodes.append(node)
    codes_type = ir.DataType.FLOAT4E2M1 if four_bits else ir.DataType.FLOAT8E4M3FN
    scales_type = ir.DataType.FLOAT8E4M3FN if four_bits else ir.DataType.UINT8
    for value, name, dtype, shape in zip(
        node.outputs, ("q", "s"), (codes_type, scales_type), ((4, 64), (4, 64 // size)), strict=True
    ):
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    q, s = node.outputs
    if four_bits:
        s = net.op("DequantizeLinear", s, scalar(1.0))
        return net.model(net.op("DequantizeLinear", q, s, axis=1, block_size=size))
    y = net.op("TRT_MXFP8DequantizeLinear", q, s, domain="trt", axis=1, output_dtype=1)
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((4, 64))
    return net.model(y)


BREAKS: Cases = {
    "L17": (case(opset, 25), case(opset, 8)),
    "L24": (
        case(integer_matmul),
        case(operator, "Bernoulli"),
        *(
            case(operator, kind, "com.microsoft")
            for kind in ("QGemm", "BiasGelu", "MatMulNBits", "MultiHeadAttention")
        ),
        case(operator, "DeformConv", setting=RTX),
    ),
    "L35": (
        case(product, fp8, setting=devices(86)),
        case(product, fp8, setting=devices(89, 87)),
        case(fp4_blocks, 16, setting=devices(90)),
        case(int4_blocks, setting=devices(75)),
        case(dynamic, "TRT_FP4DynamicQuantize", 32, setting=devices(120)),
        case(dynamic, "TRT_MXFP8DynamicQuantize", 16, setting=devices(120)),
    ),
}
KEEPS: Cases = {
    "L17": (case(opset, 24), case(opset, 9), case(conv)),
    "L24": (
        case(conv),
        case(own_function),
    ),
    "L35": (
        case(product, fp8),
        case(product, fp8, setting=devices(89, 120)),
        case(fp4_blocks, 16, setting=devices(100)),
        case(int4_blocks, setting=devices(80, 87)),
        case(conv, setting=devices(75)),
        case(dynamic, "TRT_FP4DynamicQuantize", 16, setting=devices(120)),
        case(dynamic, "TRT_MXFP8DynamicQuantize", 32, setting=devices(120)),
    ),
}


def test_the_device_that_lacks_a_type_is_named_once() -> None:
    [finding] = found(product(fp8), devices(86, 87, 89))
    assert "8.6 and 8.7" in finding.what
    assert "8.9 or newer" in finding.what


def test_flavours_know_other_operators() -> None:
    assert "L24" not in broken(operator("DeformConv"))
    attention = operator("GroupQueryAttention", "com.microsoft")
    assert "L24" in broken(attention)
    assert "L24" not in broken(attention, RTX)


def test_subgraphs_are_searched() -> None:
    net = Net()
    inner = net.op("Bernoulli", net.input((4, 8)))
    branch = ir.Graph([], [inner], nodes=net.nodes, name="branch")
    net.nodes = []
    condition = net.input((), ir.DataType.BOOL)
    y = net.op(
        "If", condition, then_branch=branch, else_branch=branch.clone(allow_outer_scope_values=True)
    )
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((4, 8))
    assert "L24" in broken(net.model(y))


@pytest.mark.skipif(not find_spec("tensorrt_rtx_bindings"), reason="TensorRT for RTX is absent")
def test_the_parser_has_no_importer_for_what_is_listed() -> None:
    import tensorrt_rtx_bindings as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    known_with_plugins = {"MatMulNBits", "QMoE"}
    listed = INTEGER | FUSED | FEW_BITS | ABSENT | RTX_ABSENT
    assert {n for n in listed if parser.supports_operator(n)} == known_with_plugins
    assert all(parser.supports_operator(name) for name in RTX_ONLY)
    standard = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
    assert {n for n in standard if not parser.supports_operator(n)} <= listed
