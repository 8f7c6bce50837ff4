"""The padded Conv computes the same codes, in the kernel that ONNX Runtime really takes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.passes.pad_channels import PadChannels
from qcompile.runtime.ort import Session, kernels
from tests.passes.quantized import quantized_conv


@settings(max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 7),
    st.sampled_from([16, 24, 64]),
    st.sampled_from([[36, 40], [1100]]),
    st.booleans(),
)
def test_same_codes_and_still_an_int8_kernel(seed, channels, count, size, shared):
    rng = np.random.default_rng(seed)
    kernel = rng.integers(1, 4, len(size)).tolist()
    outputs = ("y", "y2") if shared else ("y",)
    model = quantized_conv(rng, (channels, *size), count, kernel, outputs=outputs)
    x = {"x": rng.normal(1, 1, (2, channels, *size)).astype(np.float32)}
    before = Session(model).run(x)
    modified = PadChannels()(model).modified
    assert modified == (channels % 4 != 0)
    assert not PadChannels()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    after = Session(model).run(x)
    for name in outputs:
        np.testing.assert_array_equal(before[name], after[name])
    found = kernels(model)
    convs = found["com.microsoft::QLinearConv"] + found["ai.onnx::QLinearConv"]
    assert convs == len(outputs), found


@pytest.mark.parametrize(
    ("channels", "count", "size", "group", "code"),
    [
        (3, 8, [36, 40], 1, np.uint8),
        (3, 20, [36, 40], 1, np.uint8),
        (6, 16, [36, 40], 2, np.uint8),
        (3, 16, [16, 16], 1, np.uint8),
        (3, 16, [36, 40], 1, np.int8),
    ],
    ids=["few kernels", "kernels by the four", "groups", "few positions", "int8 of ARM"],
)
def test_left_alone(channels, count, size, group, code):
    rng = np.random.default_rng(0)
    model = quantized_conv(rng, (channels, *size), count, (3, 3), code, group=group)
    assert not PadChannels()(model).modified
