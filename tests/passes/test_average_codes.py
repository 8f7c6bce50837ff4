"""The average of codes is that of their values, in a kernel that reads codes."""

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qcompile.passes.average_codes import AverageCodes
from qcompile.runtime.ort import Session, kernels
from tests.passes.quantized import typed


def pool_of_codes(shape: list[int], zero: int, *, shared: bool) -> ir.Model:
    """A pool of codes; with ``shared`` what it reads, and what it makes, are outputs too."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Exp", ["p"], ["y"]),
    ]
    outputs = ["y", "p", "d"] if shared else ["y"]
    return typed(nodes, shape, outputs, {"s": np.float32(0.013), "z": np.uint8(zero)})


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.lists(st.integers(1, 17), min_size=1, max_size=3),
    st.integers(0, 255),
    st.integers(1, 3),
    st.booleans(),
)
def test_same_average_without_dequantizing_the_map(seed, channels, space, zero, batch, shared):
    model = pool_of_codes([channels, *space], zero, shared=shared)
    x = np.random.default_rng(seed).normal(0, 2, (batch, channels, *space)).astype(np.float32)
    before = Session(model, optimize=False).run({"x": x})
    assert AverageCodes()(model).modified
    assert not AverageCodes()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for optimize in (True, False):
        found = Session(model, optimize=optimize).run({"x": x})
        assert list(found) == list(before)
        for name, old in before.items():
            np.testing.assert_allclose(found[name], old, rtol=1e-5, atol=1e-5)
    obtained = kernels(model)
    assert obtained["com.microsoft::MatMulIntegerToFloat"] == 1, obtained
    assert shared or obtained["ai.onnx::DequantizeLinear"] == 0, obtained


def test_arm_codes_are_left_alone():
    model = pool_of_codes([4, 3, 3], 0, shared=False)
    zero = model.graph.initializers["z"]
    zero.const_value = ir.tensor(np.asarray(0, np.int8), name="z")
    zero.dtype = ir.DataType.INT8
    for node in model.graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.UINT8:
                value.dtype = ir.DataType.INT8
    assert not AverageCodes()(model).modified
