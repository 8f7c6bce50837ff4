"""The folded Conv computes the same codes, in the kernel that ONNX Runtime really takes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.passes.fold_stride import FoldStride
from qcompile.runtime.ort import Session, kernels
from tests.passes.quantized import quantized_conv

REFUSALS = {
    "it has too little arithmetic",
    "its kernels would grow too much",
    "its last row or column is read by no kernel",
}


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3, 5, 6]),
    st.sampled_from([(2, 2, 3), (2, 3, 3), (2, 7, 7), (2, 4, 6), (4, 4, 4), (2, 5, 3)]),
    st.tuples(st.integers(40, 80), st.integers(40, 80)),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.booleans(),
)
def test_same_codes_and_still_an_int8_kernel(seed, channels, form, size, pads, spelled):
    stride, *kernel = form
    rng = np.random.default_rng(seed)
    attributes: dict[str, object] = {"strides": [stride, stride], "pads": pads}
    if spelled:
        attributes["kernel_shape"] = kernel
    model = quantized_conv(rng, (channels, *size), 256, kernel, **attributes)
    x = {"x": rng.normal(1, 1, (2, channels, *size)).astype(np.float32)}
    before = Session(model).run(x)["y"]
    step = FoldStride()
    modified = step(model).modified
    assert modified or (step.refusals and set(step.refusals) <= REFUSALS), step.refusals
    assert not FoldStride()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(before, Session(model).run(x)["y"])
    found = kernels(model)
    assert found["com.microsoft::QLinearConv"] + found["ai.onnx::QLinearConv"] == 1, found
    # one for the rows, one for channels last, one back at the end: none is left before the Conv
    assert not modified or found["ai.onnx::Transpose"] == 3, found


@pytest.mark.parametrize(
    ("shape", "count", "code", "attributes"),
    [
        ((3, 200, 200), 8, np.uint8, {"strides": [2, 2]}),
        ((4, 200, 200), 16, np.uint8, {"strides": [2, 2]}),
        ((6, 200, 200), 16, np.uint8, {"strides": [2, 2], "group": 2}),
        ((3, 200, 200), 16, np.uint8, {"strides": [2, 1]}),
        ((3, 200, 200), 16, np.uint8, {"strides": [2, 2], "dilations": [2, 2]}),
        ((3, 200, 200), 16, np.uint8, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((3, 200, 200), 16, np.int8, {"strides": [2, 2]}),
        ((3, 200, 200), 16, np.uint8, {}),
        ((3, 20, 20), 16, np.uint8, {"strides": [2, 2]}),
    ],
    ids=[
        "kernels",
        "channels",
        "groups",
        "strides",
        "dilations",
        "auto_pad",
        "ARM",
        "no stride",
        "small",
    ],
)
def test_left_alone(shape, count, code, attributes):
    model = quantized_conv(np.random.default_rng(0), shape, count, (3, 3), code, **attributes)
    assert not FoldStride()(model).modified
