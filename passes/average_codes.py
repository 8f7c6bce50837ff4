"""Pass: average codes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_constant, remove_dead, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.quantized_conv import describe, space_of
from qcompile.graph.walk import consumers, is_op, producer


@dataclass(frozen=True, kw_only=True)
class AverageCodes(GraphPass):
    """Let a GlobalAveragePool with a float result add up codes, as a product with a row of ones.

    The int8 pool of ONNX Runtime rounds its result; in float, the codes of a whole feature map are
    dequantized first. A product of codes gives the float average of exact sums, and takes
    the channels last, as the int8 kernels around it do.

    Before: ``y = GlobalAveragePool(DQ(c))``, c uint8 (N, C, H, W).
    After:  ``y = Reshape(MatMul(DQ(ones), DQ(Reshape(Transpose(c)))))``: (1, HW) times (N, HW, C).
    Visits: the main graph. Leaves: a pool whose result is rounded, unknown sizes.
    """

    name: ClassVar[str] = "average-codes"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find every such pool, then replace each."""
        found = [node for node in model.graph if self._fits(node)]
        names = Names(model)
        for node in found:
            _replace(node, names)
        return bool(found)

    def _fits(self, node: ir.Node) -> bool:
        if not is_op(node, "GlobalAveragePool"):
            return False
        real = producer(node.inputs[0], "DequantizeLinear")
        codes = None if real is None else real.inputs[0]
        if codes is None or codes.dtype != ir.DataType.UINT8:
            return False
        if any(is_op(reader, "QuantizeLinear") for reader, _ in consumers(node.outputs[0])):
            self.refuse("its result is rounded: it has an int8 kernel")
            return False
        if not space_of(codes) or not isinstance((codes.shape or (0, None))[1], int):
            self.refuse("its sizes are not known")
            return False
        return True


def _replace(pool: ir.Node, names: Names) -> None:
    graph, result = pool.graph, pool.outputs[0]
    real = producer(pool.inputs[0], "DequantizeLinear")
    assert graph is not None  # noqa: S101 - it was found there
    assert real is not None  # noqa: S101 - it was found behind one
    codes = real.inputs[0]
    assert codes is not None  # noqa: S101 - it has a type
    batch, channels, *space = tuple(codes.shape or (None, None))
    positions = math.prod(space_of(codes) or ())

    def constant(what: str, array: np.ndarray) -> ir.Value:
        return add_constant(graph, names.fresh(result, what), array)

    def add(
        node: ir.Node, like: ir.Value, shape: Sequence[int | ir.SymbolicDim | None]
    ) -> ir.Value:
        node.name = names.fresh(result, node.op_type)
        describe(node.outputs[0], names.fresh(result, node.op_type.lower()), like, shape)
        graph.insert_before(pool, node)
        return node.outputs[0]

    last = [0, *range(2, 2 + len(space)), 1]
    moved = ir.node("Transpose", [codes], attributes={"perm": last})
    rows = add(moved, codes, [batch, *space, channels])
    sizes = constant("rows", np.array([0, positions, channels], np.int64))
    rows = add(ir.node("Reshape", [rows, sizes]), codes, [batch, positions, channels])
    rows = add(
        ir.node("DequantizeLinear", [rows, *real.inputs[1:]]), result, [batch, positions, channels]
    )
    ones = constant("ones", np.ones((1, positions), np.uint8))
    share = constant("share", np.asarray(1 / positions, np.float32))
    zero = constant("zero", np.zeros((), np.uint8))
    ones = add(ir.node("DequantizeLinear", [ones, share, zero]), result, [1, positions])
    mean = add(ir.node("MatMul", [ones, rows]), result, [batch, 1, channels])
    sizes = constant("sizes", np.array([0, channels, *[1] * len(space)], np.int64))
    whole = add(ir.node("Reshape", [mean, sizes]), result, [batch, channels, *[1] * len(space)])
    take_over(whole, result)
    remove_dead([real, pool])
