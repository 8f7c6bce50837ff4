"""Pass: settle reshapes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant, remove_unread
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, is_op, producer
from qcompile.passes.infer_shapes import InferShapes

# An element of a shape: its number, or the value and axis whose size it is, or None for unknown.
Element = int | tuple[ir.Value, int] | None


@dataclass(frozen=True, kw_only=True)
class SettleReshapes(GraphPass):
    """Replace a computed target shape by 0 (as in the input) and -1 (what is left), if that is it.

    Exporters compute shapes at run time although only the batch is dynamic; then nothing after the
    Reshape has a known size.

    Before: ``y = Reshape(x, Concat(Unsqueeze(Gather(Shape(x), 0)), [64]))``.
    After:  ``y = Reshape(x, [0, 64])``.
    Visits: the main graph. Leaves: two elements that are not known, and tensors that are known
    to have no elements (there -1 says nothing).
    """

    name: ClassVar[str] = "settle-reshapes"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED, Fact.WORKING_OPSET})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Replace all that can be; the shapes that this makes known may settle further ones."""
        names, modified = Names(model), False
        while found := [(n, t) for n in model.graph if (t := _target(n)) is not None]:
            for node, target in found:
                _settle(node, target, names)
            InferShapes()(model)
            modified = True
        for node in model.graph:
            if is_op(node, "Reshape") and constant(node.inputs[1]) is None:
                self.refuse("its target shape has more than one unknown element")
        return modified


def _target(reshape: ir.Node) -> list[int] | None:
    """Return the target shape as constants; None for other nodes and where it cannot be."""
    if not is_op(reshape, "Reshape") or constant(reshape.inputs[1]) is not None:
        return None
    data, elements = reshape.inputs[0], elements_of(reshape.inputs[1])
    if data is None or data.shape is None or elements is None or 0 in data.shape:
        return None
    if 0 in elements and reshape.attributes.get_int("allowzero", 0) == 1:
        return None
    target = [_settled(element, index, data) for index, element in enumerate(elements)]
    if target.count(None) == 1 and -1 not in target:
        target = [-1 if size is None else size for size in target]
    known = [size for size in target if size is not None]
    return known if len(known) == len(target) else None


def _settled(element: Element, index: int, data: ir.Value) -> int | None:
    if not isinstance(element, tuple):
        return element
    value, axis = element
    size = value.shape[axis] if value.shape is not None else None
    if isinstance(size, int):
        return size
    if data.shape is None or index >= len(data.shape):
        return None
    same_symbol = isinstance(size, ir.SymbolicDim) and size.value and size == data.shape[index]
    return 0 if element == (data, index) or same_symbol else None


def elements_of(shape: ir.Value | None, depth: int = 6) -> list[Element] | None:
    """Return what each element of an integer vector (or scalar) is, or None if that is unknown."""
    array = constant(shape, max_elements=64)
    if array is not None:
        return [int(size) for size in array.reshape(-1)]
    node = producer(shape, "Concat", "Unsqueeze", "Squeeze", "Cast", "Shape", "Gather", "Slice")
    if node is None or depth == 0:
        return _unknown(shape)
    if node.op_type == "Concat":
        parts = [elements_of(v, depth - 1) for v in node.inputs]
        known = [part for part in parts if part is not None]
        return [e for part in known for e in part] if len(known) == len(parts) else None
    if node.op_type == "Shape":
        return _sizes(node)
    inner = elements_of(node.inputs[0], depth - 1)
    if node.op_type in {"Unsqueeze", "Squeeze", "Cast"}:
        return inner
    return None if inner is None else _picked(node, inner) or _unknown(shape)


def _unknown(shape: ir.Value | None) -> list[Element] | None:
    """Return one None for each element, where at least their number is known."""
    if shape is None or shape.shape is None or not shape.shape.is_static():
        return None
    return [None] * int(np.prod(shape.shape.numpy(), dtype=np.int64))


def _sizes(node: ir.Node) -> list[Element] | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return _unknown(node.outputs[0])
    axes = list(range(len(value.shape)))
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(axes))
    return [(value, axis) for axis in axes[start:end]]


def _picked(node: ir.Node, elements: list[Element]) -> list[Element] | None:
    """Return the elements that a Gather or Slice with constant operands takes from a vector."""
    operands = [constant(v) for v in node.inputs[1:]]
    if any(operand is None for operand in operands):
        return None
    numbers = [int(o.reshape(-1)[0]) for o in operands if o is not None and o.size == 1]
    if node.op_type == "Gather":
        indices = [] if operands[0] is None else operands[0].reshape(-1).tolist()
        return [elements[i] for i in indices]
    if len(numbers) != len(operands) or len(numbers) < 2:
        return None
    step = numbers[3] if len(numbers) > 3 else 1
    return elements[numbers[0] : numbers[1] : step] if step > 0 else None


def _settle(reshape: ir.Node, target: list[int], names: Names) -> None:
    computed = reshape.inputs[1]
    maker = None if computed is None else computed.producer()
    if reshape.graph is None or reshape.inputs[0] is None or maker is None:
        return
    name = names.fresh(reshape.outputs[0], "shape")
    shape = add_constant(reshape.graph, name, np.array(target, np.int64))
    reshape.replace_input_with(1, shape)
    reshape.attributes.pop("allowzero", None)
    remove_unread(maker)
