"""Pass: dequantize graph."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import (
    Names,
    add_constant,
    add_initializer,
    bypass,
    lazy_tensor,
    remove_unread,
    take_over,
)
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_nodes, constant, consumers, is_constant, producer, scalar
from qcompile.numerics.regrid import RANGES, Given, Grid, moved_axis

CONTRIB = "com.microsoft"

MOVERS = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Expand", "Tile"),
    *("Slice", "Split", "Gather", "Concat", "MaxPool", "DepthToSpace", "SpaceToDepth", "Pad"),
)
"""Operators that move codes as they move reals: scales are positive, so MaxPool is one."""

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Sub")
"""Operators whose Relu other tools take out: their codes end at 0 by themselves."""

NEAR_SIX = 0.01
"""A grid from 0 to about 6 stood behind a Relu6."""


@dataclass(frozen=True, kw_only=True)
class DequantizeGraph(GraphPass):
    """Take QuantizeLinear and DequantizeLinear out of a model; keep what they said of each tensor.

    Before: ``y = Conv(DQ(Q(x)), DQ(W.codes), DQ(b.codes))``, ``z = DQ(Q(y))``.
    After:  ``z = Conv(x, W, b)``, W and b what their codes stand for, computed when they are read.

    The grid of each activation and weight goes to ``given``, by the name that the tensor has then,
    and by the names that a weight has behind Transpose and the like, into which ``fold-weights``
    folds it. Codes may pass operators that only move them between Q and DQ: these then move reals.
    A weight may be stored as floats before a Q. Types are all that ONNX knows, ``com.microsoft``
    is a second name of the default domain, groups (``block_size``) included.
    Other tools remove a Relu or Relu6 where the grid behind it begins with code 0, which saturates:
    a linear node whose grid begins at 0 gets its Relu (up to 6, its Clip) back.
    Visits: the main graph and subgraphs; grids of values inside subgraphs are not kept.
    Leaves: DQ of codes that no Q made (those of an input, of an integer operator), scales that are
    computed, DQ with another grid than its Q.
    """

    name: ClassVar[str] = "dequantize-graph"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED, Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    given: Given = field(default_factory=Given, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Read all pairs off the graph, weights first, then remove them."""
        found = [node for node, _ in all_nodes(model) if is_dequantize(node)]
        work = _Work(model, self.given, self.refuse)
        changed = False
        for node in found:
            reason = work.weight(node) if _stored(node) else work.activation(node)
            if reason:
                self.refuse(reason)
            changed |= not reason
        work.clean(found)
        return changed


def is_dequantize(node: ir.Node | None) -> bool:
    """Say whether a node turns codes into reals."""
    return _is(node, "DequantizeLinear")


def is_quantize(node: ir.Node | None) -> bool:
    """Say whether a node turns reals into codes."""
    return _is(node, "QuantizeLinear")


def grid_of(node: ir.Node) -> Grid | None:
    """Return the grid of a QuantizeLinear or DequantizeLinear; None where it is computed."""
    scale, zero = constant(node.inputs[1]), None
    if scale is None:
        return None
    codes = node.inputs[0] if is_dequantize(node) else node.outputs[0]
    kind = codes.dtype if codes is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = constant(node.inputs[2])
        if zero is None:
            return None
        kind = node.inputs[2].dtype or ir.DataType.from_numpy(zero.dtype)
    elif is_quantize(node):
        kind = ir.DataType(node.attributes.get_int("output_dtype", 0)) or ir.DataType.UINT8
    name = kind.name.lower() if kind else ""
    if name not in RANGES:
        return None
    wide = scale.astype(np.float32)
    zeros = np.zeros(wide.shape, np.int64) if zero is None else zero.astype(np.float32)
    if wide.size == 1 and not node.attributes.get_int("block_size", 0):
        return Grid(name, wide.reshape(()), zeros.astype(np.int64).reshape(()))
    block = node.attributes.get_int("block_size", 0)
    axis = node.attributes.get_int("axis", 1)
    rank = _rank(node)
    if axis < 0 and rank is None:
        return None
    return Grid(name, wide, zeros.astype(np.int64), axis % rank if rank else axis, block)


def _is(node: ir.Node | None, op: str) -> bool:
    return node is not None and node.domain in ("", CONTRIB) and node.op_type == op


def _rank(node: ir.Node) -> int | None:
    value = node.inputs[0]
    if value is not None and value.const_value is not None:
        return len(value.const_value.shape)
    return len(value.shape) if value is not None and value.shape is not None else None


def _stored(node: ir.Node) -> bool:
    """Say whether a DQ reads constant codes, or the Q of a constant."""
    codes = node.inputs[0]
    maker = codes.producer() if codes is not None else None
    if is_quantize(maker) and maker is not None:
        return is_constant(maker.inputs[0])
    return is_constant(codes)


class _Work:
    def __init__(self, model: ir.Model, given: Given, tell: Callable[[str], None]) -> None:
        self.main, self.given, self.names, self.tell = model.graph, given, Names(model), tell
        self.moved: dict[ir.Value, ir.Value] = {}
        self.clamped: dict[ir.Value, ir.Value] = {}

    def weight(self, node: ir.Node) -> str:
        """Store what constant codes stand for; return why not, or nothing."""
        source, grid = node.inputs[0], grid_of(node)
        assert source is not None  # noqa: S101 - it is constant
        maker = source.producer()
        rounded = grid_of(maker) if is_quantize(maker) and maker is not None else None
        if grid is None or (is_quantize(maker) and (rounded is None or not grid.same(rounded))):
            return "its grid is computed, or its DequantizeLinear has another than its Q"
        if rounded is not None and maker is not None:
            source = maker.inputs[0]
        tensor = ir.convenience.get_const_tensor(source) if source is not None else None
        result, graph = node.outputs[0], node.graph
        scale = node.inputs[1]
        stated = ir.DataType(node.attributes.get_int("output_dtype", 0))
        kind = stated or (scale.dtype if scale is not None else None)
        if tensor is None or graph is None or result.is_graph_output():
            return "its codes are no plain constant, or what they stand for is a graph output"
        if rounded is not None and ("float" in rounded.type or rounded.block):
            return "floats are rounded to a grid of floats, or of groups, when the model runs"

        def compute() -> np.ndarray:
            array = tensor.numpy()
            return grid.values(grid.codes(array) if rounded is not None else array)

        shape, name = tensor.shape.numpy(), str(result.name)
        result.name = None
        real = add_initializer(graph, lazy_tensor(name, kind or ir.DataType.FLOAT, shape, compute))
        result.replace_all_uses_with(real)
        if graph is self.main and grid.type != "int32":
            self._note_weight(real, grid)
        return ""

    def _note_weight(self, value: ir.Value, grid: Grid) -> None:
        """Note the grid of a weight, and of what a layout operator makes of it."""
        self.given.weights[str(value.name)] = grid
        for reader, index in consumers(value):
            moved = _moved(reader, grid) if index == 0 else None
            if moved is not None:
                self._note_weight(reader.outputs[0], moved)

    def activation(self, node: ir.Node) -> str:
        """Let the readers of a pair read what went into it; return why not, or nothing."""
        grid, codes = grid_of(node), node.inputs[0]
        if grid is None or codes is None:
            return "its scale or zero point is computed, or its type is not known"
        reason = self._problem(codes, grid)
        if reason:
            self._note(node.outputs[0], grid)  # it stays, and what it gives lies on its grid
            return reason
        real, result = self._clamped(self._real(codes), grid), node.outputs[0]
        fed = real.producer() is None or real.is_graph_output()
        if result.is_graph_output() and fed:
            identity = ir.node("Identity", [real], name=self.names.fresh(node, "Identity"))
            node.graph.insert_before(node, identity)  # type: ignore[union-attr]
            self._note(real, grid)
            real = identity.outputs[0]
        if result.is_graph_output():
            former = self.given.activations.pop(str(real.name), None)
            take_over(real, result)
            if former is not None:
                self.given.activations[str(real.name)] = former
        else:
            bypass(result, real)
        self._note(real, grid)
        return ""

    def _clamped(self, real: ir.Value, grid: Grid) -> ir.Value:
        """Return reals behind the Relu or Clip that the lowest code stands for, if it may."""
        maker = real.producer()
        if maker is None or grid.axis is not None or grid.bounds()[0] < 0 or _is_positive(real):
            return real
        if real not in self.clamped:
            graph, high = maker.graph, grid.bounds()[1]
            six = abs(high - 6) < NEAR_SIX
            assert graph is not None  # noqa: S101 - the node was found in it
            bounds = [
                add_constant(graph, self.names.fresh(real, what), np.asarray(number, np.float32))
                for what, number in (("low", 0.0), ("high", 6.0))
                if six
            ]
            op = "Clip" if six else "Relu"
            node = ir.node(op, [real, *bounds], name=self.names.fresh(maker, op))
            result = node.outputs[0]
            result.name, result.type = self.names.fresh(real, op.lower()), real.type
            result.shape = real.shape
            graph.insert_after(maker, node)
            self.clamped[real] = result
        return self.clamped[real]

    def _note(self, real: ir.Value, grid: Grid) -> None:
        """Note the grid of a value of the main graph."""
        maker = real.producer()
        if (maker.graph if maker is not None else real.graph) is not self.main:
            self.tell("roundings inside control flow, which computes in float, are dropped")
        elif not self.given.activations.setdefault(str(real.name), grid).same(grid):
            self.tell("a tensor is rounded to two grids: the first is kept")

    def _problem(self, codes: ir.Value, grid: Grid) -> str:
        """Return why codes are not those of one grid, moved only."""
        maker = codes.producer()
        if maker is None:
            return "the codes come from an input of the model: its type stays"
        if is_quantize(maker):
            rounded = grid_of(maker)
            known = rounded is not None and rounded.same(grid)
            return "" if known else "its grid is not that of the QuantizeLinear before it"
        if maker.domain or maker.op_type not in MOVERS or (grid.axis is not None):
            return f"the codes come from a {maker.op_type}"
        if maker.op_type == "Pad":
            fill = constant(maker.inputs[2]) if len(maker.inputs) > 2 else np.zeros(1)
            plain = maker.attributes.get_string("mode", "constant") == "constant"
            if plain and (fill is None or float(fill.reshape(())) != float(grid.zero_point)):
                return "codes are padded with something else than their zero point"
        problems = (self._problem(v, grid) for v in _data(maker))
        return next(filter(None, problems), "")

    def _real(self, codes: ir.Value) -> ir.Value:
        """Return the reals that codes stand for, moved as the codes are."""
        maker = codes.producer()
        assert maker is not None  # noqa: S101 - there is no problem with it
        if is_quantize(maker):
            source = maker.inputs[0]
            assert source is not None  # noqa: S101 - it is required
            return source
        if codes not in self.moved:
            self._move(maker)
        return self.moved[codes]

    def _move(self, maker: ir.Node) -> None:
        data = {v: self._real(v) for v in _data(maker)}
        inputs = [data.get(v, v) if v is not None else None for v in maker.inputs]
        if maker.op_type == "Pad" and len(inputs) > 2:
            inputs = [*inputs[:2], None, *inputs[3:]]
        node = ir.node(
            maker.op_type,
            inputs,
            attributes=dict(maker.attributes),
            num_outputs=len(maker.outputs),
            name=self.names.fresh(maker, "real"),
        )
        kind = next(iter(data.values())).type
        for new, old in zip(node.outputs, maker.outputs, strict=True):
            new.name, new.type, new.shape = self.names.fresh(old, "real"), kind, old.shape
            self.moved[old] = new
        maker.graph.insert_before(maker, node)  # type: ignore[union-attr]

    def clean(self, nodes: list[ir.Node]) -> None:
        """Remove what nobody reads any more."""
        for node in nodes:
            if node.graph is not None and not any(_read(v) for v in node.outputs):
                remove_unread(node)


def _is_positive(value: ir.Value) -> bool:
    """Say whether a value is surely not negative, or no activation was taken from behind it."""
    node = value.producer()
    if node is None or node.domain or node.op_type == "Clip":
        return node is None or scalar(node.inputs[1] if len(node.inputs) > 1 else None) == 0.0
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return True
    if node.op_type == "Add" and any(_is_above_one(v) for v in node.inputs):
        return any(producer(v, "Tanh", "Erf") is not None for v in node.inputs)
    if node.op_type in ("Add", "Concat", "Mul"):
        return all(v is not None and not is_constant(v) and _is_positive(v) for v in node.inputs)
    if node.op_type in (*MOVERS, "AveragePool", "GlobalAveragePool"):
        return node.inputs[0] is not None and _is_positive(node.inputs[0])
    return node.op_type not in LINEAR


def _is_above_one(value: ir.Value | None) -> bool:
    number = scalar(value)
    return number is not None and number >= 1.0


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _data(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a mover that hold what it moves."""
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [v for v in inputs if v is not None]


def _moved(node: ir.Node, grid: Grid) -> Grid | None:
    """Return the grid of what a layout operator makes of a weight; None where it has none."""
    if node.domain or grid.block:
        return None
    if node.op_type == "Identity":
        return grid
    if node.op_type == "Transpose" and grid.axis is not None:
        perm = node.attributes.get_ints("perm", None)
        rank = _rank(node)
        order = list(perm) if perm else list(range(rank or 0))[::-1]
        return moved_axis(grid, order.index(grid.axis)) if grid.axis in order else None
    layout = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
    return grid if node.op_type in layout and grid.axis is None else None
