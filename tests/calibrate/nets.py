"""Small graphs and samples for the calibration tests."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from qcompile.samples import InMemory


def model_of(text, **weights):
    """Parse a model and give it weights."""
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def conv_net():
    """Return two convolutions with a Relu between and a mean behind them."""
    rng = np.random.default_rng(7)
    return model_of(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N, 3, 16, 16] x) => (float[N, 4] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
            r = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(r, w2)
            axes = Constant<value_ints = [2, 3]>()
            y = ReduceMean<keepdims = 0>(c, axes)
        }""",
        w1=rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        b1=rng.normal(size=8).astype(np.float32),
        w2=rng.normal(size=(4, 8, 3, 3)).astype(np.float32),
    )


CONV_NAMES = ("x", "a", "r", "c", "y")


def elementwise(expression):
    """Return ``y = expression(x)`` on a matrix of floats."""
    return model_of(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        net (float[N, M] x) => (float[N, M] y) {{ y = {expression} }}"""
    )


def random_samples(count, shape=(1, 3, 16, 16), seed=0):
    """Return samples whose scales differ by a factor of a hundred."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-1, 1, count)
    return InMemory([{"x": (s * rng.normal(size=shape)).astype(np.float32)} for s in scales])


def same(first, second):
    """Return whether two statistics are the same to the bit."""
    return first.tensors.keys() == second.tensors.keys() and all(
        (a.low, a.high, a.elements, a.unbounded) == (b.low, b.high, b.elements, b.unbounded)
        and a.counts.tobytes() == b.counts.tobytes()
        for a, b in ((first.tensors[name], second.tensors[name]) for name in first.tensors)
    )
