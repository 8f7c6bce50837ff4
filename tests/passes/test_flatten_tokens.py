"""Random stacks of row-wise nodes: flattened or not, the outputs are the same."""

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcompile.graph.rows import is_row_constant
from qcompile.graph.verify import verify
from qcompile.graph.walk import is_op, only_consumer
from qcompile.passes.flatten_tokens import FlattenTokens
from qcompile.passes.fuse_linear import FuseLinear
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from tests.passes.tools import random_feeds, relative_l2, session

WIDTH = 8
SIZES = {"B": 3, "S": 5}


class Stack:
    """Draws nodes; every value in ``rows`` has shape (lead..., WIDTH)."""

    def __init__(self, draw: st.DrawFn, lead: list[int | str]) -> None:
        self.draw, self.lead = draw, lead
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes, self.weights = [], {}
        self.rows, self.outputs = ["x"], []

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def floats(self, *shape: int) -> str:
        return self.weight(self.rng.standard_normal(shape).astype(np.float32))

    def row(self) -> str:
        leading = self.draw(st.integers(0, len(self.lead)))
        return self.floats(*[1] * leading, self.draw(st.sampled_from([1, WIDTH])))

    def swapped(self, op: str, a: str, b: str) -> str:
        return self.add(op, *((a, b) if self.draw(st.booleans()) else (b, a)))

    def linear(self) -> None:
        product = self.add("MatMul", self.any(), self.floats(WIDTH, WIDTH))
        leading = self.draw(st.integers(0, len(self.lead)))
        bias = self.floats(*[1] * leading, WIDTH)
        self.rows.append(self.swapped("Add", product, bias))

    def product(self) -> None:
        self.rows.append(self.add("MatMul", self.any(), self.floats(WIDTH, WIDTH)))

    def constant(self) -> None:
        op = self.draw(st.sampled_from(["Add", "Sub", "Mul"]))
        self.rows.append(self.swapped(op, self.any(), self.row()))

    def residual(self) -> None:
        op = self.draw(st.sampled_from(["Add", "Sub", "Mul"]))
        self.rows.append(self.add(op, self.any(), self.any()))

    def places(self) -> None:
        self.rows.append(self.swapped("Add", self.any(), self.floats(*self.place_sizes(), WIDTH)))

    def place_sizes(self) -> list[int]:
        return [1 if isinstance(d, str) else d for d in self.lead]

    def norm(self) -> None:
        axis = self.draw(st.sampled_from([-1, len(self.lead)]))
        scale, bias = self.floats(WIDTH), self.floats(WIDTH)
        self.rows.append(self.add("LayerNormalization", self.any(), scale, bias, axis=axis))

    def unary(self) -> None:
        self.rows.append(self.add(self.draw(st.sampled_from(["Relu", "Tanh", "Gelu"])), self.any()))

    def softmax(self) -> None:
        self.rows.append(self.add("Softmax", self.any(), axis=1))

    def heads(self) -> None:
        known = [0 if isinstance(d, str) else d for d in self.lead]
        if self.draw(st.booleans()):
            known[self.draw(st.integers(0, len(known) - 1))] = 0
        target = [*known, 2, WIDTH // 2]
        if self.draw(st.booleans()):
            target[self.draw(st.integers(0, len(target) - 1))] = -1
        shape = self.weight(np.array(target, np.int64))
        split = self.add("Reshape", self.any(), shape)
        last = len(target) - 1
        order = [*range(last - 1), last, last - 1]
        turned = self.add("Transpose", split, perm=order)
        self.outputs.append(turned)
        joined = self.weight(np.array([0] * len(self.lead) + [WIDTH], np.int64))
        self.rows.append(self.add("Reshape", turned, joined))

    def matrix(self) -> None:
        flat = self.add("Reshape", self.any(), self.weight(np.array([-1, WIDTH], np.int64)))
        self.outputs.append(self.add("ReduceMax", flat, self.weight(np.array([0])), keepdims=1))

    def any(self) -> str:
        return self.draw(st.sampled_from(self.rows[-3:]))


KINDS = [
    "linear", "linear", "product", "constant", "residual", "places",
    "norm", "unary", "softmax", "heads", "matrix",
]  # fmt: skip


@st.composite
def stacks(draw: st.DrawFn) -> ir.Model:
    lead = draw(st.sampled_from([["B", "S"], ["B", 5], [3, "S"], [3, 5], ["B", 2, "S"]]))
    stack = Stack(draw, lead)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=9)):
        getattr(stack, kind)()
    outputs = list(dict.fromkeys([*stack.outputs, *draw(st.sets(st.sampled_from(stack.rows)))]))
    outputs = [name for name in outputs if name != "x"] or [stack.nodes[-1].output[0]]
    graph = helper.make_graph(
        stack.nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*lead, WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in stack.weights.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    NameValues()(model)
    InferShapes()(model)
    return model


@given(stacks(), st.integers(0, 9))
def test_outputs_stay(model: ir.Model, seed: int) -> None:
    feeds = [random_feeds(model, seed, SIZES), random_feeds(model, seed + 1, {"B": 1, "S": 1})]
    before = [session(model).run(None, feed) for feed in feeds]
    names = [(v.name, str(v.type), str(v.shape)) for v in model.graph.outputs]
    FlattenTokens()(model)
    verify(model)
    assert [(v.name, str(v.type), str(v.shape)) for v in model.graph.outputs] == names
    for feed, expected in zip(feeds, before, strict=True):
        assert relative_l2(expected, session(model).run(None, feed)) == 0
    assert not FlattenTokens()(model).modified
    FuseLinear()(model)
    verify(model)
    for feed, expected in zip(feeds, before, strict=True):
        assert relative_l2(expected, session(model).run(None, feed)) <= FuseLinear.effect.value


@given(stacks())
def test_no_linear_layer_with_a_bias_is_left(model: ir.Model) -> None:
    FlattenTokens()(model)
    FuseLinear()(model)
    for node in model.graph:
        add = only_consumer(node.outputs[0]) if is_op(node, "MatMul") else None
        if is_op(add, "Add"):
            assert not any(is_row_constant(v, node.outputs[0]) for v in add.inputs)
