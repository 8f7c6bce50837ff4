"""Operators whose form or meaning changed between opset 7 and 21, before and after conversion."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompile.errors import ModelError
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.infer_shapes import InferShapes
from tests.passes.tools import random_feeds, relative_l2, session

I = np.int64  # noqa: E741
CASES: list[tuple[int, str, list[int], dict[str, Any], dict[str, Any]]] = [
    (7, "BatchNormalization", [2, 3, 4], {}, dict.fromkeys("smbv", np.ones(3, np.float32))),
    (7, "Upsample", [1, 2, 3, 3], {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}, {}),
    (9, "Upsample", [1, 2, 3, 3], {"mode": "nearest"}, {"s": np.array([1, 1, 2, 2], np.float32)}),
    (9, "Upsample", [1, 2, 3, 3], {"mode": "linear"}, {"s": np.array([1, 1, 2, 2], np.float32)}),
    (10, "Resize", [1, 2, 3, 3], {"mode": "nearest"}, {"s": np.array([1, 1, 2, 2], np.float32)}),
    (10, "Resize", [1, 2, 3, 3], {"mode": "linear"}, {"s": np.array([1, 1, 2, 3], np.float32)}),
    (7, "Dropout", [2, 3], {"ratio": 0.4}, {}),
    (7, "Slice", [4, 5], {"starts": [1, 0], "ends": [3, -1], "axes": [0, 1]}, {}),
    (7, "TopK", [2, 5], {"k": 3, "axis": 1}, {}),
    (7, "Clip", [2, 3], {"min": -0.5, "max": 0.25}, {}),
    (7, "Clip", [2, 3], {"min": 0.0}, {}),
    (7, "Pad", [2, 3], {"pads": [0, 1, 1, 0], "value": 2.0}, {}),
    (7, "Squeeze", [1, 3, 1], {"axes": [0, 2]}, {}),
    (7, "Squeeze", [1, 3, 1], {}, {}),
    (7, "Unsqueeze", [2, 3], {"axes": [0, 3]}, {}),
    (7, "Softmax", [2, 3, 4], {}, {}),
    (7, "Softmax", [2, 3, 4], {"axis": 0}, {}),
    (11, "LogSoftmax", [2, 3, 4], {"axis": 1}, {}),
    (7, "ReduceSum", [2, 3, 4], {"axes": [1]}, {}),
    (7, "ReduceSum", [2, 3, 4], {"keepdims": 0}, {}),
    (7, "ReduceMean", [2, 3, 4], {"axes": [1, 2], "keepdims": 0}, {}),
    (13, "ReduceMax", [2, 3, 4], {"axes": [-1]}, {}),
    (16, "ReduceL2", [2, 3, 4], {"axes": [0]}, {}),
    (17, "ReduceProd", [2, 3, 4], {}, {}),
    (13, "ReduceSumSquare", [2, 3, 4], {"axes": [0]}, {}),
    (7, "Split", [4, 6], {"axis": 1, "split": [2, 4]}, {}),
    (7, "Split", [4, 6], {"axis": 1}, {}),
    (13, "Split", [4, 6], {"axis": 1}, {"s": np.array([2, 4], I)}),
    (13, "Split", [4, 6], {"axis": 1}, {}),
    (7, "MaxPool", [1, 2, 5, 5], {"kernel_shape": [2, 2], "strides": [2, 2]}, {}),
    (7, "AveragePool", [1, 2, 5, 5], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}),
    (
        10,
        "AveragePool",
        [1, 2, 5, 5],
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        {},
    ),
    (7, "Reshape", [2, 6], {}, {"s": np.array([3, -1], I)}),
    (7, "Flatten", [2, 3, 4], {"axis": 2}, {}),
    (7, "PRelu", [2, 3], {}, {"s": np.array([0.1, 0.2, 0.3], np.float32)}),
    (7, "Gather", [4, 3], {"axis": 0}, {"s": np.array([3, 1], I)}),
    (7, "Sum", [2, 3], {}, {"s": np.ones((2, 3), np.float32)}),
    (7, "LRN", [1, 4, 3, 3], {"size": 3}, {}),
    (7, "InstanceNormalization", [2, 3, 4], {}, dict.fromkeys("sb", np.ones(3, np.float32))),
    (7, "ArgMax", [3, 4], {"axis": 1}, {}),
    (9, "Scatter", [3, 3], {}, {"i": np.array([[0, 1, 2]], I), "u": np.ones((1, 3), np.float32)}),
    (7, "DepthToSpace", [1, 8, 2, 2], {"blocksize": 2}, {}),
    (7, "Elu", [2, 3], {"alpha": 0.5}, {}),
    (7, "HardSigmoid", [2, 3], {}, {}),
    (7, "Cast", [2, 3], {"to": TensorProto.INT32}, {}),
    (11, "CumSum", [2, 3], {}, {"s": np.array(1, I)}),
    (
        16,
        "GridSample",
        [1, 1, 3, 3],
        {"mode": "bicubic"},
        {"g": np.zeros((1, 2, 2, 2), np.float32)},
    ),
    (
        13,
        "Resize",
        [1, 1, 4, 4],
        {"mode": "cubic"},
        {"r": None, "s": np.array([1, 1, 2, 2], np.float32)},
    ),
    (11, "Pad", [2, 3], {"mode": "reflect"}, {"s": np.array([0, 1, 0, 1], I)}),
    (18, "Split", [4, 5], {"axis": 1, "num_outputs": 2}, {}),
    (7, "GlobalLpPool", [1, 2, 3, 3], {}, {}),
    (7, "ConvTranspose", [1, 2, 3, 3], {}, {"w": np.ones((2, 1, 2, 2), np.float32)}),
    (7, "Gemm", [2, 3], {}, {"w": np.ones((3, 2), np.float32), "c": np.ones(2, np.float32)}),
    (14, "HardSwish", [2, 3], {}, {}),
    (
        10,
        "Resize",
        [1, 1, 6, 6],
        {"mode": "nearest"},
        {"s": np.array([1, 1, 0.5, 0.5], np.float32)},
    ),
    (10, "Resize", [1, 1, 7, 5], {"mode": "linear"}, {"s": np.array([1, 1, 0.6, 0.4], np.float32)}),
    (
        10,
        "RoiAlign",
        [1, 1, 6, 6],
        {"output_height": 2, "output_width": 2, "spatial_scale": 0.5},
        {"r": np.array([[0, 0, 7, 9]], np.float32), "b": np.array([0], I)},
    ),
    (
        7,
        "LSTM",
        [3, 1, 2],
        {"hidden_size": 2},
        {"w": np.ones((1, 8, 2), np.float32), "r": np.ones((1, 8, 2), np.float32) / 3},
    ),
    (
        7,
        "GRU",
        [3, 1, 2],
        {"hidden_size": 2, "linear_before_reset": 1},
        {"w": np.ones((1, 6, 2), np.float32), "r": np.ones((1, 6, 2), np.float32) / 3},
    ),
    (10, "TopK", [2, 5], {}, {"k": np.array([2], I)}),
    (12, "Pow", [2, 3], {}, {"s": np.array([2], I)}),
    (9, "Expand", [1, 3], {}, {"s": np.array([4, 3], I)}),
    (10, "Mod", [2, 3], {"fmod": 1}, {"s": np.array([0.3], np.float32)}),
    (7, "Tile", [2, 3], {}, {"s": np.array([2, 1], I)}),
    (12, "Einsum", [2, 3], {"equation": "ij,jk->ik"}, {"s": np.ones((3, 2), np.float32)}),
    (7, "SpaceToDepth", [1, 1, 4, 4], {"blocksize": 2}, {}),
    (11, "DepthToSpace", [1, 8, 2, 2], {"blocksize": 2, "mode": "CRD"}, {}),
    (10, "ThresholdedRelu", [2, 3], {"alpha": 0.2}, {}),
    (7, "LpPool", [1, 2, 4, 4], {"kernel_shape": [2, 2]}, {}),
    (
        18,
        "GroupNormalization",
        [1, 4, 3],
        {"num_groups": 2},
        {"s": np.array([1, 2], np.float32), "b": np.array([0, 1], np.float32)},
    ),
    (
        11,
        "Resize",
        [1, 1, 3, 3],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)},
    ),
    (
        11,
        "Resize",
        [1, 1, 3, 3],
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)},
    ),
    (17, "LayerNormalization", [2, 3], {}, {"s": np.ones(3, np.float32)}),
]
OUTPUTS = {"TopK": 2, "Split": 2}


def one_node(
    opset: int, op: str, shape: list[int], attributes: dict[str, Any], weights: dict[str, Any]
) -> onnx.ModelProto:
    names = [f"y{i}" for i in range(OUTPUTS.get(op, 1))]
    inputs = ["x", *("" if array is None else name for name, array in weights.items())]
    integer = {"ArgMax": TensorProto.INT64, "Cast": TensorProto.INT32}
    kinds = [TensorProto.FLOAT, TensorProto.INT64] if op == "TopK" else [integer.get(op, 1)] * 2
    graph = helper.make_graph(
        [helper.make_node(op, inputs, names, **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=False)],
        [numpy_helper.from_array(a, n) for n, a in weights.items() if a is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[0]}")
def test_conversion_keeps_the_meaning(case):
    proto = one_node(*case)
    model = ir.from_proto(proto)
    feeds = random_feeds(model)
    before = session(proto).run(None, feeds)
    ConvertOpset()(model)
    assert model.opset_imports[""] == 21
    InferShapes()(model)
    # onnx infers no shape for GroupNormalization, and its full check wants one.
    inferred = all(value.shape is not None for value in model.graph.outputs)
    if inferred:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert relative_l2(before, session(model).run(None, feeds)) <= 1e-6


def test_what_no_converter_can_do_is_said():
    proto = one_node(
        7, "Upsample", [1, 2, 3, 3], {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}, {}
    )
    proto.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"cannot convert opset 7 to 21: .*NoSuchOperator"):
        ConvertOpset()(ir.from_proto(proto))


def test_hardmax_that_changed_its_meaning_is_refused():
    proto = one_node(12, "Hardmax", [2, 3, 4], {"axis": 1}, {})
    with pytest.raises(ModelError, match="Hardmax"):
        ConvertOpset()(ir.from_proto(proto))


def test_other_domains_are_kept():
    proto = one_node(15, "Elu", [2, 3], {}, {})
    proto.graph.node.append(helper.make_node("Gelu", ["y0"], ["z"], domain="com.microsoft"))
    proto.graph.output[0].name = "z"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = ir.from_proto(proto)
    feeds = random_feeds(model)
    before = session(proto).run(None, feeds)
    ConvertOpset()(model)
    assert model.opset_imports == {"": 21, "com.microsoft": 1}
    assert relative_l2(before, session(model).run(None, feeds)) == 0


def test_subgraphs_are_converted_too():
    text = """<ir_version: 6, opset_import: ["" : 11]>
    g (bool c, float[1, 4] x) => (float[4] y) {
      y = If (c) <
        then_branch = t () => (float[4] a) { a = Squeeze<axes = [0]>(x) },
        else_branch = e () => (float[4] b) { n = Neg(x) b = Squeeze<axes = [0]>(n) }
      >
    }"""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(proto)
    feeds = [{"c": np.array(c), "x": np.ones((1, 4), np.float32)} for c in [True, False]]
    before = [session(proto).run(None, f) for f in feeds]
    ConvertOpset()(model)
    after = [session(model).run(None, f) for f in feeds]
    np.testing.assert_array_equal(before, after)
